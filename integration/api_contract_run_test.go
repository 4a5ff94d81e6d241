//go:build integration

package integration_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/qemutest"
	"github.com/trayd/trayd/internal/wire"
)

// notSeen is what of the description TestContract doesn't bring about, and why.
var notSeen = map[string]string{}

// TestContract: every answer of every route is what the description says, with nothing more
// and nothing missing: on real machines, images and tokens.
func TestContract(t *testing.T) {
	r := newRig(t)
	pool := filepath.Join(r.dir, "pool")
	require.NoError(t, os.Mkdir(pool, 0o755))
	r.extra = "[library]\nprivate_targets = [\"127.0.0.0/8\"]\n[[pool]]\nname = \"local\"\ntype = \"dir\"\npath = \"" + pool + "\"\n"
	at := r.secured("")
	vm, _ := r.running("vm1", qemutest.IDE.With("")...)
	r.start("")
	r.ready()

	c := described(r)
	c.sound()
	a := r.local()
	a.check = c
	contractOfHost(a)
	contractOfImages(r, a)
	contractOfDrives(r, a, vm.Guest(t))
	contractOfMachines(r, a)
	contractOfAccess(r, a, at)
	contractOfEvents(r, a)
	contractOfProblems(a)

	left := slices.DeleteFunc(c.unseen(), func(key string) bool { return notSeen[key] != "" })
	require.Empty(t, left, "answers that were not seen")
}

func contractOfHost(a *asker) {
	for _, path := range []string{"/healthz", "/readyz", "/metrics", "/v1/version", "/v1/status", "/v1/doctor", "/v1/vms", "/v1/vms/vm1", "/v1/vms/vm1/drives/-",
		"/v1/volumes", "/v1/images", "/v1/operations", "/v1/state", "/v1/state/check", "/v1/session", "/v1/tokens", "/v1/openapi.yaml"} {
		a.want(200, "GET", path, "")
	}
	a.want(200, "POST", "/v1/volumes/gc?dry_run=true", "")
	a.want(200, "POST", "/v1/volumes/gc", "")
}

func contractOfImages(r *rig, a *asker) {
	t := r.t
	disc, err := os.ReadFile(r.disc("DEBIAN"))
	require.NoError(t, err)
	large := append(bytes.Clone(disc), make([]byte, 8<<20)...)
	from := filepath.Join(r.dir, "www")
	require.NoError(t, os.Mkdir(from, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(from, "large.iso"), large, 0o644))
	web := newSource(t, from)
	const image = "/v1/pools/local/images/"
	a.want(201, "PUT", image+"disc", string(disc))
	a.problem(409, "image-exists", "PUT", image+"disc", string(disc))
	a.problem(422, "not-a-disc", "PUT", image+"other", "no disc")
	for _, verb := range []string{"pin", "unpin", "verify"} {
		a.want(200, "POST", image+"disc/"+verb, "")
	}
	a.problem(409, "image-not-ready", "POST", image+"disc/retry", "")
	a.problem(409, "image-not-ready", "POST", image+"disc/cancel", "")
	a.want(200, "GET", image+"disc/inspection", "")
	require.Equal(t, disc, a.want(200, "GET", image+"disc/content", "").body)
	require.Equal(t, disc[10:20], a.want(206, "GET", image+"disc/content", "", "Range: bytes=10-19").body)

	a.want(202, "POST", "/v1/images", `{"name":"announced","checksum":"sha256:`+strings.Repeat("0", 64)+`"}`)
	a.want(422, "PUT", "/v1/pools/-/images/announced?announced=true", string(disc))
	a.want(202, "POST", "/v1/images", fmt.Sprintf(`{"name":"coming","urls":[%q]}`, web.URL+"/slow/large.iso"))
	running := decoded[[]wire.OperationStatus](t, a.want(200, "GET", "/v1/operations?running=true", ""))
	require.Len(t, running, 1)
	require.Equal(t, "image:local/coming", running[0].Image)
	require.Eventually(t, func() bool {
		op := decoded[wire.OperationStatus](t, a.want(200, "GET", "/v1/operations/"+running[0].ID, ""))
		return op.Progress != nil && op.Progress.Bytes > 0
	}, 10*time.Second, 20*time.Millisecond)
	a.want(200, "GET", image+"coming", "")
	a.want(200, "GET", "/v1/images", "")
	a.want(200, "GET", "/v1/status", "")
	a.want(200, "POST", image+"coming/cancel", "")
	a.want(200, "GET", "/v1/operations/"+running[0].ID+"?wait=10s", "")
	a.want(200, "GET", image+"coming", "") // it has failed
	web.hurry()
	a.want(200, "POST", image+"coming/retry", "")
	ready := decoded[wire.Image](t, a.want(200, "GET", image+"coming?wait=30s", ""))
	require.Equal(t, wire.ImageReady, ready.State)
	a.want(202, "POST", "/v1/images", fmt.Sprintf(`{"name":"portal","urls":[%q]}`, web.URL+"/page/large.iso"))
	failed := decoded[wire.Image](t, a.want(200, "GET", image+"portal?wait=30s", ""))
	require.Equal(t, wire.ImageFailed, failed.State)
	require.NotNil(t, failed.Failure)
	a.want(200, "GET", "/v1/status", "")
	require.NotEmpty(t, decoded[[]wire.ImageRemoval](t, a.want(200, "POST", "/v1/images/gc?unused=1ns&dry_run=true", "")))
	a.want(204, "DELETE", image+"coming", "")
	a.want(200, "POST", "/v1/images/gc", "")
}

