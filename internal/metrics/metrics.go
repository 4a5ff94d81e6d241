package metrics

import (
	"net/http"
	"strconv"
	"time"
)

// Facts are the host as it is known when somebody looks.
type Facts struct {
	Drives, VMs          map[string]int // by state
	Monitors             int            // that trayd holds
	Images               map[string]int // by state
	ImageBytes, PoolFree map[string]int64
	Downloads            int
	DownloadBytes        uint64
	VolumesActive        int
	VolumesWaiting       int
	StateWrites          uint64
	StateRefused         uint64
	StateFailed          bool // the state file refuses changes
	StateBounds          []time.Duration
	StateWithin          []uint64
	StateSum             time.Duration
	Events               map[string]uint64 // by type
	Subscribers          int
	Hooks, Webhooks      map[string]uint64 // by result
	WebhooksWaiting      int
}

// Metrics counts what it is told, and adds what is known at the moment. Its methods are safe
// for concurrent use, and return at once.
type Metrics struct {
	version string
	look    func() Facts

	operations, requests, downloads vec
	durations, answers              histograms
}

// New returns metrics without counts. look has to return within a second.
func New(version string, look func() Facts) *Metrics {
	const ms = time.Millisecond
	return &Metrics{
		version: version, look: look,
		durations: histograms{bounds: []time.Duration{5 * ms, 10 * ms, 25 * ms, 50 * ms, 100 * ms, 250 * ms, time.Second, 2500 * ms, 10 * time.Second, 30 * time.Second, time.Minute, 10 * time.Minute, time.Hour}},
		answers:   histograms{bounds: []time.Duration{ms / 4, ms, 2500 * time.Microsecond, 5 * ms, 10 * ms, 25 * ms, 100 * ms, 500 * ms, 2500 * ms, 10 * time.Second}},
	}
}

// other is what a label says of what it has no word for.
const other = "other"

// kinds are the verbs of changes, as the audit log has them, by the kind of operation that
// they are counted as.
func kind(verb string) string {
	switch verb {
	case "insert", "change", "eject", "cancel", "force", "guest-eject", "settle", "roll-back", "put-right",
		"create", "set", "rm", "start", "stop", "kill", "reset", "console", "capture", "reload":
		return verb
	case "sign in", "open page", "ask":
		return "access"
	case "create token", "revoke token":
		return "token"
	case "set autostart":
		return "set"
	case "register image", "add image", "remove image", "download image", "capture image", "cancel image", "retry image", "pin image", "unpin image", "verify image":
		return "image-" + verb[:len(verb)-len(" image")]
	case "gc image", "gc images":
		return "image-gc"
	case "gc volume", "gc volumes":
		return "volume-gc"
	}
	return other
}

// The results of operations.
const (
	done       = "done"
	failed     = "failed"
	cancelled  = "cancelled"  // on request
	incomplete = "incomplete" // done, and something is still to be cleaned up
	unknown    = "unknown"    // QEMU did not say
)

// Change counts a change that has ended, as the audit log has it. What has only begun, a
// console's opening, doesn't count.
func (m *Metrics) Change(verb, outcome, code string, took time.Duration) {
	if outcome == "opened" {
		return
	}
	result := done
	switch code {
	case "":
	case "incomplete":
		result = incomplete
	case "outcome-unknown":
		result = unknown
	case "cancelled":
		result = cancelled
	default:
		result = failed
	}
	if verb == "download image" {
		m.downloads.inc(result)
	}
	m.operations.inc(kind(verb), result)
	m.durations.add(kind(verb), took)
}

// Request counts an answered request. route is the pattern that it matched, which is one of a
// fixed number; "" for none.
func (m *Metrics) Request(route, method string, status int, took time.Duration) {
	if route == "" {
		route = other
	}
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
	default:
		method = other
	}
	code := other
	if status >= 100 && status < 600 {
		code = strconv.Itoa(status/100) + "xx"
	}
	m.requests.inc(route, method, code)
	m.answers.add(route, took)
}

