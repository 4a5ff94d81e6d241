package api

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/trayd/trayd/internal/access"
	"github.com/trayd/trayd/internal/agent"
	"github.com/trayd/trayd/internal/doctor"
	"github.com/trayd/trayd/internal/look"
	"github.com/trayd/trayd/internal/wire"
)

// Options are what a Server is made of.
type Options struct {
	Agent   *agent.Agent
	Version string
	Log     *slog.Logger
	// Groups are those whose members may use the unix socket.
	Groups access.Groups
	// Access are those who come by another way than the unix socket.
	Access Access
	// Clients are the roles of client certificates by their common names.
	Clients map[string]access.Role
	// Names are what this host is called by those who come over TCP; addresses and localhost
	// are always right.
	Names []string
	// Doctor examines the host; nil for none.
	Doctor *doctor.Doctor
	// Hold keeps requests back until they can be answered; nil for none.
	Hold func(http.Handler) http.Handler
	// Page is what is at / and beneath /page/; nil for none.
	Page http.Handler
	// Healthy answers as long as the parts of trayd do; Ready says why trayd doesn't do its work,
	// nil when it does. nil: there are no /healthz and /readyz.
	Healthy func(context.Context) error
	Ready   func() error
	// Metrics is what is at /metrics; nil for nothing.
	Metrics http.Handler
	// Observe is told of each request that was answered; nil for nobody.
	Observe func(route, method string, status int, took time.Duration)
}

// Access is what is known of those who don't come by the unix socket.
type Access struct {
	Tokens   *access.Tokens
	Sessions *access.Sessions
	Ways     *access.Ways
	Throttle *access.Throttle
}

// NewAccess reads what the state file has of them.
func NewAccess(store access.Store) (a Access, err error) {
	a.Throttle = access.NewThrottle()
	if a.Tokens, err = access.NewTokens(store); err != nil {
		return a, err
	}
	if a.Sessions, err = access.NewSessions(store, time.Now()); err != nil {
		return a, err
	}
	a.Ways, err = access.NewWays(store)
	return a, err
}

// Server serves the API, and the page, on any number of listeners. What a request may do
// depends on what it came by: see identify.
type Server struct {
	Options
	http    *http.Server
	mux     *http.ServeMux
	routes  map[string]*route // by their patterns
	tunnels *tunnels
	repeats *repeats
	conns   *connections
	refused refusals
	vms     look.Recent[[]byte]
	closing context.Context
}

// New returns a server. Its streams end when closing does, so that Shutdown isn't held up by
// them.
func New(closing context.Context, o Options) *Server {
	s := &Server{
		Options: o, closing: closing, mux: http.NewServeMux(), routes: make(map[string]*route),
		tunnels: newTunnels(), repeats: newRepeats(), conns: newConnections(),
		refused: refusals{last: make(map[string]time.Time)},
	}
	for _, r := range s.table() {
		pattern := r.method + " " + r.path
		s.routes[pattern] = &r
		s.mux.Handle(pattern, r.handler)
	}
	s.mux.HandleFunc("/", s.noSuchPage)
	handler := http.Handler(s)
	if o.Hold != nil {
		handler = o.Hold(s)
	}
	s.http = &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(o.Log.Handler(), slog.LevelDebug), // clients that break off
		ConnContext:       s.connContext,
		ConnState:         s.conns.state,
	}
	s.http.RegisterOnShutdown(s.conns.endSilent)
	return s
}

// Serve serves a listener until Shutdown or Close, and returns http.ErrServerClosed then. The
// listener is of unix sockets, or of TLS.
func (s *Server) Serve(l net.Listener) error { return s.http.Serve(s.conns.limit(l, s.Log)) }

// ServeTunnels serves the browsers that come through `trayctl ui`, until Shutdown or Close.
func (s *Server) ServeTunnels() error { return s.http.Serve(s.tunnels) }

// Shutdown waits until all requests are answered, or ctx ends.
func (s *Server) Shutdown(ctx context.Context) error {
	err := s.http.Shutdown(ctx)
	if err == nil { // else there may be requests yet
		s.vms.Wait()
	}
	return err
}