func contractOfDrives(r *rig, a *asker, g *qemutest.Guest) {
	t := r.t
	const drive = "/v1/vms/vm1/drives/cd0/"
	first, second := r.disc("FIRST"), r.disc("SECOND")
	a.want(200, "POST", drive+"insert", `{"medium":"image:disc"}`)
	a.problem(409, "drive-occupied", "POST", drive+"insert", fmt.Sprintf(`{"medium":%q}`, first))
	a.problem(409, "image-in-use", "DELETE", "/v1/pools/local/images/disc", "")
	a.want(200, "GET", "/v1/images", "") // with its user
	a.want(200, "POST", drive+"change", fmt.Sprintf(`{"medium":%q}`, first))
	for _, path := range []string{"/v1/vms", "/v1/vms/vm1", "/v1/vms/vm1/drives/cd0", "/v1/state", "/v1/state/check", "/v1/status", "/v1/operations"} {
		a.want(200, "GET", path, "")
	}
	finish := func(got answer) wire.OperationStatus {
		op := decoded[wire.OperationStatus](t, got)
		require.Equal(t, "/v1/operations/"+op.ID, got.header.Get("Location"))
		return decoded[wire.OperationStatus](t, a.want(200, "GET", "/v1/operations/"+op.ID+"?wait=20s", ""))
	}
	require.Equal(t, wire.Done, finish(a.want(202, "POST", drive+"change?async=true", fmt.Sprintf(`{"medium":%q}`, second))).Result)
	require.Equal(t, wire.Done, finish(a.want(202, "POST", drive+"eject?async=true", "")).Result)
	require.Equal(t, wire.Done, finish(a.want(202, "POST", drive+"insert?async=true", fmt.Sprintf(`{"medium":%q}`, first))).Result)
	a.want(200, "POST", drive+"eject", "")
	a.want(200, "POST", drive+"insert", fmt.Sprintf(`{"medium":%q}`, first))

	g.Volume()
	g.Lock()
	a.problem(423, "drive-locked", "POST", drive+"eject", `{"wait":"200ms"}`)
	a.problem(409, "nothing-to-cancel", "POST", drive+"cancel", "")
	a.problem(409, "nothing-to-cancel", "POST", drive+"force", "")
	waits := a.want(202, "POST", drive+"eject?async=true", `{"wait":"1m"}`)
	untilWaiting(a)
	for _, path := range []string{"/v1/vms/vm1", "/v1/status", "/v1/operations?running=true"} {
		a.want(200, "GET", path, "")
	}
	a.want(200, "POST", drive+"cancel", "")
	require.Equal(t, wire.Cancelled, finish(waits).Result)
	waits = a.want(202, "POST", drive+"eject?async=true", `{"wait":"1m"}`)
	untilWaiting(a)
	a.want(200, "POST", drive+"force", "")
	require.Equal(t, wire.Done, finish(waits).Result)

	a.want(204, "POST", "/v1/harvester/vm/vm1?action=insertCdRomVolume", `{"deviceName":"cd0","imageName":"default/disc"}`)
	a.want(204, "POST", "/v1/harvester/vm/default/vm1?action=insertCdRomVolume", `{"deviceName":"cd0","imageName":"disc"}`)
}

