package api

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strings"
	"time"
)

// errNotAllowed is the cause of the end of what somebody is allowed no more.
var errNotAllowed = errors.New(mayNoMore)

// allowedLook is how often it is looked at whether who follows a stream still may.
const allowedLook = 10 * time.Second

// whileAllowed returns a context that ends, with errNotAllowed as its cause, soon after the
// rights that the request had have ended: a token is revoked or expires, a session ends, a
// certificate's time is over. On the unix socket rights last as long
// as the connection does. The function that it returns ends it.
func (s *Server) whileAllowed(r *http.Request, parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(parent)
	if _, local := connection(r).(*net.UnixConn); local {
		return ctx, func() { cancel(nil) }
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		look := time.NewTicker(allowedLook)
		defer look.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-look.C:
				if !s.stillAllowed(r) {
					cancel(errNotAllowed)
				}
			}
		}
	}()
	return ctx, func() {
		cancel(nil)
		<-ended
	}
}

// stillAllowed reports whether what let a request in still does. That keeps its session alive,
// too: who looks at a stream is there.
func (s *Server) stillAllowed(r *http.Request) bool {
	id, now := identity(r), time.Now()
	if c, ok := connection(r).(*tunnelled); ok {
		_, ok := s.inSession(r, tunnelCookie(c.scope), c.scope)
		return ok
	}
	if strings.HasPrefix(id.Key, "cert:") {
		return now.Before(r.TLS.PeerCertificates[0].NotAfter)
	}
	if _, ok := bearer(r); ok {
		return s.Access.Tokens.Valid(id, now)
	}
	_, ok := s.inSession(r, sessionCookie, sessionCookie)
	return ok
}
