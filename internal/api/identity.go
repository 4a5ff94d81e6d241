package api

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/trayd/trayd/internal/access"
	"github.com/trayd/trayd/internal/agent"
	"github.com/trayd/trayd/internal/wire"
)

type (
	identityKey struct{}
	connKey     struct{}
	peerKeyType struct{}
)

// peer is who is at the other end of a unix connection, found out when it is made.
type peer struct {
	id  access.Identity
	err error
}

func (s *Server) connContext(ctx context.Context, c net.Conn) context.Context {
	ctx = context.WithValue(ctx, connKey{}, c)
	if u, ok := c.(*net.UnixConn); ok {
		id, err := s.Groups.Peer(u)
		ctx = context.WithValue(ctx, peerKeyType{}, peer{id, err})
	}
	return ctx
}

// connection is what a request came by.
func connection(r *http.Request) net.Conn {
	c, _ := r.Context().Value(connKey{}).(net.Conn)
	return c
}

// identity is who a request is from.
func identity(r *http.Request) access.Identity {
	id, _ := r.Context().Value(identityKey{}).(access.Identity)
	return id
}

// caller is who a request is from, for the agent.
func caller(r *http.Request) agent.Caller {
	id := identity(r)
	return agent.Caller{Name: id.Name, PID: id.PID, Privileged: id.Role >= access.Admin}
}

// identify says who a request is from:
//
//   - on the unix socket the process at its other end, by the kernel's word;
//   - through `trayctl ui` who has the cookie of that tunnel's session;
//   - over TLS who has a certificate, a token, or the cookie of a session.
func (s *Server) identify(w http.ResponseWriter, r *http.Request) (access.Identity, *wire.Problem) {
	switch c := connection(r).(type) {
	case *net.UnixConn:
		p, _ := r.Context().Value(peerKeyType{}).(peer)
		switch {
		case p.err != nil:
			return access.Identity{}, &wire.Problem{Code: string(wire.Forbidden), Status: http.StatusForbidden, Detail: p.err.Error(), Next: "trayd needs Linux 4.13 or later"}
		case p.id.Role == access.None:
			return access.Identity{}, notAllowed(p.id, access.View, s.Groups)
		}
		return p.id, nil
	case *tunnelled:
		if id, ok := s.inSession(r, tunnelCookie(c.scope), c.scope); ok {
			return id, nil
		}
		p := unauthenticated("this page has no session any more", "run `trayctl ui` again")
		p.Code = "session-over" // a token wouldn't help here
		return access.Identity{}, p
	}
	if id, ok := s.certified(r); ok {
		return id, nil
	}
	if secret, ok := bearer(r); ok {
		return s.byToken(w, r, secret)
	}
	if id, ok := s.inSession(r, sessionCookie, sessionCookie); ok {
		id.Name += from(r)
		return id, nil
	}
	w.Header().Set("WWW-Authenticate", `Bearer realm="trayd"`)
	return access.Identity{}, unauthenticated("the request says not who it is from", "send a token (`trayctl token create`) as `Authorization: Bearer`, or a client certificate")
}

// bearer is the token that a request brings; ok when it brings one, if only an empty one.
func bearer(r *http.Request) (secret string, ok bool) {
	scheme, secret, ok := strings.Cut(r.Header.Get("Authorization"), " ")
	return strings.TrimSpace(secret), ok && strings.EqualFold(scheme, "Bearer")
}

// inSession is whose session a request is of. Sessions outlive neither the token that they
// were begun with nor, through `trayctl ui --host`, the one that made the way.
func (s *Server) inSession(r *http.Request, cookieName, scope string) (access.Identity, bool) {
	secret := cookie(r, cookieName)
	if secret == "" {
		return access.Identity{}, false
	}
	now := time.Now()
	id, ok := s.Access.Sessions.Find(secret, scope, now)
	return id, ok && s.Access.Tokens.Valid(id, now)
}

// certified is who has a client certificate that the configuration gives a role.
func (s *Server) certified(r *http.Request) (access.Identity, bool) {
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return access.Identity{}, false
	}
	cert := r.TLS.PeerCertificates[0]
	if time.Now().After(cert.NotAfter) { // since the handshake: a connection may last longer
		return access.Identity{}, false
	}
	name := cert.Subject.CommonName
	role, ok := s.Clients[name]
	return access.Identity{Name: "certificate " + name + from(r), Key: "cert:" + name, Role: role}, ok
}