// untilWaiting waits until cd0 of vm1 waits for its guest.
func untilWaiting(a *asker) {
	a.t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		d := decoded[wire.DriveStatus](a.t, a.want(200, "GET", "/v1/vms/vm1/drives/cd0", ""))
		if d.Operation != nil && d.Operation.Phase == wire.Waiting {
			return
		}
		require.True(a.t, time.Now().Before(end), "%+v", d)
	}
}

func contractOfMachines(r *rig, a *asker) {
	t := r.t
	r.echoing("m1", "--disk", "1M") // made and started by trayctl
	for _, path := range []string{"/v1/vms", "/v1/vms/m1", "/v1/vms/m1/screenshot", "/v1/vms/m1/log", "/v1/status"} {
		a.want(200, "GET", path, "")
	}
	upgrade := []string{"Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="}
	a.want(101, "GET", "/v1/vms/m1/console", "", upgrade...)
	a.want(101, "GET", "/v1/vms/m1/serial", "", upgrade...)
	a.problem(426, "upgrade-required", "GET", "/v1/vms/m1/console", "")
	a.want(200, "POST", "/v1/vms/m1/reset", "")
	a.problem(409, "guest-runs-on", "POST", "/v1/vms/m1/stop", `{"wait":"200ms"}`)
	a.want(200, "POST", "/v1/vms/m1/stop", `{"wait":"200ms","then_force":true}`)
	a.want(200, "POST", "/v1/vms/m1/start", "")
	a.problem(409, "vm-running", "PATCH", "/v1/vms/m1", `{"memory":"32MiB"}`)
	a.problem(409, "vm-running", "DELETE", "/v1/vms/m1", "")
	a.want(200, "POST", "/v1/vms/m1/kill", "")
	a.want(200, "PATCH", "/v1/vms/m1", `{"memory":"32MiB"}`)
	finish := func(got answer) {
		id := decoded[wire.OperationStatus](t, got).ID
		op := decoded[wire.OperationStatus](t, a.want(200, "GET", "/v1/operations/"+id+"?wait=20s", ""))
		require.Equal(t, wire.Done, op.Result, "%+v", op)
	}
	finish(a.want(202, "POST", "/v1/vms/m1/start?async=true", ""))
	finish(a.want(202, "POST", "/v1/vms/m1/stop?async=true", `{"wait":"200ms","then_force":true}`))
	a.want(202, "POST", "/v1/vms/m1/capture", `{"name":"golden"}`)
	a.want(200, "GET", "/v1/pools/local/images/golden?wait=30s", "")
	a.want(204, "DELETE", "/v1/vms/m1", "")
	a.want(201, "POST", "/v1/vms", `{"definition":{"name":"m2","memory":"32MiB","disks":[{"size":"1MiB"}],"cdroms":[{"medium":"image:disc"}]}}`)
	a.problem(409, "vm-exists", "POST", "/v1/vms", `{"definition":{"name":"m2"}}`)
	a.want(200, "GET", "/v1/vms/m2", "")
	a.want(200, "GET", "/v1/vms", "")
	a.want(204, "DELETE", "/v1/vms/m2?force=true", "")
}

