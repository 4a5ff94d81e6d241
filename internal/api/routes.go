package api

import (
	"context"
	"net/http"

	"github.com/trayd/trayd/internal/access"
	"github.com/trayd/trayd/internal/agent"
	"github.com/trayd/trayd/internal/wire"
	"github.com/trayd/trayd/iso"
)

// route is one thing that can be asked for. What is beside the handler is the API's
// description (openapi.yaml), and is checked against what really happens by the tests.
type route struct {
	method, path string
	role         access.Role // at least; None is for everybody, without saying who they are
	handler      http.HandlerFunc
	id           string // of the operation, for generated clients
	summary      string
	body         any // of the request, an empty one; nil for none
	query        []query
	answers      []answer // but for problems
}

// limit is of a request's body, in bytes.
func (r *route) limit() int64 {
	switch r.body.(type) {
	case wire.ImageRequest:
		return maxImageRequest
	case wire.MachineRequest:
		return maxMachineBody
	}
	return maxBody
}

// query is a parameter of a route's query.
type query struct {
	name, kind string // kind is string, boolean or integer
	about      string
}

// answer is a success.
type answer struct {
	status int
	body   any // an empty one, or a contentType; nil for none
}

// contentType is of an answer that isn't JSON.
type contentType string

const (
	octets      = contentType("application/octet-stream")
	png         = contentType("image/png")
	eventStream = contentType("text/event-stream")
	yamlText    = contentType("application/yaml")
	plainText   = contentType("text/plain")
	html        = contentType("text/html")
)

// ok is an answer with a body.
func ok(body any) []answer { return []answer{{http.StatusOK, body}} }

// noContent is an answer without.
var noContent = []answer{{http.StatusNoContent, nil}}

// table is all that there is.
func (s *Server) table() []route {
	all := append(s.vmRoutes(), s.driveRoutes()...)
	all = append(all, s.imageRoutes()...)
	all = append(all, s.hostRoutes()...)
	all = append(all, s.accessRoutes()...)
	all = append(all, s.healthRoutes()...)
	return append(all, s.harvesterTable()...)
}

func (s *Server) vmRoutes() []route {
	const vm = "/v1/vms/{vm}"
	kill := func(ctx context.Context, vm string, by agent.Caller) error { return s.Agent.KillVM(ctx, vm, by) }
	reset := func(ctx context.Context, vm string, by agent.Caller) error { return s.Agent.ResetVM(ctx, vm, by) }
	return []route{
		{"GET", "/v1/vms", access.View, s.listVMs, "listVMs", "Every machine with its drives, as QEMU says now", nil, nil, ok([]wire.VMStatus{})},
		{"POST", "/v1/vms", access.Change, s.createVM, "createVM", "Make a machine; what isn't said has its default", wire.MachineRequest{}, nil, []answer{{http.StatusCreated, wire.MachineCreated{}}}},
		{"GET", vm, access.View, s.getVM, "getVM", "One machine", nil, nil, ok(wire.VMStatus{})},
		{"PATCH", vm, access.Change, s.changeVM, "changeVM", "Change a machine of trayd's own that is stopped", wire.MachineChange{}, nil, ok(wire.VMStatus{})},
		{"DELETE", vm, access.Change, s.removeVM, "removeVM", "Remove a machine of trayd's own that is stopped, with its disks", nil, []query{{"force", "boolean", "end it first"}}, noContent},
		{"POST", vm + "/start", access.Change, s.startVM, "startVM", "Start a machine of trayd's own; answers when its guest runs", nil, async, []answer{{http.StatusOK, wire.MachineStarted{}}, {http.StatusAccepted, wire.OperationStatus{}}}},
		{"POST", vm + "/stop", access.Change, s.stopVM, "stopVM", "Ask a machine's guest to power off; answers when the machine has ended", wire.StopRequest{}, async, []answer{{http.StatusOK, wire.StopResult{}}, {http.StatusAccepted, wire.OperationStatus{}}}},
		{"POST", vm + "/kill", access.Change, s.withoutBody(kill), "killVM", "End a machine at once, as a power failure does", nil, nil, ok(wire.VMStatus{})},
		{"POST", vm + "/reset", access.Change, s.withoutBody(reset), "resetVM", "Press a machine's reset button", nil, nil, ok(wire.VMStatus{})},
		{"POST", vm + "/capture", access.Change, s.captureVM, "captureVM", "Begin to make an image of a machine's disk; the image tells how it goes", wire.CaptureRequest{}, nil, []answer{{http.StatusAccepted, wire.Image{}}}},
		{"GET", vm + "/screenshot", access.View, s.getScreenshot, "getScreenshot", "A machine's screen", nil, nil, ok(png)},
		{"GET", vm + "/log", access.View, s.getLog, "getLog", "The last MiB of what a machine said on its serial console", nil, nil, ok(octets)},
		{"GET", vm + "/console", access.Change, s.console(vncConsole), "openConsole", "A WebSocket with a machine's screen (RFB)", nil, nil, upgraded},
		{"GET", vm + "/serial", access.Change, s.console(serialConsole), "openSerial", "A WebSocket with a machine's serial console", nil, nil, upgraded},
	}
}

