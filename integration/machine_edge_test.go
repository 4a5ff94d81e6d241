//go:build edge

package integration_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/qemutest"
	"github.com/trayd/trayd/internal/wire"
)

// unitRig is an edge host on which machines are units, and whose discs are on volumes.
func unitRig(t *testing.T, discs ...string) *volumeRig {
	t.Setenv("TMPDIR", "/srv") // a unit's /tmp is its own
	r := newVolumeRig(t, discs...)
	require.NoError(t, os.Chmod(r.dir, 0o755))
	const images = "/var/lib/trayd/images" // a volume group takes no disk images
	r.units, r.extra = true, r.lvPool()+"[[pool]]\nname = \"images\"\ntype = \"dir\"\npath = \""+images+"\"\n"
	require.NoError(t, os.MkdirAll(images, 0o755))
	require.NoError(t, os.MkdirAll("/etc/trayd", 0o755))
	// A guest without an operating system ignores the power button.
	const dropIn = "/run/systemd/system/trayd-vm@.service.d/fast.conf"
	require.NoError(t, os.MkdirAll(filepath.Dir(dropIn), 0o755))
	require.NoError(t, os.WriteFile(dropIn, []byte("[Service]\nTimeoutStopSec=2\n"), 0o644))
	tool(t, "systemctl", "daemon-reload")
	t.Cleanup(func() {
		r.kill()
		r.killMachines()
		require.NoError(t, os.Remove(dropIn))
		require.NoError(t, os.Remove("/etc/trayd/trayd.toml"))
		require.NoError(t, os.RemoveAll("/var/lib/trayd/machines"))
		require.NoError(t, os.RemoveAll(images))
		require.NoError(t, os.RemoveAll("/var/lib/trayd/state.journal"))
		tool(t, "systemctl", "daemon-reload")
		if t.Failed() {
			t.Log(tool(t, "journalctl", "--no-pager", "-o", "cat", "-n", "100"))
		}
	})
	return r
}

func unitState(t *testing.T, name string) string {
	return tool(t, "systemctl", "show", "--value", "--property=ActiveState", "trayd-vm@"+name+".service")
}

// TestUnitRunsMachines: the installed trayd, as its unit has it, runs machines as units of
// their own, whose discs' volumes are active for exactly as long.
func TestUnitRunsMachines(t *testing.T) {
	r := unitRig(t, "ONE", "TWO")
	require.NoError(t, os.Symlink("/run/trayd/api.sock", r.socket()))
	tools := filepath.Join(r.dir, "tools") // what they were run with
	require.NoError(t, os.WriteFile(filepath.Join(r.dir, "qemu-img"), []byte("#!/bin/sh\ngrep CapEff /proc/self/status >>/var/lib/trayd/tools\nexec "+qemutest.Image()+" \"$@\"\n"), 0o755))
	r.qemuImg = filepath.Join(r.dir, "qemu-img")
	r.configure("/etc/trayd/trayd.toml", "/var/lib/trayd")
	t.Cleanup(func() { tool(t, "systemctl", "stop", "trayd.socket", "trayd.service") })
	tool(t, "systemctl", "start", "trayd.socket")
	r.up()

	r.must("vm", "create", "web-1", "--memory", "32M", "--cdrom", r.lv("ONE"), "--disk", "64M", "--network", "none", "--start")
	tool(t, "mv", "/var/lib/trayd/tools", tools)
	require.NotContains(t, strings.ReplaceAll(tool(t, "cat", tools), "CapEff:\t0000000000000000", ""), "CapEff", "what reads a guest's disk has no capability")
	r.whole()
	require.Equal(t, "active", unitState(t, "web-1"))
	r.active("ONE")
	v := r.showVM("web-1")
	require.Equal(t, "trayd-vm@web-1.service", v.Machine.Unit)
	require.Equal(t, tool(t, "systemctl", "show", "--value", "--property=MainPID", "trayd-vm@web-1"), strconv.Itoa(v.PID))
	require.NotEqual(t, "0", strings.Fields(tool(t, "grep", "^Uid:", "/proc/"+strconv.Itoa(v.PID)+"/status"))[1], "a user of its own")
	r.must("vm", "screenshot", "web-1", "-o", filepath.Join(r.dir, "s.png"))

	t.Log("trayd stopped, killed, started anew: the machine doesn't notice")
	tool(t, "systemctl", "restart", "trayd.service")
	r.up()
	tool(t, "systemctl", "kill", "--signal=KILL", "trayd.service")
	require.Eventually(t, func() bool { return r.trayctl("vms").code == 0 }, soon, poll)
	r.whole()
	require.Equal(t, v.PID, r.showVM("web-1").PID)
	r.active("ONE")
	r.must("change", "web-1", r.lv("TWO"))
	r.active("TWO")
	require.Equal(t, r.lv("TWO"), r.showVM("web-1").Machine.Definition.CDROMs[0].Medium, "it is in at the next start, too")

	t.Log("ended: nothing of it is left")
	r.must("vm", "kill", "web-1")
	r.whole()
	require.Contains(t, []string{"inactive", "failed"}, unitState(t, "web-1"))
	require.Eventually(t, func() bool { return len(r.groupActive()) == 0 }, soon, poll)

	r.must("image", "capture", "web-1", "--name", "golden", "--pool", "images")
	tool(t, "mv", "/var/lib/trayd/tools", tools)
	require.NotContains(t, strings.ReplaceAll(tool(t, "cat", tools), "CapEff:\t0000000000000000", ""), "CapEff")
	r.must("image", "rm", "golden")

	t.Log("systemctl does what trayctl does")
	tool(t, "systemctl", "start", "trayd-vm@web-1")
	r.untilVM("web-1", "running")
	r.whole()
	r.active("TWO")
	require.Equal(t, r.lv("TWO"), r.driveStatus("web-1/cd0").Medium.Name)
	tool(t, "systemctl", "stop", "trayd-vm@web-1")
	require.Eventually(t, func() bool { return len(r.qemus()) == 0 && len(r.groupActive()) == 0 }, soon, poll)

	t.Log("a disc that is missing stops the start before anything happens, unless it is optional")
	r.must("eject", "web-1")
	r.must("insert", "web-1", r.lv("ONE"))
	tool(t, "lvrename", r.group, "t-ONE", "t-GONE")
	got := r.fails(1, "vm", "start", "web-1")
	require.Equal(t, "no-such-volume", got.Code)
	require.Contains(t, got.Detail, "VM web-1 isn't started: the disc of drive cd0 can't be had")
	require.NotEqual(t, "active", unitState(t, "web-1"))
	require.Empty(t, r.groupActive())
	require.Error(t, startUnitStaysUp(r), "nor does systemctl")
	tool(t, "sed", "-i", "s/^medium = .*/&\\noptional = true/", "/var/lib/trayd/machines/web-1/machine.toml")
	started := r.trayctl("vm", "start", "web-1")
	for end := time.Now().Add(soon); strings.Contains(started.stderr, "is being started") && time.Now().Before(end); { // by systemctl, yet
		started = r.trayctl("vm", "start", "web-1")
	}
	require.Zero(t, started.code, started.stderr)
	require.Contains(t, started.stderr, "warning: drive web-1/cd0 is left empty, as its disc is optional")
	r.untilVM("web-1", "running")
	tool(t, "lvrename", r.group, "t-GONE", "t-ONE")
	r.must("vm", "rm", "web-1", "--force")
	r.whole()
}

