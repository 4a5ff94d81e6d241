//go:build integration

package integration_test

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/guest"
	"github.com/trayd/trayd/internal/machine"
	"github.com/trayd/trayd/internal/wire"
	"github.com/trayd/trayd/qmp"
)

const (
	// bootLimit is how long an emulated machine may take to its system: 12 s on BIOS, 20 s on
	// UEFI, where nothing else runs.
	bootLimit = 3 * time.Minute
	// machineMemory is what GRUB on UEFI needs to load a kernel; with 256M it can't.
	machineMemory = "512M"
	// driverText is what the disc of drivers brings, and every machine has at the end.
	driverText = "driver 8.15"
)

// installRig is a host with two images: an installer and drivers for it.
type installRig struct {
	*rig
	mu     sync.Mutex // guards events
	events []wire.Event
	died   bool // trayd has, so that events are missing
}

// newInstallRig has an installer that does what the answers say.
func newInstallRig(t *testing.T, answers ...string) *installRig {
	r := &installRig{rig: newRig(t)}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute) // over a slow line
	defer cancel()
	kit, err := guest.Prepare(ctx, cacheDir(), os.Stderr)
	require.NoError(t, err)
	installer, err := kit.Installer(ctx, filepath.Join(bin, "installer"))
	require.NoError(t, err)
	r.startWatched()
	r.must("image", "add", "installer", installer)
	r.must("image", "add", "drivers", r.labelled("DRIVERS", map[string]string{"driver.txt": driverText + "\n", "answers.txt": strings.Join(answers, "\n") + "\n"}))
	return r
}

// cacheDir is where what is made once is kept.
func cacheDir() string {
	if dir := os.Getenv("TRAYD_CACHE"); dir != "" {
		return dir
	}
	return "../.cache"
}

// labelled makes a disc of small files by the tool that most people use; more are its options.
func (r *rig) labelled(label string, files map[string]string, more ...string) string {
	r.t.Helper()
	dir, path := filepath.Join(r.dir, label), filepath.Join(r.discs(), label+".iso")
	require.NoError(r.t, os.Mkdir(dir, 0o755))
	for name, text := range files {
		require.NoError(r.t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	out, err := exec.Command("genisoimage", append(more, "-quiet", "-r", "-J", "-V", label, "-o", path, dir)...).CombinedOutput()
	require.NoError(r.t, err, "%s", out)
	return path
}

// startWatched starts trayd, and notes its events.
func (r *installRig) startWatched() {
	r.t.Helper()
	r.start("")
	r.ready()
	watch := r.command("events", "-o", "json")
	out, err := watch.StdoutPipe()
	require.NoError(r.t, err)
	require.NoError(r.t, watch.Start())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for lines := json.NewDecoder(out); ; {
			var e wire.Event
			if lines.Decode(&e) != nil {
				return
			}
			r.mu.Lock()
			r.events = append(r.events, e)
			r.mu.Unlock()
		}
	}()
	r.t.Cleanup(func() {
		_ = watch.Process.Kill() // it ends with trayd
		<-done
		_ = watch.Wait()
	})
}

// happened counts the events of a type that a machine has had.
func (r *installRig) happened(vm, typ string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if e.VM == vm && e.Type == typ {
			n++
		}
	}
	return n
}

// create makes and starts the machine win1, as its owner would.
func (r *installRig) create(firmware string, more ...string) {
	r.t.Helper()
	r.must(append([]string{"vm", "create", "win1", "--iso", "image:installer", "--driver-iso", "image:drivers",
		"--disk", "1G", "--memory", machineMemory, "--firmware", firmware, "--start"}, more...)...)
}

// said is what a machine has said on its serial console so far.
func (r *installRig) said(name string) string {
	got := r.trayctl("vm", "log", name)
	if got.code != 0 {
		return "" // nothing yet
	}
	return got.stdout
}