func contractOfAccess(r *rig, a *asker, at string) {
	t := r.t
	made := decoded[wire.NewToken](t, a.want(201, "POST", "/v1/tokens", `{"name":"ci","role":"change","expires":"1h"}`))
	a.want(201, "POST", "/v1/tokens", `{"name":"ever","role":"view","expires":"never"}`)
	a.problem(409, "token-exists", "POST", "/v1/tokens", `{"name":"ci","role":"view"}`)
	over := r.remote(at, "127.0.0.2", "", nil)
	over.check = a.check
	got := over.want(200, "POST", "/v1/session", fmt.Sprintf(`{"token":%q}`, made.Secret))
	cookie := "Cookie: " + strings.Split(got.header.Get("Set-Cookie"), ";")[0]
	over.want(200, "GET", "/v1/session", "", cookie)
	over.problem(403, "forbidden", "GET", "/v1/tokens", "", cookie)
	a.want(200, "GET", "/v1/tokens", "")
	over.want(204, "DELETE", "/v1/session", "", cookie)
	over.problem(401, "unauthenticated", "GET", "/v1/session", "", cookie)
	a.want(204, "DELETE", "/v1/tokens/ci", "")

	way := decoded[wire.UI](t, a.want(201, "POST", "/v1/ui", ""))
	a.problem(426, "upgrade-required", "GET", "/v1/ui/"+way.ID, "")
	a.want(101, "GET", "/v1/ui/"+way.ID, "", "Connection: Upgrade", "Upgrade: trayd-page")
	a.want(204, "DELETE", "/v1/ui/"+way.ID, "")
}

// contractOfEvents compares all events that there were.
func contractOfEvents(r *rig, a *asker) {
	t := r.t
	a.want(200, "GET", "/v1/events", "")
	req, err := http.NewRequestWithContext(t.Context(), "GET", a.base+"/v1/events?after=1", nil)
	require.NoError(t, err)
	resp, err := a.client.Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	stop := time.AfterFunc(time.Second, func() { resp.Body.Close() }) // by then it has all that was
	defer stop.Stop()
	schema := a.check.doc["components"].(object)["schemas"].(object)["Event"].(object)
	kinds := make(map[string]bool)
	for d := json.NewDecoder(dataOf{resp.Body}.reader()); ; {
		var raw json.RawMessage
		if d.Decode(&raw) != nil {
			break
		}
		a.check.valid("Event", schema, raw, string(raw))
		var e wire.Event
		require.NoError(t, json.Unmarshal(raw, &e))
		kinds[e.Type] = true
	}
	for _, kind := range []string{wire.EventImageStarted, wire.EventImageAdded, wire.EventImageVerified, wire.EventImageFailed, wire.EventVMStarting, wire.EventVMStarted, wire.EventVMStopping, wire.EventVMRunsOn, wire.EventLoaded, wire.EventWaiting} {
		require.True(t, kinds[kind], "no event %s among %v", kind, kinds)
	}
}

// contractOfProblems has every route refuse something: that it doesn't know, and a host's
// name that isn't trayd's.
func contractOfProblems(a *asker) {
	for _, r := range a.check.routes() {
		if path := parameter.ReplaceAllString(r.path, "nope"); path != r.path {
			got := a.ask(r.method, path, "")
			require.GreaterOrEqual(a.t, got.status, 400, "%s: %s", r, got.body)
			continue
		}
		got := a.ask(r.method, r.path, "{", "Sec-Fetch-Site: cross-site", "Connection: Upgrade", "Upgrade: x", "Origin: https://elsewhere.example")
		require.Equal(a.t, http.StatusForbidden, got.status, "%s: %s", r, got.body)
	}
}
