//go:build edge

package integration_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/qemutest"
)

// TestVolumeScenarios is the oVirt design's own test plan, with real logical volumes:
// what the API says, what the state file says, whether the volume is active, what the
// guest sees. On every kind of drive.
func TestVolumeScenarios(t *testing.T) {
	r := newVolumeRig(t, "ONE", "TWO")
	r.start("")
	r.ready()
	for _, kind := range qemutest.Drives {
		t.Run(kind.Name, func(t *testing.T) {
			r.t = t
			vm, guest := r.machine(kind.Name, kind.With(r.discAt("ONE"))...)
			drive := kind.Name + "/" + kind.ID
			r.attached(kind.Name)
			if kind.HasDisc {
				r.must("eject", drive)
			}
			r.holds(drive, "", guest)
			r.active()

			t.Log("load a CD")
			r.must("insert", drive, r.lv("ONE"))
			r.holds(drive, "ONE", guest)
			r.active("ONE")
			require.Contains(t, tool(t, "lvs", "--noheadings", "--options", "lv_active", r.path("ONE")), "active")

			t.Log("eject it")
			r.must("eject", drive)
			r.holds(drive, "", guest)
			r.active()

			t.Log("load it again, and change it")
			r.must("change", drive, r.lv("ONE"))
			r.holds(drive, "ONE", guest)
			r.must("change", drive, r.lv("TWO"))
			r.holds(drive, "TWO", guest)
			r.active("TWO")

			t.Log("change it for the very same volume: nothing moves")
			node := r.driveStatus(drive).Medium.Node
			require.Contains(t, r.must("-o", "json", "change", drive, r.lv("TWO")), "already")
			require.Equal(t, node, r.driveStatus(drive).Medium.Node)
			r.active("TWO")

			t.Log("for a plain file and back: no volume is needed meanwhile")
			r.must("change", drive, r.discAt("ONE"))
			r.shows(drive, r.discAt("ONE"), "ONE", guest)
			r.active()
			r.must("change", drive, r.lv("ONE"))
			r.active("ONE")
			r.must("eject", drive)
			r.holds(drive, "", guest)
			r.active()
			r.ok()
			vm.Kill()
		})
	}
}

// attached waits until trayd knows a machine.
func (r *volumeRig) attached(vm string) {
	r.t.Helper()
	require.Eventually(r.t, func() bool { return r.trayctl("drives", vm).code == 0 }, soon, poll, "the machine isn't found")
}

// TestSharedVolume: two machines, one of which has two drives, share volumes. A volume
// is active exactly while somebody uses it.
func TestSharedVolume(t *testing.T) {
	r := newVolumeRig(t, "ONE", "TWO")
	_, guest1 := r.machine("vm1", twoDrives...)
	vm2, guest2 := r.machine("vm2", qemutest.SATA.With("")...)
	r.start("")
	r.ready()

	t.Log("two machines")
	r.must("insert", "vm1/cd0", r.lv("ONE"))
	r.must("insert", "vm2", r.lv("ONE"))
	r.holds("vm1/cd0", "ONE", guest1)
	r.holds("vm2/cd0", "ONE", guest2)
	r.active("ONE")
	r.must("eject", "vm1/cd0")
	r.holds("vm1/cd0", "", guest1)
	r.holds("vm2/cd0", "ONE", guest2)
	r.active("ONE")
	r.must("change", "vm2", r.lv("TWO"))
	r.holds("vm2/cd0", "TWO", guest2)
	r.active("TWO")
	r.must("eject", "vm2")
	r.active()

	t.Log("twice in one machine")
	r.must("insert", "vm1/cd0", r.lv("ONE"))
	r.must("insert", "vm1/cd1", r.lv("ONE"))
	r.holds("vm1/cd0", "ONE", guest1)
	r.holds("vm1/cd1", "ONE", nil)
	require.NotEqual(t, r.driveStatus("vm1/cd0").Medium.Node, r.driveStatus("vm1/cd1").Medium.Node)
	r.active("ONE")
	r.must("eject", "vm1/cd0")
	r.holds("vm1/cd1", "ONE", nil)
	r.active("ONE")
	r.must("change", "vm1/cd0", r.lv("TWO"))
	r.must("change", "vm1/cd0", r.lv("ONE"))
	r.holds("vm1/cd0", "ONE", guest1)
	r.active("ONE")
	r.must("eject", "vm1/cd1")
	r.holds("vm1/cd0", "ONE", guest1)
	r.active("ONE")

	t.Log("a machine that ends lets go; the other goes on")
	r.must("insert", "vm2", r.lv("ONE"))
	r.must("insert", "vm1/cd1", r.lv("TWO"))
	r.active("ONE", "TWO")
	vm2.Kill()
	require.Eventually(t, func() bool { return len(r.records()) == 2 }, soon, poll, "records of a machine that is no more")
	r.active("ONE", "TWO")
	r.holds("vm1/cd0", "ONE", guest1)
	r.ok()
	r.must("eject", "vm1/cd0")
	r.must("eject", "vm1/cd1")
	r.active()
}