// says waits until a machine has said something behind what it had said before.
func (r *installRig) says(name, before, text string) {
	r.t.Helper()
	for end := time.Now().Add(bootLimit); ; time.Sleep(300 * time.Millisecond) { // a look costs what the guest could have
		said := r.said(name)
		if strings.Contains(strings.TrimPrefix(said, before), text) {
			r.t.Logf("%s: %s", name, text)
			return
		}
		require.NotContains(r.t, strings.TrimPrefix(said, before), "guest: failed", "%s", said)
		require.True(r.t, time.Now().Before(end), "%s hasn't said %q; it said:\n%s", name, text, said)
	}
}

// tell types lines on a machine's serial console, and waits for what it says to that.
func (r *installRig) tell(name, line, answer string) {
	r.t.Helper()
	before := r.said(name)
	defer r.types(name, line+"\n")()
	r.says(name, before, answer)
}

// types types on a machine's serial console until what it returns is called. It reads what
// comes, too: a guest waits for a console that takes nothing, after 300 letters already.
func (r *installRig) types(name, text string) (done func()) {
	r.t.Helper()
	conn, err := net.Dial("unix", filepath.Join(r.machinesRun(), name, "serial"))
	require.NoError(r.t, err)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = io.Copy(io.Discard, conn) // until it is closed
	}()
	_, err = conn.Write([]byte(text))
	require.NoError(r.t, err)
	return func() {
		conn.Close()
		<-ended
	}
}

// ends waits until a machine has powered itself off.
func (r *installRig) ends(name string) {
	r.t.Helper()
	for end := time.Now().Add(bootLimit); ; time.Sleep(300 * time.Millisecond) {
		v := r.vmStatus()[name]
		if v.State == wire.VMStopped {
			return
		}
		require.True(r.t, time.Now().Before(end), "%s hasn't ended: %+v", name, v)
	}
}

// boots is the name of a firmware in the words of the guest.
var boots = map[string]string{wire.FirmwareBIOS: "BIOS", wire.FirmwareUEFI: "UEFI"}

// isInstalled demands that a machine boots its disk from now on, and has that disc in.
func (r *installRig) isInstalled(disc string) {
	r.t.Helper()
	if !r.died {
		require.Eventually(r.t, func() bool { return r.happened("win1", "vm-installed") == 1 }, 20*time.Second, 20*time.Millisecond, "no event")
	}
	var v wire.VMStatus
	require.Eventually(r.t, func() bool {
		v = r.showVM("win1")
		return v.Machine.Definition.Boot == wire.BootDisk && v.Machine.Definition.CDROMs[0].Medium == disc
	}, 20*time.Second, 50*time.Millisecond, "it doesn't boot its disk, or the drive's disc isn't %q", disc)
	require.True(r.t, v.Machine.Disks[0].Written)
	require.Equal(r.t, "image:drivers", v.Machine.Definition.CDROMs[1].Medium)
	r.whole()
}

// leaveNothing removes the machines, and demands that nothing is left of them, and that one
// of them has been installed, once.
func (r *installRig) leaveNothing(names ...string) {
	r.t.Helper()
	for _, name := range names {
		r.must("vm", "rm", name, "--force")
	}
	r.whole()
	require.Empty(r.t, r.qemus())
	left, err := os.ReadDir(r.machineDir())
	require.NoError(r.t, err)
	require.Empty(r.t, left)
	r.stop() // its log is whole now
	require.Equal(r.t, 1, strings.Count(r.log.String(), "msg=vm-installed vm=win1"))
}

