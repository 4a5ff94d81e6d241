package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/internal/agent"
	"github.com/trayd/trayd/internal/wire"
)

// Limits of the surface.
const (
	maxBody       = 64 << 10
	maxHeader     = 16 << 10
	headerTimeout = 10 * time.Second
	idleTimeout   = 2 * time.Minute
)

type server struct {
	agent   *agent.Agent
	version string
	closing context.Context
}

// NewServer returns the HTTP server; the caller serves it on a unix listener. Event
// streams end when closing does, so that Shutdown isn't held up by them.
func NewServer(closing context.Context, a *agent.Agent, version string, log *slog.Logger) *http.Server {
	s := &server{agent: a, version: version, closing: closing}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/version", s.getVersion)
	mux.HandleFunc("GET /v1/vms", s.listVMs)
	mux.HandleFunc("GET /v1/vms/{vm}", s.getVM)
	mux.HandleFunc("GET /v1/vms/{vm}/drives/{drive}", s.getDrive)
	for _, verb := range []string{agent.Insert, agent.Replace, agent.Eject} {
		mux.HandleFunc("POST /v1/vms/{vm}/drives/{drive}/"+verb, s.change(verb))
	}
	mux.HandleFunc("POST /v1/vms/{vm}/drives/{drive}/cancel", s.cancel)
	mux.HandleFunc("GET /v1/operations/{id}", s.getOperation)
	mux.HandleFunc("GET /v1/events", s.events)
	s.imageRoutes(mux)
	s.machineRoutes(mux)
	s.consoleRoutes(mux)
	mux.HandleFunc("GET /v1/volumes", s.listVolumes)
	mux.HandleFunc("POST /v1/volumes/gc", s.collectVolumes)
	mux.HandleFunc("GET /v1/status", s.getStatus)
	mux.HandleFunc("GET /v1/state", s.getState)
	mux.HandleFunc("GET /v1/state/check", s.checkState)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeProblem(w, &wire.Problem{Code: "no-such-page", Status: http.StatusNotFound,
			Detail: fmt.Sprintf("no %s %s here", r.Method, r.URL.Path), Next: "the API begins at /v1/vms"})
	})
	return &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(context.WithValue(ctx, callerKey{}, callerOf(c)), connKey{}, c)
		},
	}
}

func (s *server) getVersion(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, wire.Version{Version: s.version, PID: os.Getpid()})
}

func (s *server) listVMs(w http.ResponseWriter, r *http.Request) {
	writeJSON(w, http.StatusOK, s.agent.VMs(r.Context()))
}

func (s *server) getVM(w http.ResponseWriter, r *http.Request) {
	v, err := s.agent.VM(r.Context(), r.PathValue("vm"))
	respond(w, v, err)
}

func (s *server) getDrive(w http.ResponseWriter, r *http.Request) {
	d, err := s.agent.Drive(r.Context(), r.PathValue("vm"), driveName(r))
	respond(w, d, err)
}

func (s *server) listVolumes(w http.ResponseWriter, r *http.Request) {
	writeJSON(w, http.StatusOK, s.agent.Volumes(r.Context()))
}

func (s *server) collectVolumes(w http.ResponseWriter, r *http.Request) {
	all, err := s.agent.CollectVolumes(r.Context(), r.URL.Query().Get("dry_run") == "true", caller(r))
	respond(w, all, err)
}

func (s *server) getStatus(w http.ResponseWriter, r *http.Request) {
	st := s.agent.Summary(r.Context())
	st.Version, st.PID = s.version, os.Getpid()
	writeJSON(w, http.StatusOK, st)
}

func (s *server) getState(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, s.agent.Records())
}

func (s *server) checkState(w http.ResponseWriter, r *http.Request) {
	writeJSON(w, http.StatusOK, s.agent.Check(r.Context()))
}

func (s *server) getOperation(w http.ResponseWriter, r *http.Request) {
	o, ok := s.agent.Operation(r.PathValue("id"))
	if !ok {
		writeProblem(w, &wire.Problem{Code: "no-such-operation", Status: http.StatusNotFound,
			Detail: "no operation " + r.PathValue("id"), Next: "the last 256 are kept, until trayd restarts; `trayctl drives` shows each drive's last"})
		return
	}
	writeJSON(w, http.StatusOK, o.Status())
}