// TestOthersVolume: a volume that somebody else has activated is used, and left active.
func TestOthersVolume(t *testing.T) {
	r := newVolumeRig(t, "ONE")
	_, guest := r.machine("vm", qemutest.SATA.With("")...)
	r.start("")
	r.ready()
	tool(t, "lvchange", "--activate", "y", r.path("ONE"))
	r.must("insert", "vm", r.lv("ONE"))
	r.holds("vm/cd0", "ONE", guest)
	require.Contains(t, r.must("volumes"), "not by trayd")
	r.must("eject", "vm")
	r.holds("vm/cd0", "", guest)
	r.active("ONE")
	r.ok()
	tool(t, "lvchange", "--activate", "n", r.path("ONE"))
}

// TestRenamedVolume: a volume that is renamed while its disc is in stays that disc, for the
// trayd after this one, too, and goes off with it; what has its name by then is left alone.
func TestRenamedVolume(t *testing.T) {
	r := newVolumeRigNamed(t, "renamed-", "ONE", "TWO")
	_, guest1 := r.machine("vm1", qemutest.SATA.With("")...)
	_, guest2 := r.machine("vm2", qemutest.SATA.With("")...)
	r.start("")
	r.ready()
	r.must("insert", "vm1", r.lv("ONE"))
	require.Contains(t, r.must("change", "vm1", r.lv("ONE")), "already")
	tool(t, "lvrename", r.path("ONE"), r.path("AWAY"))
	tool(t, "lvrename", r.path("TWO"), r.path("ONE"))
	tool(t, "lvchange", "--activate", "y", r.path("ONE"))
	for range 2 {
		r.holds("vm1/cd0", "ONE", guest1)
		require.Contains(t, r.fails(1, "insert", "vm2", r.lv("ONE")).Detail, "it was renamed to "+r.path("AWAY"))
		require.Contains(t, r.fails(1, "change", "vm1", r.lv("ONE")).Detail, "was renamed to "+r.path("AWAY")+", and that is in")
		r.holds("vm2/cd0", "", guest2)
		r.active("AWAY", "ONE")
		r.kill()
		r.start("")
		r.up()
	}
	r.must("eject", "vm1")
	r.holds("vm1/cd0", "", guest1)
	r.active("ONE")
	r.must("insert", "vm2", r.lv("ONE"))
	require.Equal(t, "TWO", guest2.Volume())
	r.must("eject", "vm2")
	r.active("ONE")
	r.ok()
	tool(t, "lvchange", "--activate", "n", r.path("ONE"))
	tool(t, "lvrename", r.path("ONE"), r.path("TWO"))
	tool(t, "lvrename", r.path("AWAY"), r.path("ONE"))
}
