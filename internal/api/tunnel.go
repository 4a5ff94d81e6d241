package api

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/trayd/trayd/internal/wire"
)

// upgradeUI is the protocol of a connection that carries a browser's.
const upgradeUI = "trayd-page"

// tunnels are the ways by which `trayctl ui` brings browsers here: it listens on a loopback
// port, and hands each connection on through one of its own. So trayd listens on no port, and
// the page of another host's trayd is reached the same way.
//
// It is the listener of those connections. A browser's connection has no rights by itself,
// whoever brought it: they come with the session's cookie.
type tunnels struct {
	conns  chan net.Conn
	closed chan struct{}

	mu    sync.Mutex // guards ended
	ended bool
}

func newTunnels() *tunnels {
	return &tunnels{conns: make(chan net.Conn), closed: make(chan struct{})}
}

// tunnelled is a browser's connection.
type tunnelled struct {
	net.Conn
	r     *bufio.Reader // what came behind the request for it
	scope string
	drop  func() // says that it is no more
	once  sync.Once
}

func (c *tunnelled) Read(b []byte) (int, error) { return c.r.Read(b) }

func (c *tunnelled) Close() error {
	c.once.Do(c.drop)
	return c.Conn.Close()
}

// Accept is that of net.Listener.
func (t *tunnels) Accept() (net.Conn, error) {
	select {
	case c := <-t.conns:
		return c, nil
	case <-t.closed:
		return nil, errTunnelsClosed
	}
}

// Close is that of net.Listener.
func (t *tunnels) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.ended {
		t.ended = true
		close(t.closed)
	}
	return nil
}

// Addr is that of net.Listener.
func (t *tunnels) Addr() net.Addr { return &net.UnixAddr{Name: upgradeUI, Net: "unix"} }

// openUI makes a way to the page, with the rights of who asks.
func (s *Server) openUI(w http.ResponseWriter, r *http.Request) {
	if s.Page == nil {
		s.noSuchPage(w, r)
		return
	}
	began, id := time.Now(), identity(r)
	scope, forgotten, err := s.Access.Ways.Make(id, time.Now())
	for _, f := range forgotten {
		s.Access.Sessions.EndScope(f)
	}
	if err != nil {
		writeProblem(w, notKept(err))
		return
	}
	id.PID = 0 // what a page asks for isn't asked by the process that brings it here
	id.Name += " by the page"
	s.Log.Info("done", "audit", true, "by", identity(r).Name, "verb", "open page", "took", time.Since(began))
	token, err := s.Access.Sessions.OneTime(id, scope, time.Now())
	if err != nil {
		writeProblem(w, notKept(err))
		return
	}
	writeJSON(w, http.StatusCreated, wire.UI{ID: scope, Token: token})
}

func (s *Server) closeUI(w http.ResponseWriter, r *http.Request) {
	scope := r.PathValue("ui")
	if !s.Access.Ways.MadeBy(scope, identity(r)) {
		writeProblem(w, noSuchUI(scope))
		return
	}
	s.Access.Ways.Remove(scope)
	s.Access.Sessions.EndScope(scope)
	w.WriteHeader(http.StatusNoContent)
}

func noSuchUI(scope string) *wire.Problem {
	return &wire.Problem{Code: "no-such-ui", Status: http.StatusNotFound, Detail: "there is no way to the page " + scope + ", or it is somebody else's", Next: "run `trayctl ui` again"}
}

// connectUI takes over the connection as a browser's.
func (s *Server) connectUI(w http.ResponseWriter, r *http.Request) {
	scope := r.PathValue("ui")
	switch {
	case !s.Access.Ways.MadeBy(scope, identity(r)):
		writeProblem(w, noSuchUI(scope))
		return
	case !hasToken(r.Header, "Connection", "upgrade") || r.Header.Get("Upgrade") != upgradeUI:
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", upgradeUI)
		writeProblem(w, &wire.Problem{Code: "upgrade-required", Status: http.StatusUpgradeRequired, Detail: "this carries a browser's connection", Next: "run `trayctl ui`"})
		return
	}
	out := connection(r)
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		writeProblem(w, &wire.Problem{Code: "internal", Status: http.StatusInternalServerError, Detail: err.Error()})
		return
	}
	drop := func() { s.conns.drop(out) }
	if _, err := fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", upgradeUI); err != nil {
		drop()
		conn.Close()
		return
	}
	c := &tunnelled{Conn: conn, r: buffered.Reader, scope: scope, drop: drop}
	select {
	case s.tunnels.conns <- c:
	case <-s.tunnels.closed:
		c.Close()
	}
}