// startUnitStaysUp starts a machine by systemctl, and says whether it has gone again.
func startUnitStaysUp(r *volumeRig) error {
	tool(r.t, "systemctl", "start", "trayd-vm@web-1")
	for range 100 {
		if len(r.qemus()) == 0 {
			return os.ErrProcessDone
		}
		tool(r.t, "sleep", "0.1")
	}
	return nil
}

// TestUnitMachineKilledAtEveryStep kills trayd while it starts a machine as a unit with its
// disc on a volume: there is no unit without its machine, and no volume without either.
func TestUnitMachineKilledAtEveryStep(t *testing.T) {
	r := unitRig(t, "ONE")
	tool(t, "systemctl", "mask", "--runtime", "trayd.service") // machines want one, and this test has its own
	t.Cleanup(func() { tool(t, "systemctl", "unmask", "--runtime", "trayd.service") })
	r.start("")
	r.ready()
	r.must("vm", "create", "m", "--memory", "32M", "--cdrom", r.lv("ONE"), "--disk", "64M", "--network", "none")
	for _, c := range []struct {
		point string
		runs  bool
	}{
		{"intent-written", false}, {"volume-activated", false}, {"vm-prepared", false},
		{"vm-launched", true}, {"vm-attached", true}, {"descriptor-passed", true}, {"outcome-written", true}, {"vm-loaded", true}, {"vm-continued", true},
	} {
		t.Log(c.point)
		r.stop()
		r.start(c.point)
		r.ready()
		got := r.trayctl("vm", "start", "m")
		require.Contains(t, []int{3, 4}, got.code, "%s%s", got.stdout, got.stderr)
		r.died()
		r.start("")
		r.ready()
		if c.runs {
			r.untilVM("m", "running")
		}
		r.whole()
		if c.runs {
			require.Equal(t, wire.StateLoaded, r.driveStatus("m/cd0").State)
			r.active("ONE")
			r.must("vm", "kill", "m")
		}
		require.Eventually(t, func() bool { return len(r.groupActive()) == 0 && len(r.qemus()) == 0 }, soon, poll, c.point)
		r.whole()
	}
	r.must("vm", "rm", "m")
}