// Close ends all connections.
func (s *Server) Close() error { return s.http.Close() }

// ServeHTTP takes a request through what all have in common: who is it from, may they, was
// it answered already.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	out := &reply{ResponseWriter: w, control: http.NewResponseController(w)}
	_, pattern := s.mux.Handler(r)
	to := s.routes[pattern]
	header(out.Header())
	if r.ContentLength != 0 {
		// What reads the body sets its own. Nothing else waits for a body that doesn't come:
		// net/http reads what is left of one before it answers.
		_ = out.control.SetReadDeadline(time.Now().Add(slowWriter))
	}
	if p := s.admit(out, &r, to); p != nil {
		writeProblem(out, p)
	} else {
		s.once(to, out, r)
	}
	if s.Observe != nil {
		path := "other"
		if to != nil {
			path = to.path
		}
		s.Observe(path, r.Method, out.answered(), time.Since(began))
	}
}

// header sets what each answer has. The page sets its own over it.
func header(h http.Header) {
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
}

// admit says why a request is refused; nil when it isn't. It notes in the request who it is
// from.
func (s *Server) admit(w http.ResponseWriter, r **http.Request, to *route) *wire.Problem {
	if p := s.rightHost(*r); p != nil {
		return p
	}
	if p := crossOrigin(*r); p != nil {
		return p
	}
	if to != nil && to.role == access.None {
		return nil
	}
	id, p := s.identify(w, *r)
	if p != nil {
		return p
	}
	*r = (*r).WithContext(context.WithValue((*r).Context(), identityKey{}, id))
	if to != nil && id.Role < to.role {
		s.auditRefused(*r, id, to)
		return notAllowed(id, to.role, s.Groups)
	}
	return badQuery(*r, to)
}

// badQuery refuses what would else be left out in silence: a boolean that is none (dry_run=1, or
// yes, would be no dry run), and a name that the route doesn't know (dryrun=true).
func badQuery(r *http.Request, to *route) *wire.Problem {
	if to == nil || r.URL.RawQuery == "" {
		return nil
	}
	bad := func(next, format string, args ...any) *wire.Problem {
		return &wire.Problem{Code: string(agent.BadRequest), Status: http.StatusBadRequest, Detail: fmt.Sprintf(format, args...), Next: next}
	}
	all, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return bad("see the API's description", "the query can't be read: %v", err)
	}
	known := make([]string, len(to.query))
	for i, q := range to.query {
		known[i] = q.name
		if v := all.Get(q.name); q.kind == "boolean" && all.Has(q.name) && v != "true" && v != "false" {
			return bad("use "+q.name+"=true, or leave it out", "%s=%.40s is neither true nor false", q.name, v)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		switch {
		case slices.Contains(known, name):
		case strings.HasPrefix(to.path, harvesterRoutes), !strings.HasPrefix(to.path, "/v1/"): // there, and by probes and scrapers, what is too much is left alone
		case len(known) == 0:
			return bad("leave it out", "%s %s takes no %.40q in its query", to.method, to.path, name)
		default:
			return bad("it takes "+strings.Join(known, ", "), "%s %s takes no %.40q in its query", to.method, to.path, name)
		}
	}
	return nil
}

// noSuchPage answers what no route is for.
func (s *Server) noSuchPage(w http.ResponseWriter, r *http.Request) {
	var others []string
	for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE"} {
		probe := &http.Request{Method: method, URL: r.URL, Host: r.Host}
		if _, pattern := s.mux.Handler(probe); pattern != "/" {
			others = append(others, method)
		}
	}
	if len(others) > 0 {
		w.Header().Set("Allow", strings.Join(others, ", "))
		writeProblem(w, &wire.Problem{Code: "method-not-allowed", Status: http.StatusMethodNotAllowed,
			Detail: fmt.Sprintf("no %s of %s", r.Method, r.URL.Path), Next: "use " + strings.Join(others, " or ")})
		return
	}
	writeProblem(w, &wire.Problem{Code: "no-such-page", Status: http.StatusNotFound,
		Detail: fmt.Sprintf("no %s here", r.URL.Path), Next: "the API begins at /v1/vms; /v1/openapi.yaml describes it"})
}