// byToken is whose a token is. Who tries wrong ones waits longer and longer.
func (s *Server) byToken(w http.ResponseWriter, r *http.Request, secret string) (access.Identity, *wire.Problem) {
	now, addr, token := time.Now(), remote(r), s.Access.Tokens.Known(secret)
	if wait := s.Access.Throttle.Wait(addr, token, now); wait > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(wait.Seconds()))))
		return access.Identity{}, &wire.Problem{Code: "too-many-attempts", Status: http.StatusTooManyRequests,
			Detail: fmt.Sprintf("there were too many wrong tokens from %s", addr), Next: fmt.Sprintf("wait %s, then use a right one", wait.Round(time.Second))}
	}
	id, err := s.Access.Tokens.Check(secret, now)
	if err != nil {
		s.Access.Throttle.Failed(addr, token, now)
		s.Log.Warn("refused", "audit", true, "by", "unknown"+from(r), "verb", "sign in", "code", "unauthenticated", "took", time.Since(now), "error", err)
		w.Header().Set("WWW-Authenticate", `Bearer realm="trayd", error="invalid_token"`)
		return access.Identity{}, unauthenticated(err.Error(), "`trayctl token ls` on the host shows which there are; `trayctl token create` makes one")
	}
	s.Access.Throttle.Succeeded(addr, token)
	id.Name += from(r)
	return id, nil
}

func unauthenticated(detail, next string) *wire.Problem {
	return &wire.Problem{Code: "unauthenticated", Status: http.StatusUnauthorized, Detail: detail, Next: next}
}

// notAllowed is the answer to who may not do what they ask for.
func notAllowed(id access.Identity, needed access.Role, g access.Groups) *wire.Problem {
	p := &wire.Problem{Code: string(wire.Forbidden), Status: http.StatusForbidden, Detail: fmt.Sprintf("%s may not use trayd", id.Name)}
	if id.Role > access.None {
		p.Detail = fmt.Sprintf("%s has the role %s; this needs %s", id.Name, id.Role, needed)
	}
	group := g.Change
	if needed == access.View && g.View != "" {
		group = g.View
	}
	switch {
	case id.PID == 0:
		p.Next = "use a token with that role: `trayctl token create NAME --role " + needed.String() + "` on the host"
	case needed == access.Admin || group == "":
		p.Next = "become root (`sudo trayctl ...`)"
	default:
		p.Next = "become root, or a member of the group " + group + " (`sudo usermod -aG " + group + " $USER`, then log in again)"
	}
	return p
}

// from is the address of who asks, for people.
func from(r *http.Request) string {
	if a := remote(r); a.IsValid() {
		return " (" + a.String() + ")"
	}
	return ""
}

// remote is the address of who asks; not valid for those on a unix socket.
func remote(r *http.Request) netip.Addr {
	a, _ := netip.ParseAddrPort(r.RemoteAddr)
	return a.Addr().Unmap()
}

// rightHost refuses a request for another host than this one: a page on a name that its
// owner points to this address (DNS rebinding) would else be of one origin with trayd.
func (s *Server) rightHost(r *http.Request) *wire.Problem {
	host := hostOnly(r.Host)
	switch connection(r).(type) {
	case *net.UnixConn:
		return nil
	case *tunnelled:
		if isLoopback(host) {
			return nil
		}
	case *tls.Conn:
		_, err := netip.ParseAddr(strings.Trim(host, "[]"))
		named := func(name string) bool { return strings.EqualFold(name, host) }
		if err == nil || isLoopback(host) || slices.ContainsFunc(s.Names, named) {
			return nil
		}
	}
	return &wire.Problem{Code: "wrong-host", Status: http.StatusMisdirectedRequest,
		Detail: fmt.Sprintf("this host isn't known as %q", host), Next: "use its address, or add the name to api.names in trayd.toml"}
}

// hostOnly is a Host header without the port.
func hostOnly(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		return name
	}
	return host
}

func isLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	a, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && a.IsLoopback()
}

// crossOrigin refuses what a page of another host asks for: browsers send cookies along, and
// say whose page it is (Sec-Fetch-Site, Origin). What is no browser says neither.
func crossOrigin(r *http.Request) *wire.Problem {
	err := http.NewCrossOriginProtection().Check(r)
	if err == nil && (r.Header.Get("Upgrade") == "" || sameOrigin(r)) {
		return nil
	}
	if err == nil {
		err = errors.New("a page of " + r.Header.Get("Origin") + " may not open a console of " + r.Host)
	}
	return &wire.Problem{Code: string(wire.Forbidden), Status: http.StatusForbidden, Detail: err.Error(), Next: "serve the page from the host that it asks"}
}

// sameOrigin reports whether a request comes from a page of this host, or from no page at all:
// browsers say by Origin whose page it is, and let pages of all hosts open WebSockets.
func sameOrigin(r *http.Request) bool {
	origin := r.Header.Get("Origin")
	if origin == "" {
		return true
	}
	u, err := url.Parse(origin)
	return err == nil && u.Host != "" && strings.EqualFold(u.Host, r.Host)
}

func cookie(r *http.Request, name string) string {
	c, err := r.Cookie(name)
	if err != nil {
		return ""
	}
	return c.Value
}
