package api

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"github.com/trayd/trayd/internal/agent"
	"github.com/trayd/trayd/internal/wire"
)

// statuses maps the agent's codes to HTTP. A code that isn't here is a 500.
var statuses = map[agent.Code]int{
	agent.NoSuchVM:       http.StatusNotFound,
	agent.NoSuchDrive:    http.StatusNotFound,
	agent.NoSuchMedium:   http.StatusNotFound,
	agent.NoSuchPool:     http.StatusNotFound,
	agent.NoSuchGroup:    http.StatusNotFound,
	agent.NoSuchVolume:   http.StatusNotFound,
	agent.GroupPartial:   http.StatusConflict,
	agent.GroupExported:  http.StatusConflict,
	agent.VolumeSnapshot: http.StatusUnprocessableEntity,
	agent.VolumeThin:     http.StatusUnprocessableEntity,
	agent.ImageExists:    http.StatusConflict,
	agent.ImageInUse:     http.StatusConflict,
	agent.NoSpace:        http.StatusInsufficientStorage,
	agent.OverQuota:      http.StatusInsufficientStorage,
	agent.PoolFailed:     http.StatusInternalServerError,
	agent.ImageNotReady:  http.StatusConflict,
	agent.ImageDamaged:   http.StatusUnprocessableEntity,
	agent.ImageUnsigned:  http.StatusForbidden,
	agent.ImageCutOff:    http.StatusConflict,
	agent.AmbiguousDrive: http.StatusBadRequest,
	agent.BadRequest:     http.StatusBadRequest,
	agent.Forbidden:      http.StatusForbidden,
	agent.OutsideRoots:   http.StatusForbidden,
	agent.Unreadable:     http.StatusUnprocessableEntity,
	agent.NotADisc:       http.StatusUnprocessableEntity,
	agent.NotADisk:       http.StatusUnprocessableEntity,
	agent.DiskRefused:    http.StatusUnprocessableEntity,
	agent.Truncated:      http.StatusUnprocessableEntity,
	agent.DriveFixed:     http.StatusConflict,
	agent.DriveOccupied:  http.StatusConflict,
	agent.DriveEmpty:     http.StatusConflict,
	agent.DriveBusy:      http.StatusConflict,
	agent.NothingToStop:  http.StatusConflict,
	agent.CancelledCode:  http.StatusConflict,
	agent.OvertakenCode:  http.StatusConflict,
	agent.MachineEnded:   http.StatusConflict,
	agent.DriveLocked:    http.StatusLocked,
	agent.QEMURefused:    http.StatusBadGateway,
	agent.Incomplete:     http.StatusInternalServerError,
	agent.Unreachable:    http.StatusServiceUnavailable,
	agent.Stopping:       http.StatusServiceUnavailable,
	agent.StateRefused:   http.StatusInsufficientStorage,
	agent.Unknown:        http.StatusGatewayTimeout,
	agent.VMExists:       http.StatusConflict,
	agent.VMRunning:      http.StatusConflict,
	agent.VMNotRunning:   http.StatusConflict,
	agent.VMBusy:         http.StatusConflict,
	agent.VMForeign:      http.StatusConflict,
	agent.VMInvalid:      http.StatusUnprocessableEntity,
	agent.StartFailed:    http.StatusBadGateway,
	agent.GuestRunsOn:    http.StatusConflict,
	agent.HostLacks:      http.StatusServiceUnavailable,
	agent.NoScreen:       http.StatusConflict,
	agent.ConsoleTaken:   http.StatusConflict,
	agent.ManyConsoles:   http.StatusServiceUnavailable,
}

func writeError(w http.ResponseWriter, err error) {
	p := &wire.Problem{Status: http.StatusInternalServerError, Code: "internal", Detail: err.Error()}
	var e *agent.Error
	if errors.As(err, &e) {
		p.Code, p.Detail, p.Next = string(e.Code), e.Detail, e.Next
		p.VM, p.Drive, p.Operation = e.VM, e.Drive, e.Operation
		switch s, ok := statuses[e.Code]; {
		case ok:
			p.Status = s
		case strings.HasPrefix(p.Code, wire.SourceCode):
			p.Status = http.StatusBadGateway
		case strings.HasPrefix(p.Code, wire.VerifyCode):
			p.Status = http.StatusUnprocessableEntity
		}
	}
	writeProblem(w, p)
}

func writeProblem(w http.ResponseWriter, p *wire.Problem) {
	p.Type = wire.ProblemPrefix + p.Code
	if p.Title == "" {
		p.Title = strings.ReplaceAll(p.Code, "-", " ")
	}
	b, err := json.Marshal(p)
	if err != nil {
		http.Error(w, p.Detail, p.Status)
		return
	}
	send(w, "application/problem+json", p.Status, b)
}