// change carries out one verb.
func (s *server) change(verb string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var body wire.ChangeRequest
		req := agent.Request{VM: r.PathValue("vm"), Drive: driveName(r), Verb: verb, By: caller(r)}
		err := readJSON(w, r, &body)
		if err == nil && body.Wait != "" {
			var wait time.Duration
			wait, err = time.ParseDuration(body.Wait)
			req.Wait = &wait
		}
		if err != nil {
			writeProblem(w, &wire.Problem{Code: string(agent.BadRequest), Status: http.StatusBadRequest,
				Detail: "the request can't be read: " + err.Error(), Next: "see the API's description"})
			return
		}
		req.Medium, req.Force, req.ThenForce, req.NoValidate = body.Medium, body.Force, body.ThenForce, body.NoValidate
		o, err := s.agent.Start(req)
		if err != nil {
			writeError(w, err)
			return
		}
		if r.URL.Query().Get("async") == "true" {
			w.Header().Set("Location", "/v1/operations/"+o.ID)
			writeJSON(w, http.StatusAccepted, o.Status())
			return
		}
		p, err := o.Wait(r.Context())
		switch {
		case err != nil: // the client has gone; the operation goes on
		case p.Err != nil:
			writeError(w, p.Err)
		default:
			writeJSON(w, http.StatusOK, o.Status())
		}
	}
}

func (s *server) cancel(w http.ResponseWriter, r *http.Request) {
	o, err := s.agent.Cancel(r.PathValue("vm"), driveName(r), caller(r).Name)
	if err != nil {
		writeError(w, err)
		return
	}
	if _, err := o.Wait(r.Context()); err == nil {
		writeJSON(w, http.StatusOK, o.Status())
	}
}

func withTimeout(r *http.Request, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(r.Context(), d)
}

func driveName(r *http.Request) string {
	if name := r.PathValue("drive"); name != wire.OnlyDrive {
		return name
	}
	return ""
}

func respond(w http.ResponseWriter, v any, err error) {
	if err != nil {
		writeError(w, err)
		return
	}
	writeJSON(w, http.StatusOK, v)
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	send(w, "application/json", status, b)
}

// send sends an answer with its length, so that a client can tell when it breaks off.
func send(w http.ResponseWriter, contentType string, status int, b []byte) {
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", strconv.Itoa(len(b)+1))
	w.WriteHeader(status)
	_, _ = w.Write(append(b, '\n')) // a client that has gone is no error of ours
}

// readJSON reads a body; an empty one leaves v as it is.
func readJSON(w http.ResponseWriter, r *http.Request, v any) error {
	return readJSONOf(w, r, v, maxBody)
}

// readJSONOf is readJSON with a limit of its own, in bytes.
func readJSONOf(w http.ResponseWriter, r *http.Request, v any, limit int64) error {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, limit))
	d.DisallowUnknownFields()
	switch err := d.Decode(v); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one JSON value")
	}
	return nil
}

type callerKey struct{}

func caller(r *http.Request) agent.Caller {
	c, _ := r.Context().Value(callerKey{}).(agent.Caller)
	return c
}

type connKey struct{}

// connection is what a request came by.
func connection(r *http.Request) net.Conn {
	c, _ := r.Context().Value(connKey{}).(net.Conn)
	return c
}

// callerOf names the process at the other end of a unix connection, by the kernel's
// word (SO_PEERCRED). Root and the user that trayd runs as are privileged.
func callerOf(c net.Conn) agent.Caller {
	unknown := agent.Caller{Name: "unknown"}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return unknown
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return unknown
	}
	var cred *unix.Ucred
	if err := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil || cred == nil {
		return unknown
	}
	name := "uid " + strconv.Itoa(int(cred.Uid))
	if u, err := user.LookupId(strconv.Itoa(int(cred.Uid))); err == nil {
		name = u.Username
	}
	return agent.Caller{
		Name:       fmt.Sprintf("%s (pid %d)", name, cred.Pid),
		PID:        int(cred.Pid),
		Privileged: cred.Uid == 0 || int(cred.Uid) == os.Getuid(),
	}
}
