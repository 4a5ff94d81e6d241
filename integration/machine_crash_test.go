//go:build integration

package integration_test

import (
	"fmt"
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

// machineCrashes are the points at which trayd dies while something is done to a machine, and
// again while that is put in order. there says whether the machine is there at the end, runs
// whether it runs.
var machineCrashes = []struct {
	verb, point string
	recovery    []string
	there, runs bool
}{
	{verb: "create", point: "machine-filled"},
	{verb: "create", point: "machine-written"},
	{verb: "create-linked", point: "machine-filled"},
	{verb: "create-linked", point: "machine-written"},

	{verb: "start", point: "vm-prepared", there: true},
	{verb: "start", point: "vm-launched", there: true, runs: true},
	{verb: "start", point: "vm-launched", recovery: []string{"vm-loaded"}, there: true, runs: true},
	{verb: "start", point: "vm-launched", recovery: []string{"intent-written", "descriptor-passed", "vm-loaded"}, there: true, runs: true},
	{verb: "start", point: "vm-attached", recovery: []string{"outcome-written"}, there: true, runs: true},
	{verb: "start", point: "intent-written", recovery: []string{"vm-loaded"}, there: true, runs: true},
	{verb: "start", point: "descriptor-passed", there: true, runs: true},
	{verb: "start", point: "outcome-written", there: true, runs: true},
	{verb: "start", point: "vm-loaded", recovery: []string{"vm-loaded"}, there: true, runs: true},
	{verb: "start", point: "vm-continued", there: true, runs: true},

	{verb: "stop", point: "vm-asked-to-stop", there: true, runs: true}, // its guest ignores it
	{verb: "set", point: "machine-remade", there: true},
	{verb: "set", point: "machine-saved", there: true},
	{verb: "rm", point: "machine-taken"},

	{verb: "capture", point: "capture-registered", there: true},
	{verb: "capture", point: "capture-converted", there: true},
	{verb: "capture", point: "capture-placed", there: true},
}

// TestMachineKilledAtEveryStep kills trayd at each point at which a machine is made, started,
// changed, captured or removed, and kills what puts that in order as well: there is no half
// machine, no process, socket or file of nobody's, and what was to be done can be done then.
func TestMachineKilledAtEveryStep(t *testing.T) {
	for _, c := range machineCrashes {
		t.Run(c.verb+"/"+c.point, func(t *testing.T) {
			r := newRig(t)
			disc := r.disc("BOOT")
			r.start("")
			r.ready()
			made := []string{"vm", "create", "m", "--memory", "32M", "--iso", disc, "--disk", "1G", "--disk", "sata:1G", "--firmware", "uefi", "--network", "none"}
			verbs := map[string][]string{
				"create":        made,
				"create-linked": {"vm", "create", "m", "--memory", "32M", "--image", "image:golden", "--linked", "--ssh-key", writeKey(r)},
				"start":         {"vm", "start", "m"},
				"stop":          {"vm", "stop", "m", "--wait", "10s", "--then-force"},
				"set":           {"vm", "set", "m", "--remove-disk", "disk1", "--add-disk", "1G", "--resize-disk", "disk0=2G", "--memory", "48M"},
				"rm":            {"vm", "rm", "m"},
				"capture":       {"image", "capture", "m", "--name", "golden"},
			}
			if c.verb != "create" {
				r.must(made...)
			}
			if c.verb == "create-linked" {
				r.must("image", "capture", "m", "--name", "golden")
				r.must("vm", "rm", "m")
			}
			if c.verb == "stop" {
				r.must("vm", "start", "m")
			}
			r.whole()
			r.stop()

			r.start(c.point)
			r.ready()
			got := r.trayctl(verbs[c.verb]...)
			r.died()
			require.Contains(t, []int{3, 4}, got.code, "%s%s", got.stdout, got.stderr)
			for _, point := range c.recovery {
				t.Log("killed at", point)
				r.start(point)
				r.died()
			}
			r.start("")
			r.ready()
			if c.runs {
				r.untilVM("m", "running")
			}
			r.whole()
			v, there := r.vmStatus()["m"]
			require.Equal(t, c.there, there)
			if there {
				require.Equal(t, c.runs, v.State == "running", v.State)
			}
			if c.runs { // its disc is in, by one node of ours
				d := r.driveStatus("m/cd0")
				require.Equal(t, wire.StateLoaded, d.State)
				require.True(t, d.Medium.Ours)
				require.Equal(t, disc, d.Medium.Name)
			}
			if c.verb == "capture" || c.verb == "create-linked" {
				images := r.must("image", "ls")
				require.Equal(t, c.verb == "create-linked", slices.Contains(strings.Fields(images), "golden"), "%s", images)
			}

			verbs["set"] = []string{"vm", "set", "m", "--add-disk", "1G", "--resize-disk", "disk0=2G", "--memory", "48M"}
			if c.verb != "rm" {
				r.must(verbs[c.verb]...)
			}
			r.whole()
			if r.vmStatus()["m"].State == "running" {
				r.must("vm", "kill", "m")
				r.whole()
			}
			if c.verb != "rm" {
				r.must("vm", "rm", "m")
				r.whole()
			}
			require.Empty(t, r.qemus())
			left, err := os.ReadDir(r.machineDir())
			require.NoError(t, err)
			require.Empty(t, left)
		})
	}
}

// TestMachineWhoseQEMUDies: QEMU dies at some moment of its start, or before its first: the start
// says so, and there is nothing of it.
func TestMachineWhoseQEMUDies(t *testing.T) {
	for _, after := range []string{"0", "0.01", "0.03", "0.05", "0.07", "0.1", "0.15", "0.3"} {
		t.Run(after, func(t *testing.T) {
			r := newRig(t)
			r.qemu = filepath.Join(r.dir, "qemu")
			const dies = "#!/bin/sh\n(exec 3>&- 4>&- 5>&- 6>&- 7>&- 8>&-; sleep %s; kill -9 $$) >/dev/null 2>&1 &\nexec %s \"$@\"\n"
			require.NoError(t, os.WriteFile(r.qemu, fmt.Appendf(nil, dies, after, qemutest.Binary()), 0o755))
			disc := r.disc("BOOT")
			r.start("")
			r.ready()
			r.must("vm", "create", "m", "--memory", "32M", "--iso", disc, "--disk", "1G", "--network", "none")
			if got := r.trayctl("vm", "start", "m"); got.code != 0 { // else it died later
				require.Equal(t, 1, got.code)
				require.Contains(t, got.stderr, "VM m")
				require.Contains(t, got.stderr, "next: ")
			}
			require.Eventually(t, func() bool { return len(r.qemus()) == 0 }, 10*time.Second, 20*time.Millisecond)
			require.NoError(t, os.WriteFile(r.qemu, []byte("#!/bin/sh\nexec "+qemutest.Binary()+" \"$@\"\n"), 0o755))
			r.must("vm", "start", "m")
			r.whole()
			require.Equal(t, disc, r.driveStatus("m/cd0").Medium.Name)
			r.must("vm", "kill", "m")
			r.whole()
		})
	}
}

// TestMachineEndsWhileNobodyLooks: QEMU is killed while trayd is dead; the next trayd lets go
// of what it had, and starts it again.
func TestMachineEndsWhileNobodyLooks(t *testing.T) {
	r := newRig(t)
	disc := r.disc("BOOT")
	r.start("")
	r.ready()
	r.must("vm", "create", "m", "--memory", "32M", "--iso", disc, "--disk", "1G", "--start")
	r.kill()
	r.killMachines()
	r.start("")
	r.ready()
	r.whole()
	require.Equal(t, wire.VMStopped, r.vmStatus()["m"].State)
	r.must("vm", "start", "m")
	r.whole()

	// And trayd's death alone changes nothing.
	pid := r.qemus()["m"]
	r.kill()
	r.start("")
	r.ready()
	r.whole()
	require.Equal(t, pid, r.qemus()["m"])
	require.Equal(t, wire.StateLoaded, r.driveStatus("m/cd0").State)

	// QEMU killed under trayd.
	r.killMachines()
	r.untilVM("m", wire.VMFailed)
	require.Contains(t, r.showVM("m").Machine.Failure, "killed")
	r.must("vm", "start", "m")
	r.whole()
}
