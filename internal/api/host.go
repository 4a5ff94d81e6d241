package api

import (
	_ "embed"
	"net/http"
	"os"

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

func (s *Server) listVMs(w http.ResponseWriter, r *http.Request) {
	writeJSON(w, http.StatusOK, s.Agent.VMs(r.Context()))
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
	writeJSON(w, http.StatusOK, st)
}

func (s *Server) getState(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, s.Agent.Records())
}

func (s *Server) checkState(w http.ResponseWriter, r *http.Request) {
	writeJSON(w, http.StatusOK, s.Agent.Check(r.Context()))
}
