package api

import (
	_ "embed"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"time"

	"github.com/trayd/trayd/internal/wire"
)

//go:embed openapi.yaml
var openAPI []byte

func getOpenAPI(w http.ResponseWriter, _ *http.Request) {
	send(w, string(yamlText), http.StatusOK, openAPI)
}

func (s *Server) getVersion(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, wire.Version{Version: s.Version, PID: os.Getpid()})
}

// vmsAge is how old the list of all machines may be, as long as trayd has neither done nor
// heard of anything since; up to ten times that where it takes long to look at them all. One machine, and one drive, are looked at for each question.
const vmsAge = 100 * time.Millisecond

func (s *Server) listVMs(w http.ResponseWriter, _ *http.Request) {
	// Of a hundred machines it has 70 kB, and takes some hundred questions.
	b := s.vms.Do(vmsAge, s.Agent.Changes, func(hurry <-chan struct{}) []byte {
		b, err := json.Marshal(s.Agent.VMsUnhurried(s.closing, hurry))
		if err != nil {
			return nil
		}
		return b
	})
	if b == nil {
		writeError(w, errors.New("the machines can't be described"))
		return
	}
	send(w, "application/json", http.StatusOK, b)
}

func (s *Server) getVM(w http.ResponseWriter, r *http.Request) {
	v, err := s.Agent.VM(r.Context(), r.PathValue("vm"))
	respond(w, v, err)
}

func (s *Server) listVolumes(w http.ResponseWriter, r *http.Request) {
	writeJSON(w, http.StatusOK, s.Agent.Volumes(r.Context()))
}

func (s *Server) collectVolumes(w http.ResponseWriter, r *http.Request) {
	all, err := s.Agent.CollectVolumes(r.Context(), r.URL.Query().Get("dry_run") == "true", caller(r))
	respond(w, all, err)
}

func (s *Server) getStatus(w http.ResponseWriter, r *http.Request) {
	st := s.Agent.Summary(r.Context())
	st.Version, st.PID = s.Version, os.Getpid()
	st.Attention = []wire.Check{}
	if s.Doctor != nil {
		st.Attention = s.Doctor.Attention(r.Context())
	}
	writeJSON(w, http.StatusOK, st)
}

func (s *Server) getState(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, s.Agent.Records())
}

func (s *Server) checkState(w http.ResponseWriter, r *http.Request) {
	writeJSON(w, http.StatusOK, s.Agent.Check(r.Context()))
}

// examine looks at the host: `trayctl doctor`.
func (s *Server) examine(w http.ResponseWriter, r *http.Request) {
	if s.Doctor == nil {
		s.noSuchPage(w, r)
		return
	}
	writeJSON(w, http.StatusOK, s.Doctor.Examine(r.Context()))
}
