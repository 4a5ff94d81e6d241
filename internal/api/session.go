package api

import (
	"errors"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/trayd/trayd/internal/access"
	"github.com/trayd/trayd/internal/agent"
	"github.com/trayd/trayd/internal/wire"
)

// sessionCookie is a browser's over TLS. The prefix has browsers take it only from this very
// host, over TLS, and for all of it (RFC 6265bis 4.1.3.2). It is the scope of those sessions,
// too.
const sessionCookie = "__Host-trayd"

// tunnelCookie is a browser's through `trayctl ui`. Cookies of one host count for all its
// ports, so each tunnel has a name of its own.
func tunnelCookie(scope string) string { return "trayd-" + scope }

// getSession says who the caller is.
func (s *Server) getSession(w http.ResponseWriter, r *http.Request) { s.writeSession(w, identity(r)) }

func (s *Server) writeSession(w http.ResponseWriter, id access.Identity) {
	host, _ := os.Hostname() // "" when the kernel doesn't say
	writeJSON(w, http.StatusOK, wire.Session{Name: id.Name, Role: id.Role.String(), Host: host, Version: s.Version})
}

// beginSession takes a token and gives a browser a cookie for it, which scripts can't read.
func (s *Server) beginSession(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	var body wire.SessionRequest
	if err := readJSON(w, r, &body); err != nil {
		badRequest(w, err)
		return
	}
	if c, ok := connection(r).(*tunnelled); ok {
		secret, id, ok := s.Access.Sessions.Exchange(body.Token, c.scope, time.Now())
		if !ok {
			writeProblem(w, unauthenticated("this token has been used, or its time is over", "run `trayctl ui` again"))
			return
		}
		http.SetCookie(w, &http.Cookie{Name: tunnelCookie(c.scope), Value: secret, Path: "/", HttpOnly: true, SameSite: http.SameSiteStrictMode})
		s.writeSession(w, id)
		return
	}
	if _, ok := connection(r).(*net.UnixConn); ok || s.Access.Tokens == nil {
		writeProblem(w, &wire.Problem{Code: string(agent.BadRequest), Status: http.StatusBadRequest, Detail: "on the unix socket the kernel says who asks", Next: "no session is needed"})
		return
	}
	id, p := s.byToken(w, r, body.Token)
	if p != nil {
		writeProblem(w, p)
		return
	}
	kept := id
	kept.Name = "token " + s.tokenName(id)
	secret, err := s.Access.Sessions.Begin(kept, sessionCookie, time.Now())
	if err != nil {
		writeProblem(w, notKept(err))
		return
	}
	http.SetCookie(w, &http.Cookie{Name: sessionCookie, Value: secret, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteStrictMode})
	s.Log.Info("done", "audit", true, "by", id.Name, "verb", "sign in", "took", time.Since(began))
	s.writeSession(w, id)
}

// tokenName is what the token of an identity is called.
func (s *Server) tokenName(id access.Identity) string {
	for _, t := range s.Access.Tokens.List() {
		if "token:"+t.ID == id.Key {
			return t.Name
		}
	}
	return id.Key
}

func (s *Server) endSession(w http.ResponseWriter, r *http.Request) {
	name := sessionCookie
	if c, ok := connection(r).(*tunnelled); ok {
		name = tunnelCookie(c.scope)
	}
	s.Access.Sessions.End(cookie(r, name))
	http.SetCookie(w, &http.Cookie{Name: name, Path: "/", MaxAge: -1, Secure: name == sessionCookie, HttpOnly: true, SameSite: http.SameSiteStrictMode})
	w.WriteHeader(http.StatusNoContent)
}

// servePage serves the page's files. With ?token=... of `trayctl ui` its session begins first,
// and the token goes from the address line.
func (s *Server) servePage(w http.ResponseWriter, r *http.Request) {
	token := r.URL.Query().Get("token")
	c, ok := connection(r).(*tunnelled)
	if r.URL.Path != "/" || token == "" || !ok {
		s.Page.ServeHTTP(w, r)
		return
	}
	if secret, _, ok := s.Access.Sessions.Exchange(token, c.scope, time.Now()); ok {
		http.SetCookie(w, &http.Cookie{Name: tunnelCookie(c.scope), Value: secret, Path: "/", HttpOnly: true, SameSite: http.SameSiteStrictMode})
	}
	// A token that has been used leads to the page, too: it may have been by this browser,
	// and the page says what to do otherwise.
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

// defaultExpiry is how long a token counts for which no time was said.
const defaultExpiry = 90 * 24 * time.Hour

func (s *Server) listTokens(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, s.Access.Tokens.List())
}

func (s *Server) createToken(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	var body wire.TokenRequest
	err := readJSON(w, r, &body)
	role := access.View
	if err == nil {
		role, err = access.ParseRole(body.Role)
	}
	expires := time.Now().Add(defaultExpiry)
	if err == nil && body.Expires == "never" {
		expires = time.Time{}
	} else if err == nil && body.Expires != "" {
		var d time.Duration
		if d, err = time.ParseDuration(body.Expires); err == nil && d <= 0 {
			err = errors.New("a token that has expired already: use a duration such as 720h, or never")
		}
		expires = time.Now().Add(d)
	}
	if err != nil {
		badRequest(w, err)
		return
	}
	t, err := s.Access.Tokens.Create(body.Name, role, expires, identity(r).Name)
	s.auditToken(r, "create token", body.Name, began, err)
	if err != nil {
		writeProblem(w, tokenProblem(err, body.Name))
		return
	}
	w.Header().Set("Location", "/v1/tokens/"+t.ID)
	writeJSON(w, http.StatusCreated, t)
}

func (s *Server) revokeToken(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	which := r.PathValue("token")
	_, err := s.Access.Tokens.Revoke(which)
	s.auditToken(r, "revoke token", which, began, err)
	if err != nil {
		writeProblem(w, tokenProblem(err, which))
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *Server) auditToken(r *http.Request, verb, token string, began time.Time, err error) {
	log := s.Log.With("audit", true, "by", identity(r).Name, "verb", verb, "token", token, "took", time.Since(began))
	if err != nil {
		log.Warn("failed", "error", err)
		return
	}
	log.Info("done")
}

func tokenProblem(err error, name string) *wire.Problem {
	p := &wire.Problem{Detail: err.Error() + ": " + name}
	switch {
	case errors.Is(err, access.ErrNoToken):
		p.Code, p.Status, p.Next = "no-such-token", http.StatusNotFound, "see `trayctl token ls`"
	case errors.Is(err, access.ErrTokenExists):
		p.Code, p.Status, p.Next = "token-exists", http.StatusConflict, "choose another name, or revoke it first: `trayctl token revoke "+name+"`"
	case errors.Is(err, access.ErrTokenName):
		p.Code, p.Status, p.Next = string(agent.BadRequest), http.StatusBadRequest, "choose another name"
	case errors.Is(err, access.ErrTooManyToken):
		p.Code, p.Status, p.Next = "token-exists", http.StatusConflict, "revoke those that nobody uses: `trayctl token ls`"
	default:
		return notKept(err)
	}
	return p
}

// notKept is the answer where the state file takes nothing.
func notKept(err error) *wire.Problem {
	return &wire.Problem{Code: string(agent.StateRefused), Status: http.StatusInsufficientStorage, Detail: "it can't be written to the state file: " + err.Error(),
		Next: "free space in state_dir, or see `trayctl state check`"}
}
