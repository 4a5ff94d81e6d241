package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/trayd/trayd/internal/access"
	"github.com/trayd/trayd/internal/agent"
	"github.com/trayd/trayd/internal/wire"
)

// The actions of a machine that Harvester's API has for its CD drives (its enhancement "CD-ROM
// Hotplug Volumes"), so that what drives Harvester drives trayd unchanged.
const (
	insertCDROMVolume = "insertCdRomVolume"
	ejectCDROMVolume  = "ejectCdRomVolume"
	ejectCDROM        = "ejectCdRom" // removed there; it detached the drive
)

// harvesterAction is the body of those actions.
type harvesterAction struct {
	// DeviceName is the drive.
	DeviceName string `json:"deviceName"`
	// ImageName is the image, with or without a namespace: `default/image-pvvwf`.
	ImageName string `json:"imageName,omitempty"`
}

// harvesterRoutes is where its API begins.
const harvesterRoutes = "/v1/harvester/"

func (s *Server) harvesterTable() []route {
	action := []query{{"action", "string", insertCDROMVolume + " or " + ejectCDROMVolume}}
	const about = "Harvester's actions on a machine's CD drives"
	return []route{
		{"POST", harvesterRoutes + "vm/{vm}", access.Change, s.harvester, "harvesterAction", about, harvesterAction{}, action, noContent},
		{"POST", harvesterRoutes + "vm/{namespace}/{vm}", access.Change, s.harvester, "harvesterNamespacedAction", about + "; the namespace isn't looked at", harvesterAction{}, action, noContent},
	}
}

// harvester carries out an action. The statuses of what is wrong are those of Harvester's API:
// 404 for a machine, drive or image that isn't there, 405 for an action that isn't, 422 for a
// body that is wrong; and 409 where the drive's state is in the way.
func (s *Server) harvester(w http.ResponseWriter, r *http.Request) {
	name := r.URL.Query().Get("action")
	var body harvesterAction
	switch name {
	case insertCDROMVolume, ejectCDROMVolume:
	case ejectCDROM:
		writeProblem(w, &wire.Problem{Code: "invalid-action", Status: http.StatusMethodNotAllowed, VM: r.PathValue("vm"),
			Detail: "ejectCdRom, which detached the whole drive and restarted the machine, has been removed",
			Next:   fmt.Sprintf(`take the disc out and leave the drive: ?action=%s with {"deviceName": "..."}`, ejectCDROMVolume)})
		return
	default:
		writeProblem(w, &wire.Problem{Code: "invalid-action", Status: http.StatusMethodNotAllowed, VM: r.PathValue("vm"),
			Detail: fmt.Sprintf("there is no action %q", name),
			Next:   fmt.Sprintf("use ?action=%s or ?action=%s; drives themselves are not added to or taken from a running machine: `trayctl vm set` does that to one that is stopped", insertCDROMVolume, ejectCDROMVolume)})
		return
	}
	if p := readHarvester(w, r, name, &body); p != nil {
		writeProblem(w, p)
		return
	}
	o, err := s.harvesterStart(r, name, body)
	if err != nil {
		writeError(w, err)
		return
	}
	p, err := o.Wait(r.Context())
	switch {
	case err != nil: // the client has gone; the operation goes on
	case p.Err != nil:
		writeError(w, p.Err)
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}

// readHarvester reads an action's body. As there, members that nobody knows are left alone.
func readHarvester(w http.ResponseWriter, r *http.Request, name string, body *harvesterAction) *wire.Problem {
	b, err := readBody(w, r, maxBody)
	if err == nil {
		err = json.Unmarshal(b, body)
	}
	next := `send {"deviceName": "cd0"}`
	if name == insertCDROMVolume {
		next = `send {"deviceName": "cd0", "imageName": "default/debian"}`
	}
	switch {
	case err != nil:
		err = fmt.Errorf("the body can't be read: %w", err)
	case body.DeviceName == "":
		err = errors.New("deviceName is missing")
	case name == insertCDROMVolume && body.ImageName == "":
		err = errors.New("imageName is missing")
	default:
		return nil
	}
	return &wire.Problem{Code: "invalid-body-content", Status: http.StatusUnprocessableEntity, VM: r.PathValue("vm"), Detail: name + ": " + err.Error(), Next: next}
}

func (s *Server) harvesterStart(r *http.Request, name string, body harvesterAction) (*agent.Operation, error) {
	req := agent.Request{VM: r.PathValue("vm"), Drive: body.DeviceName, Verb: agent.Eject, By: caller(r)}
	if name == insertCDROMVolume {
		req.Verb, req.Medium = agent.Insert, s.harvesterImage(body.ImageName)
		return s.Agent.Start(req)
	}
	// To eject from an empty drive is an error there, and a success that moves nothing here.
	d, err := s.Agent.Drive(r.Context(), req.VM, req.Drive)
	if err == nil && d.State == agent.StateEmpty {
		err = &agent.Error{Code: agent.DriveEmpty, VM: req.VM, Drive: d.Name, Detail: fmt.Sprintf("drive %s/%s is empty", req.VM, d.Name), Next: "there is nothing to eject"}
	}
	if err != nil {
		return nil, err
	}
	return s.Agent.Start(req)
}

// harvesterImage is what an image is called here: its namespace is a pool's name, if there is
// a pool of that name with the image, and means nothing else.
func (s *Server) harvesterImage(name string) string {
	if namespace, rest, ok := strings.Cut(name, "/"); ok {
		if _, err := s.Agent.Image(namespace, rest); err != nil {
			return "image:" + rest
		}
	}
	return "image:" + name
}
