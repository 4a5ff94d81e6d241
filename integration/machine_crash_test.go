//go:build integration

package integration_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

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