// upgraded is the answer of what becomes another protocol.
var upgraded = []answer{{http.StatusSwitchingProtocols, nil}}

// async is of what may take long.
var async = []query{{"async", "boolean", "answer with the operation as soon as it has begun (202, Location)"}}

func (s *Server) driveRoutes() []route {
	const drive = "/v1/vms/{vm}/drives/{drive}"
	changed := []answer{{http.StatusOK, wire.OperationStatus{}}, {http.StatusAccepted, wire.OperationStatus{}}}
	return []route{
		{"GET", drive, access.View, s.getDrive, "getDrive", "One drive; `-` is the only drive of the machine", nil, nil, ok(wire.DriveStatus{})},
		{"POST", drive + "/insert", access.Change, s.change(agent.Insert), "insert", "Put a disc into an empty drive", wire.ChangeRequest{}, async, changed},
		{"POST", drive + "/change", access.Change, s.change(agent.Replace), "change", "Replace the disc; an empty medium ejects", wire.ChangeRequest{}, async, changed},
		{"POST", drive + "/eject", access.Change, s.change(agent.Eject), "eject", "Take the disc out", wire.ChangeRequest{}, async, changed},
		{"POST", drive + "/cancel", access.Change, s.cancel, "cancel", "Stop waiting for the guest or for a volume; the old disc stays in", nil, nil, ok(wire.OperationStatus{})},
		{"POST", drive + "/force", access.Change, s.force, "force", "Stop waiting for the guest, and take the disc", nil, nil, ok(wire.OperationStatus{})},
		{"GET", "/v1/operations", access.View, s.listOperations, "listOperations", "What is under way, and the last that was, the newest first", nil, []query{{"running", "boolean", "only what is under way"}}, ok([]wire.OperationStatus{})},
		{"GET", "/v1/operations/{id}", access.View, s.getOperation, "getOperation", "An operation", nil, []query{{"wait", "string", "answer when it has ended, or after this time (a Go duration, at most a minute)"}}, ok(wire.OperationStatus{})},
	}
}

func (s *Server) imageRoutes() []route {
	const image = "/v1/pools/{pool}/images/{image}"
	all := []route{
		{"GET", "/v1/images", access.View, s.listImages, "listImages", "The images of the library, with those on their way", nil, nil, ok([]wire.Image{})},
		{"POST", "/v1/images", access.Change, s.registerImage, "registerImage", "Begin a download, or announce an upload", wire.ImageRequest{}, nil, []answer{{http.StatusAccepted, wire.Image{}}}},
		{"POST", "/v1/images/gc", access.Change, s.collectImages, "collectImages", "Remove what failed downloads have left, and what isn't used", nil, []query{{"unused", "string", "also what no drive has had for so long (a Go duration)"}, dryRun}, ok([]wire.ImageRemoval{})},
		{"GET", image, access.View, s.getImage, "getImage", "One image; the pool `-` is the one that has it", nil, []query{{"wait", "string", "answer when nothing of it is under way, or after this time (a Go duration, at most a minute)"}}, ok(wire.Image{})},
		{"PUT", image, access.Change, s.uploadImage, "uploadImage", "Add the request's body as an image", octets, []query{{"announced", "boolean", "only if what was posted before is still known"}}, []answer{{http.StatusCreated, wire.Image{}}}},
		{"DELETE", image, access.Change, s.removeImage, "removeImage", "Remove an image that no drive uses", nil, nil, noContent},
		{"GET", image + "/inspection", access.View, s.inspectImage, "inspectImage", "What an image is", nil, nil, ok(iso.Report{})},
		{"GET", image + "/content", access.View, s.getContent, "getContent", "An image's bytes, or some of them (Range)", nil, nil, []answer{{http.StatusOK, octets}, {http.StatusPartialContent, octets}}},
	}
	for _, verb := range []struct{ name, about string }{
		{"cancel", "Give up a download"}, {"retry", "Go on with a download that failed"}, {"pin", "Never remove an image to make room"},
		{"unpin", "Undo pin"}, {"verify", "Read an image and compare it with its checksum"},
	} {
		all = append(all, route{"POST", image + "/" + verb.name, access.Change, s.changeImage(verb.name), verb.name + "Image", verb.about, nil, nil, ok(wire.Image{})})
	}
	return all
}

