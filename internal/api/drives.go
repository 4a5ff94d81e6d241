package api

import (
	"net/http"
	"time"

	"github.com/trayd/trayd/internal/agent"
	"github.com/trayd/trayd/internal/wire"
)

func (s *Server) getDrive(w http.ResponseWriter, r *http.Request) {
	d, err := s.Agent.Drive(r.Context(), r.PathValue("vm"), driveName(r))
	respond(w, d, err)
}

// driveName is the drive of a path; "" for the only one.
func driveName(r *http.Request) string {
	if name := r.PathValue("drive"); name != wire.OnlyDrive {
		return name
	}
	return ""
}

// change carries out one verb.
func (s *Server) change(verb string) http.HandlerFunc {
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
			badRequest(w, err)
			return
		}
		req.Medium, req.Force, req.ThenForce, req.NoValidate = body.Medium, body.Force, body.ThenForce, body.NoValidate
		o, err := s.Agent.Start(req)
		if err != nil {
			writeError(w, err)
			return
		}
		if r.URL.Query().Get("async") == "true" {
			accepted(w, o.Status())
			return
		}
		answerFor(w, r, o)
	}
}

// answerFor waits for an operation's end. It goes on when the client goes.
func answerFor(w http.ResponseWriter, r *http.Request, o *agent.Operation) {
	p, err := o.Wait(r.Context())
	switch {
	case err != nil: // the client has gone
	case p.Err != nil:
		writeError(w, p.Err)
	default:
		writeJSON(w, http.StatusOK, o.Status())
	}
}

func (s *Server) cancel(w http.ResponseWriter, r *http.Request) {
	o, err := s.Agent.Cancel(r.PathValue("vm"), driveName(r), caller(r).Name)
	if err != nil {
		writeError(w, err)
		return
	}
	if _, err := o.Wait(r.Context()); err == nil {
		writeJSON(w, http.StatusOK, o.Status())
	}
}

// force has the disc taken that the guest is waited for.
func (s *Server) force(w http.ResponseWriter, r *http.Request) {
	o, err := s.Agent.Force(r.PathValue("vm"), driveName(r), caller(r))
	if err != nil {
		writeError(w, err)
		return
	}
	answerFor(w, r, o)
}
