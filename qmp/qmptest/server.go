package qmptest

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// patience is how long Wait waits, generous because tests share processors.
const patience = 10 * time.Second

// A Handler does something about one command: it answers with the methods of the [Request], or does not answer.
// Handlers of one client run one after the other, so a handler that waits delays all later commands, as in QEMU. To
// answer out of order keep the Request and answer it from a later handler or another goroutine.
type Handler func(*Request)

// An Option programs a [Server].
type Option func(*Server)

// On sets the handler of a command; the command "*" stands for all that have none. qmp_capabilities can be set as well.
func On(command string, h Handler) Option {
	return func(s *Server) { s.handlers[command] = h }
}

// Greeting replaces the greeting by these bytes. With an empty one the server accepts and stays silent, as a monitor
// does that serves another client.
func Greeting(raw string) Option {
	return func(s *Server) { s.greeting = []byte(raw) }
}

// Version sets the version of QEMU that the greeting and query-version tell. It is 9.2.0 otherwise.
func Version(major, minor, micro int) Option {
	return func(s *Server) { s.version = version(major, minor, micro) }
}

// Pretty makes the server write every message over many lines, as a monitor with pretty=on does.
func Pretty() Option {
	return func(s *Server) { s.pretty = true }
}

// A Server is a monitor that listens on a unix socket. Its methods may be called from any goroutine.
type Server struct {
	t        testing.TB
	path     string
	listener *net.UnixListener
	greeting []byte // nil until the options have been read
	version  any
	pretty   bool
	served   chan struct{} // closed when the accepting goroutine has ended

	mu       sync.Mutex // guards what follows
	handlers map[string]Handler
	session  *session // the client of the moment
	requests []*Request
	files    []*os.File
	arrived  chan struct{} // closed and replaced when requests grows
	closed   bool
}

// New starts a server in the test's temporary directory. It ends with the test.
func New(t testing.TB, options ...Option) *Server {
	t.Helper()
	s := &Server{
		t:        t,
		path:     socketPath(t),
		version:  version(9, 2, 0),
		handlers: make(map[string]Handler),
		arrived:  make(chan struct{}),
		served:   make(chan struct{}),
	}
	s.handlers["qmp_capabilities"] = func(r *Request) { r.Return(struct{}{}) }
	s.handlers["query-version"] = func(r *Request) { r.Return(s.version) }
	s.handlers["*"] = func(r *Request) {
		r.Error("CommandNotFound", "The command "+r.Command+" has not been found")
	}
	for _, option := range options {
		option(s)
	}
	if s.greeting == nil {
		s.greeting = s.encode(map[string]any{
			"QMP": map[string]any{"version": s.version, "capabilities": []string{"oob"}},
		})
	}
	var err error
	s.listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: s.path, Net: "unix"})
	if err != nil {
		t.Fatalf("qmptest: %v", err)
	}
	go s.serve()
	t.Cleanup(s.Close)
	return s
}

// socketPath is in the test's directory, or in a shorter one when the test's name does not fit a socket's.
func socketPath(t testing.TB) string {
	const limit = 107 // unix(7)
	path := filepath.Join(t.TempDir(), "qmp")
	if len(path) <= limit {
		return path
	}
	dir, err := os.MkdirTemp("", "qmptest")
	if err != nil {
		t.Fatalf("qmptest: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "qmp")
}

func version(major, minor, micro int) any {
	return map[string]any{
		"qemu":    map[string]int{"major": major, "minor": minor, "micro": micro},
		"package": "qmptest",
	}
}

// encode writes a message in the server's style.
func (s *Server) encode(v any) []byte {
	var text []byte
	var err error
	if s.pretty {
		text, err = json.MarshalIndent(v, "", "    ")
	} else {
		text, err = json.Marshal(v)
	}
	if err != nil {
		s.t.Errorf("qmptest: %v", err)
	}
	return append(text, "\r\n"...)
}

// serve has one client after the other; the kernel lets the others wait.
func (s *Server) serve() {
	defer close(s.served)
	for {
		nc, err := s.listener.AcceptUnix()
		if err != nil {
			return
		}
		c := &session{server: s, nc: nc, done: make(chan struct{})}
		s.mu.Lock()
		closed := s.closed
		s.session = c
		s.mu.Unlock()
		if !closed {
			c.run()
		}
		c.hangup()
		s.mu.Lock()
		s.session = nil
		s.mu.Unlock()
	}
}

// Path is the name of the socket.
func (s *Server) Path() string { return s.path }

// Handle sets the handler of a command while the server runs, as [On] does before.
func (s *Server) Handle(command string, h Handler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handlers[command] = h
}

func (s *Server) handler(command string) Handler {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.handlers[command]; h != nil {
		return h
	}
	return s.handlers["*"]
}

// Event sends an event with the present time; data may be nil. Like QEMU it does nothing when no client is there that
// has negotiated capabilities, and reports that by false. It blocks while the client does not read.
func (s *Server) Event(name string, data any) bool {
	c := s.current()
	if c == nil || !c.negotiated.Load() {
		return false
	}
	now := time.Now()
	event := map[string]any{
		"event":     name,
		"timestamp": map[string]int64{"seconds": now.Unix(), "microseconds": int64(now.Nanosecond() / 1000)},
	}
	if data != nil {
		event["data"] = data
	}
	c.send(event)
	return true
}

// Write sends bytes to the client of the moment as they are: garbage, or several messages in one write. It does nothing
// when there is none.
func (s *Server) Write(raw string) {
	if c := s.current(); c != nil {
		c.write([]byte(raw))
	}
}

// Hangup closes the connection to the client of the moment. The next one is served.
func (s *Server) Hangup() {
	if c := s.current(); c != nil {
		c.hangup()
	}
}

func (s *Server) current() *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.session
}

// Close stops the server as the death of a QEMU does: the client is cut off, and the socket's name stays without anybody
// behind it. New calls it at the end of the test. Files that were received are closed.
func (s *Server) Close() {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.closed = true
	c := s.session
	s.mu.Unlock()

	s.listener.SetUnlinkOnClose(false)
	s.listener.Close()
	if c != nil {
		c.hangup()
	}
	<-s.served
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.files {
		f.Close()
	}
}

// Requests returns all commands that came, from all clients, qmp_capabilities included.
func (s *Server) Requests() []*Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

// Commands returns the names of all commands that came, without qmp_capabilities.
func (s *Server) Commands() []string {
	var names []string
	for _, r := range s.Requests() {
		if r.Command != "qmp_capabilities" {
			names = append(names, r.Command)
		}
	}
	return names
}

// Wait waits until the command of that name has come at least n times, and returns the n-th. The test fails when that
// takes more than 10 s; call it from the test's own goroutine.
func (s *Server) Wait(command string, n int) *Request {
	s.t.Helper()
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		s.mu.Lock()
		arrived, seen := s.arrived, 0
		for _, r := range s.requests {
			if r.Command == command {
				if seen++; seen == n {
					s.mu.Unlock()
					return r
				}
			}
		}
		s.mu.Unlock()
		select {
		case <-arrived:
		case <-timeout.C:
			s.t.Fatalf("qmptest: %d of %d %s within %v; there were: %s",
				seen, n, command, patience, strings.Join(s.Commands(), ", "))
		}
	}
}

func (s *Server) record(r *Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, r)
	close(s.arrived)
	s.arrived = make(chan struct{})
}