var dryRun = query{"dry_run", "boolean", "only list it"}

func (s *Server) hostRoutes() []route {
	return []route{
		{"GET", "/v1/version", access.View, s.getVersion, "getVersion", "Version and process of trayd", nil, nil, ok(wire.Version{})},
		{"GET", "/v1/status", access.View, s.getStatus, "getStatus", "The host on one screen, with what needs attention", nil, nil, ok(wire.Summary{})},
		{"GET", "/v1/doctor", access.View, s.examine, "examine", "What is wrong with this host, and what to do", nil, nil, ok([]wire.Check{})},
		{"GET", "/v1/events", access.View, s.events, "followEvents", "What happens, as server-sent events; Last-Event-ID begins behind that event", nil, []query{{"after", "integer", "as Last-Event-ID"}, {"vm", "string", "only events of this machine; may be there again"}, {"type", "string", "only events of this type; may be there again"}}, ok(eventStream)},
		{"GET", "/v1/volumes", access.View, s.listVolumes, "listVolumes", "The volumes that discs are on", nil, nil, ok([]wire.VolumeStatus{})},
		{"POST", "/v1/volumes/gc", access.Change, s.collectVolumes, "collectVolumes", "Release the volumes that carry trayd's mark and belong to nobody", nil, []query{dryRun}, ok([]wire.Collected{})},
		{"GET", "/v1/state", access.View, s.getState, "getState", "The records of the state file", nil, nil, ok([]agent.Record{})},
		{"GET", "/v1/state/check", access.View, s.checkState, "checkState", "The records against QEMU and the kernel", nil, nil, ok([]wire.Finding{})},
		{"GET", "/v1/openapi.yaml", access.None, getOpenAPI, "getOpenAPI", "This description", nil, nil, ok(yamlText)},
	}
}

func (s *Server) accessRoutes() []route {
	all := []route{
		{"GET", "/v1/session", access.View, s.getSession, "getSession", "Who the caller is, and their role", nil, nil, ok(wire.Session{})},
		{"POST", "/v1/session", access.None, s.beginSession, "beginSession", "Give a browser a cookie for a token", wire.SessionRequest{}, nil, ok(wire.Session{})},
		{"DELETE", "/v1/session", access.None, s.endSession, "endSession", "End a browser's session", nil, nil, noContent},
		{"POST", "/v1/ui", access.View, s.openUI, "openUI", "Make a way to the page for a browser", nil, nil, []answer{{http.StatusCreated, wire.UI{}}}},
		{"GET", "/v1/ui/{ui}", access.View, s.connectUI, "connectUI", "Become a browser's connection (Upgrade: trayd-page)", nil, nil, upgraded},
		{"DELETE", "/v1/ui/{ui}", access.View, s.closeUI, "closeUI", "End a way to the page, and its sessions", nil, nil, noContent},
	}
	if s.Access.Tokens != nil {
		all = append(all,
			route{"GET", "/v1/tokens", access.Admin, s.listTokens, "listTokens", "The tokens, without their secrets", nil, nil, ok([]wire.Token{})},
			route{"POST", "/v1/tokens", access.Admin, s.createToken, "createToken", "Make a token; its secret is shown once", wire.TokenRequest{}, nil, []answer{{http.StatusCreated, wire.NewToken{}}}},
			route{"DELETE", "/v1/tokens/{token}", access.Admin, s.revokeToken, "revokeToken", "Revoke a token by its id or name", nil, nil, noContent},
		)
	}
	if s.Page != nil {
		all = append(all,
			route{"GET", "/{$}", access.None, s.servePage, "", "", nil, nil, nil},
			route{"GET", "/page/", access.None, s.servePage, "", "", nil, nil, nil},
		)
	}
	return all
}