// ServeHTTP answers with all metrics.
func (m *Metrics) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	b := m.Text()
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	_, _ = w.Write(b) // a client that has gone is no error of ours
}

// Text is all metrics.
func (m *Metrics) Text() []byte {
	t, f := &text{}, m.look()
	m.operations.write(t, "trayd_operations_total", "Changes that have ended, by kind and result (done, failed, incomplete, cancelled, unknown).", "kind", "result")
	m.durations.write(t, "trayd_operation_duration_seconds", "How long changes took, waiting for guests included.", "kind")
	writeMachines(t, &f)
	m.writeLibrary(t, &f)
	writeState(t, &f)
	m.requests.write(t, "trayd_api_requests_total", "Answered requests, by route, method and class of status.", "route", "method", "code")
	m.answers.write(t, "trayd_api_request_duration_seconds", "How long requests took; streams and waits until their end.", "route")
	writeOutlets(t, &f)
	t.family("trayd_build_info", gauge, "1, with the version of trayd.")
	t.sample("trayd_build_info", 1, "version", m.version)
	writeProcess(t)
	return t.Bytes()
}

func writeMachines(t *text, f *Facts) {
	byLabel(t, "trayd_drives", gauge, "CD drives, by state as QEMU showed it the last time.", "state", f.Drives)
	byLabel(t, "trayd_vms", gauge, "Machines: attached, unreachable, or trayd's own and stopped.", "state", f.VMs)
	t.one("trayd_monitors_up", gauge, "Monitors of QEMU that trayd is connected to.", float64(f.Monitors))
	byLabel(t, "trayd_volumes", gauge, "Volumes of discs: active for a drive, or waiting for their release.", "state",
		map[string]int{"active": f.VolumesActive, "waiting": f.VolumesWaiting})
}

func (m *Metrics) writeLibrary(t *text, f *Facts) {
	byLabel(t, "trayd_images", gauge, "Images of the library, by state.", "state", f.Images)
	byLabel(t, "trayd_image_bytes", gauge, "Bytes of a pool's images, each content once.", "pool", f.ImageBytes)
	byLabel(t, "trayd_pool_free_bytes", gauge, "Bytes that the file system of a pool's directory has left.", "pool", f.PoolFree)
	t.one("trayd_downloads_active", gauge, "Images whose bytes are coming.", float64(f.Downloads))
	t.one("trayd_download_bytes_total", counter, "Bytes of images that were downloaded.", float64(f.DownloadBytes))
	m.downloads.write(t, "trayd_downloads_total", "Downloads that have ended, by result.", "result")
}

func writeState(t *text, f *Facts) {
	t.one("trayd_state_writes_total", counter, "Durable writes of the state file; one may hold several changes.", float64(f.StateWrites))
	t.family("trayd_state_write_duration_seconds", histogram, "How long writes of the state file took, with their fdatasync.")
	t.histogram("trayd_state_write_duration_seconds", f.StateBounds, &buckets{within: f.StateWithin, sum: f.StateSum})
	t.one("trayd_state_write_failures_total", counter, "Changes that the state file could not take.", float64(f.StateRefused))
	bad := 0.0
	if f.StateFailed {
		bad = 1
	}
	t.one("trayd_state_refuses_writes", gauge, "1 when the state file takes no more changes until trayd is started anew.", bad)
}

func writeOutlets(t *text, f *Facts) {
	byLabel(t, "trayd_events_total", counter, "Events, by type.", "type", f.Events)
	t.one("trayd_event_subscribers", gauge, "Who follows the events now, parts of trayd included.", float64(f.Subscribers))
	byLabel(t, "trayd_hooks_total", counter, "Runs of hooks, and events dropped before one, by result.", "result", f.Hooks)
	byLabel(t, "trayd_webhook_deliveries_total", counter, "Events for webhooks and tries that are made again, by result.", "result", f.Webhooks)
	t.one("trayd_webhook_queue", gauge, "Events that wait for webhooks.", float64(f.WebhooksWaiting))
}