// TestMachineFromDiscToGoldenImage is the whole way without a human: a machine installs
// itself from a disc, with a driver from a second one; its disk becomes the golden image, and
// machines are made from that.
func TestMachineFromDiscToGoldenImage(t *testing.T) {
	t.Parallel()
	for _, firmware := range []string{wire.FirmwareBIOS, wire.FirmwareUEFI} {
		t.Run(firmware, func(t *testing.T) {
			t.Parallel()
			installed := "system: booted from its disk on " + boots[firmware] + ", driver: " + driverText
			r := newInstallRig(t, "write", "eject", "off")
			r.create(firmware)
			r.says("win1", "", "installer: booted from its disc on "+boots[firmware])
			r.says("win1", "", "installer: disk of 1073741824 bytes, blank")
			r.says("win1", "", "installer: driver: "+driverText)
			r.says("win1", "", "installer: ejected: true")
			r.ends("win1")
			r.isInstalled("") // the guest has ejected it

			before := r.said("win1")
			r.must("vm", "start", "win1")
			r.says("win1", before, installed)
			refused := r.trayctl("image", "capture", "win1", "--name", "golden")
			require.Equal(t, 1, refused.code, "%s%s", refused.stdout, refused.stderr)
			require.Contains(t, refused.stderr, "--shutdown")
			r.says("win1", before, "system: ready")
			r.must("image", "capture", "win1", "--name", "golden", "--shutdown", "--wait", "2m")
			r.says("win1", before, "the power button was pressed")
			r.whole()

			t.Log("machines from the golden image: one stands on it, one is a copy and has a seed")
			userData := filepath.Join(r.dir, "user-data")
			require.NoError(t, os.WriteFile(userData, []byte("#cloud-config\npower_state:\n  mode: reboot\n"), 0o644))
			r.must("vm", "create", "web1", "--image", "image:golden", "--linked", "--memory", machineMemory, "--firmware", firmware, "--start")
			r.must("vm", "create", "web2", "--image", "image:golden", "--memory", machineMemory, "--firmware", firmware, "--user-data", userData, "--start")
			r.says("web1", "", installed)
			r.says("web2", "", installed)
			r.says("web2", "", "disc cidata")
			r.says("web2", "", `"local-hostname":"web2"`)
			first := r.said("web2")
			r.says("web2", first, "system: ready") // after its reset
			require.NotContains(t, strings.TrimPrefix(r.said("web2"), first), "cidata", "the seed goes with the first boot")
			require.False(t, slices.ContainsFunc(r.showVM("web2").Machine.Definition.CDROMs, func(c wire.CDROM) bool { return c.Seed }))
			r.whole()

			refused = r.trayctl("image", "rm", "golden")
			require.Equal(t, 1, refused.code, "%s", refused.stdout)
			require.Contains(t, refused.stderr, "web1")
			r.must("vm", "stop", "web1", "--wait", "2m")
			require.Equal(t, 1, r.trayctl("image", "rm", "golden").code, "stopped, it still stands on it")
			r.must("vm", "rm", "web1")
			r.must("image", "rm", "golden")
			r.leaveNothing("web2", "win1")
		})
	}
}

// TestMachineInstallEnds: however the installer ends, the machine boots its disk from then
// on; and trayd needn't be there to see it.
func TestMachineInstallEnds(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, firmware, end string
		detach              bool
		dies                bool // trayd dies while the disk is being written, and is back after the end
	}{
		{name: "reset", firmware: wire.FirmwareUEFI, end: "reset"},
		{name: "reset and detach", firmware: wire.FirmwareBIOS, end: "reset", detach: true},
		{name: "power-off and detach", firmware: wire.FirmwareBIOS, end: "off", detach: true},
		{name: "reset without trayd", firmware: wire.FirmwareBIOS, end: "reset", dies: true},
		{name: "power-off without trayd", firmware: wire.FirmwareBIOS, end: "off", detach: true, dies: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			answers, more, disc := []string{"write", c.end}, []string(nil), "image:installer"
			if c.dies {
				answers = []string{"begin", "ask"}
			}
			if c.detach {
				more, disc = []string{"--detach-after-install"}, ""
			}
			r := newInstallRig(t, answers...)
			r.create(c.firmware, more...)
			if c.dies {
				r.says("win1", "", "what next?")
				r.diesDuring(c.end)
			} else {
				r.says("win1", "", "all of the system is written")
			}
			if c.end == "off" {
				r.ends("win1")
				r.isInstalled(disc)
				r.must("vm", "start", "win1")
			}
			r.says("win1", "", "system: booted from its disk on "+boots[c.firmware]+", driver: "+driverText)
			if c.end == "reset" && !c.dies {
				r.isInstalled(disc)
			}
			r.says("win1", "", "system: ready")
			if disc == "" && c.end == "off" {
				require.NotContains(t, r.said("win1"), "disc INSTALLER")
			}
			require.Contains(t, r.said("win1"), "disc DRIVERS")
			r.must("vm", "stop", "win1", "--wait", "2m")
			r.isInstalled(disc)
			r.leaveNothing("win1")
		})
	}
}

