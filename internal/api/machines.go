package api

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/trayd/trayd/internal/agent"
	"github.com/trayd/trayd/internal/wire"
)

// maxMachineBody is of a request for a new machine, in bytes: with cloud-init's user data.
const maxMachineBody = 1 << 20

func (s *Server) createVM(w http.ResponseWriter, r *http.Request) {
	// What a machine has unless the request says otherwise.
	body := wire.MachineRequest{Definition: wire.Definition{VNC: true, Serial: true, GuestAgent: true}}
	if err := readJSONOf(w, r, &body, maxMachineBody); err != nil {
		badRequest(w, err)
		return
	}
	vm, warnings, err := s.Agent.CreateVM(r.Context(), body, caller(r))
	if err != nil {
		writeError(w, err)
		return
	}
	w.Header().Set("Location", "/v1/vms/"+vm.Name)
	writeJSON(w, http.StatusCreated, wire.MachineCreated{VM: vm, Warnings: warnings})
}

func (s *Server) changeVM(w http.ResponseWriter, r *http.Request) {
	var body wire.MachineChange
	if err := readJSON(w, r, &body); err != nil {
		badRequest(w, err)
		return
	}
	vm, err := s.Agent.ChangeVM(r.Context(), r.PathValue("vm"), body, caller(r))
	respond(w, vm, err)
}

func (s *Server) removeVM(w http.ResponseWriter, r *http.Request) {
	if err := s.Agent.RemoveVM(r.Context(), r.PathValue("vm"), r.URL.Query().Get("force") == "true", caller(r)); err != nil {
		writeError(w, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (s *Server) startVM(w http.ResponseWriter, r *http.Request) {
	vm, by := r.PathValue("vm"), caller(r)
	if s.background(w, r, "start", func(ctx context.Context) error {
		_, err := s.Agent.StartVM(ctx, vm, by)
		return err
	}) {
		return
	}
	began, err := s.Agent.StartVM(r.Context(), r.PathValue("vm"), caller(r))
	respond(w, began, err)
}

func (s *Server) stopVM(w http.ResponseWriter, r *http.Request) {
	var body wire.StopRequest
	err := readJSON(w, r, &body)
	var wait *time.Duration
	if err == nil && body.Wait != "" {
		var d time.Duration
		d, err = time.ParseDuration(body.Wait)
		wait = &d
	}
	if err != nil {
		badRequest(w, err)
		return
	}
	vm, by := r.PathValue("vm"), caller(r)
	if s.background(w, r, "stop", func(ctx context.Context) error {
		_, err := s.Agent.StopVM(ctx, vm, wait, body.ThenForce, by)
		return err
	}) {
		return
	}
	res, err := s.Agent.StopVM(r.Context(), r.PathValue("vm"), wait, body.ThenForce, caller(r))
	respond(w, res, err)
}

// captureVM begins to make an image of a machine's disk: it is waited for as any image is.
func (s *Server) captureVM(w http.ResponseWriter, r *http.Request) {
	var body wire.CaptureRequest
	if err := readJSON(w, r, &body); err != nil {
		badRequest(w, err)
		return
	}
	i, err := s.Agent.CaptureVM(r.Context(), r.PathValue("vm"), body, caller(r))
	if err != nil {
		writeError(w, err)
		return
	}
	writeJSON(w, http.StatusAccepted, i)
}

// withoutBody answers a request that does one thing to a machine.
func (s *Server) withoutBody(f func(context.Context, string, agent.Caller) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := f(r.Context(), r.PathValue("vm"), caller(r)); err != nil {
			writeError(w, err)
			return
		}
		vm, err := s.Agent.VM(r.Context(), r.PathValue("vm"))
		respond(w, vm, err)
	}
}

func (s *Server) getScreenshot(w http.ResponseWriter, r *http.Request) {
	picture, err := s.Agent.Screenshot(r.Context(), r.PathValue("vm"))
	if err != nil {
		writeError(w, err)
		return
	}
	w.Header().Set("Content-Type", "image/png")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("Content-Length", strconv.Itoa(len(picture)))
	_, _ = w.Write(picture) // a client that has gone is no error of ours
}

// maxLogTail is how much of a serial console's log is shown at once, in bytes.
const maxLogTail = 1 << 20

func (s *Server) getLog(w http.ResponseWriter, r *http.Request) {
	log, err := s.Agent.SerialLog(r.PathValue("vm"))
	if err != nil {
		writeError(w, err)
		return
	}
	defer log.Close()
	if end, err := log.Seek(0, io.SeekEnd); err == nil {
		_, _ = log.Seek(max(0, end-maxLogTail), io.SeekStart) // it could be sought just now
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = io.Copy(w, io.LimitReader(log, maxLogTail)) // a client that has gone is no error of ours
}
