package api

import (
	"context"
	"net/http"
	"time"

	"github.com/trayd/trayd/internal/agent"
	"github.com/trayd/trayd/internal/wire"
)

func (s *Server) listOperations(w http.ResponseWriter, r *http.Request) {
	writeJSON(w, http.StatusOK, s.Agent.Operations(r.URL.Query().Get("running") == "true"))
}

// getOperation waits, with ?wait=10s, until the operation has ended.
func (s *Server) getOperation(w http.ResponseWriter, r *http.Request) {
	t, ok := s.Agent.Operation(r.PathValue("id"))
	if !ok {
		writeProblem(w, &wire.Problem{Code: "no-such-operation", Status: http.StatusNotFound,
			Detail: "no operation " + r.PathValue("id"), Next: "the last 256 are kept, until trayd restarts; `trayctl drives` shows each drive's last"})
		return
	}
	wait, err := waitOf(r)
	if err != nil {
		badRequest(w, err)
		return
	}
	if wait > 0 {
		limit := time.NewTimer(wait)
		defer limit.Stop()
		select {
		case <-t.Ended():
		case <-limit.C:
		case <-r.Context().Done():
			return
		case <-s.closing.Done():
		}
	}
	writeJSON(w, http.StatusOK, t.Status())
}

// maxWait is the longest that a client is kept waiting.
const maxWait = time.Minute

// waitOf is how long a request wants to wait.
func waitOf(r *http.Request) (time.Duration, error) {
	text := r.URL.Query().Get("wait")
	if text == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	return min(d, maxWait), err
}

// accepted answers with an operation that goes on.
func accepted(w http.ResponseWriter, o *agent.OperationStatus) {
	w.Header().Set("Location", "/v1/operations/"+o.ID)
	writeJSON(w, http.StatusAccepted, o)
}

// background begins what goes on without its client, if the request wants that.
func (s *Server) background(w http.ResponseWriter, r *http.Request, verb string, f func(context.Context) error) bool {
	if r.URL.Query().Get("async") != "true" {
		return false
	}
	j, err := s.Agent.InBackground(verb, r.PathValue("vm"), caller(r), f)
	if err != nil {
		writeError(w, err)
		return true
	}
	accepted(w, j.Status())
	return true
}