// ordered waits until a machine whose guest has written its disk boots that before its disc: trayd
// has it turned round within milliseconds, more on a busy host, and must not die before.
func (r *installRig) ordered(name string) {
	r.t.Helper()
	conn, err := qmp.Dial(r.t.Context(), filepath.Join(r.dir, "m", name, machine.OperatorSocket), nil)
	require.NoError(r.t, err)
	defer conn.Close()
	index := func(device string) (i int) {
		require.NoError(r.t, conn.Execute(r.t.Context(), "qom-get", map[string]any{"path": "/machine/peripheral/" + device, "property": "bootindex"}, &i))
		return i
	}
	require.Eventually(r.t, func() bool { return index("disk0") < index("cd0") }, 20*time.Second, 20*time.Millisecond, "the boot order isn't turned round")
}

// diesDuring has trayd die while the guest installs, and come back when that has ended.
func (r *installRig) diesDuring(end string) {
	r.t.Helper()
	log := r.machineDir("win1", "serial.log")
	r.ordered("win1")
	r.kill()
	r.died = true
	defer r.types("win1", "write\n"+end+"\n")()
	for limit := time.Now().Add(bootLimit); ; time.Sleep(100 * time.Millisecond) {
		said, err := os.ReadFile(log)
		require.NoError(r.t, err)
		if end == "off" && len(r.qemus()) == 0 || strings.Contains(string(said), "system: ready") {
			break
		}
		require.True(r.t, time.Now().Before(limit), "the installation doesn't end; it said:\n%s", said)
	}
	r.startWatched()
}

// TestMachineInstallBeginsAnew: what hasn't been installed isn't booted. A guest that resets
// before it has written anything, and a machine that is killed in the middle of writing, have
// the disc again.
func TestMachineInstallBeginsAnew(t *testing.T) {
	t.Parallel()
	r := newInstallRig(t, "ask")
	r.create(wire.FirmwareBIOS)
	r.says("win1", "", "what next?")
	before := r.said("win1")
	r.tell("win1", "reset", "resetting")
	r.says("win1", before, "installer: disk of 1073741824 bytes, blank")
	r.says("win1", before, "what next?")
	require.Zero(t, r.happened("win1", "vm-installed"))

	r.tell("win1", "begin", "half of the system is written")
	r.must("vm", "kill", "win1")
	r.whole()
	v := r.showVM("win1").Machine
	require.Equal(t, wire.BootCDROMOnce, v.Definition.Boot)
	require.Equal(t, "image:installer", v.Definition.CDROMs[0].Medium)
	require.Zero(t, r.happened("win1", "vm-installed"))

	before = r.said("win1")
	r.must("vm", "start", "win1")
	r.says("win1", before, "installer: disk of 1073741824 bytes, written")
	r.says("win1", before, "what next?")

	t.Log("the reset button in the middle of writing: the disc again; after it, the disk")
	r.tell("win1", "begin", "half of the system is written")
	before = r.said("win1")
	r.must("vm", "reset", "win1")
	r.says("win1", before, "what next?")
	r.tell("win1", "write", "all of the system is written")
	r.tell("win1", "off", "powering off")
	r.ends("win1")
	r.isInstalled("image:installer")
	r.leaveNothing("win1")
}
