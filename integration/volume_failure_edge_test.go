//go:build edge

package integration_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/internal/agent"
	"github.com/trayd/trayd/internal/edge"
	"github.com/trayd/trayd/internal/qemutest"
	"github.com/trayd/trayd/qmp"
)

// TestVolumeCannotBePrepared: whatever keeps the new volume from being activated or read,
// the old disc stays in, nothing of the attempt is left, and the caller is told why.
func TestVolumeCannotBePrepared(t *testing.T) {
	r := newVolumeRig(t, "ONE")
	t.Cleanup(func() {
		for _, name := range []string{"snap", "blank", "pool"} { // thin goes with its pool
			tool(t, "lvremove", "--yes", r.path(name))
		}
	})
	create := func(vg string, args ...string) {
		tool(t, append([]string{"lvcreate", "--yes", "--name"}, append(args, vg)...)...)
	}
	create(r.group, r.prefix+"blank", "--size", "4m")
	create(r.group, r.prefix+"pool", "--type", "thin-pool", "--size", "32m")
	create(r.path("pool"), r.prefix+"thin", "--thin", "--virtualsize", "32m")
	create(r.path("blank"), r.prefix+"snap", "--snapshot", "--size", "4m")
	tool(t, "vgchange", "--activate", "n", r.group)
	makeGroup(t, "exported", edge.Disks[1])
	create("exported", "disc", "--size", "4m")
	tool(t, "vgchange", "--activate", "n", "exported")
	tool(t, "vgexport", "exported")
	t.Cleanup(func() { tool(t, "vgimport", "exported") })
	r.partialGroup()

	_, guest := r.machine("vm", qemutest.SATA.With("")...)
	r.start("")
	r.up()
	r.must("insert", "vm", r.lv("ONE"))
	before := mapped(t)
	for _, c := range []struct {
		medium string
		code   agent.Code
		exit   int
		says   string
	}{
		{"lvm:nope/disc", agent.NoSuchGroup, 1, "no volume group nope"},
		{r.lv("nope"), agent.NoSuchVolume, 1, "no logical volume t-nope"},
		{"lvm:nope", agent.BadRequest, 2, "VG/LV"},
		{"lvm:" + r.group + "/-x", agent.BadRequest, 2, "begin with '-'"},
		{"lvm:exported/disc", agent.GroupExported, 1, "is exported"},
		{"lvm:partial/disc", agent.GroupPartial, 1, "lacks some of its physical volumes"},
		{r.lv("snap"), agent.VolumeSnapshot, 1, "snapshot"},
		{r.lv("thin"), agent.VolumeThin, 1, "thin pool"},
		{r.lv("pool"), agent.VolumeThin, 1, "thin"},
		{r.lv("blank"), agent.NotADisc, 1, "not an ISO 9660 or UDF"},
		{"dm:nope", agent.NoSuchVolume, 1, "defines no such volume"},
	} {
		t.Run(c.medium, func(t *testing.T) {
			r.t = t
			p := r.fails(c.exit, "change", "vm", c.medium)
			require.Equal(t, string(c.code), p.Code, p.Detail)
			assert.Contains(t, p.Detail, c.says)
			r.holds("vm/cd0", "ONE", guest)
			require.Equal(t, before, mapped(t))
		})
	}
	r.t = t
	r.must("eject", "vm")
	r.fails(1, "insert", "vm", r.lv("blank"))
	r.holds("vm/cd0", "", guest)
	r.active()
	r.ok()
}

// partialGroup makes a volume group, one of whose disks is gone.
func (r *volumeRig) partialGroup() {
	t := r.t
	var loops []string
	for _, name := range []string{"pv1", "pv2"} {
		path := filepath.Join(r.dir, name)
		require.NoError(t, os.WriteFile(path, nil, 0o600))
		require.NoError(t, os.Truncate(path, 64<<20))
		loop := tool(t, "losetup", "--find", "--show", path)
		t.Cleanup(func() { _ = exec.Command("losetup", "--detach", loop).Run() })
		loops = append(loops, loop)
	}
	// udev would activate it, at some moment later.
	tool(t, append([]string{"vgcreate", "--yes", "--setautoactivation", "n", "partial"}, loops...)...)
	tool(t, "lvcreate", "--yes", "--size", "4m", "--name", "disc", "partial", loops[0])
	tool(t, "vgchange", "--activate", "n", "partial")
	tool(t, "losetup", "--detach", loops[1])
	t.Cleanup(func() {
		tool(t, "vgreduce", "--removemissing", "--force", "partial")
		tool(t, "vgremove", "--yes", "--force", "partial")
	})
}

// TestVolumeCannotBeLoaded: the volume is active and QEMU doesn't take the disc. The
// volume is released again.
func TestVolumeCannotBeLoaded(t *testing.T) {
	for _, strategy := range []string{"atomic", "stepwise"} {
		t.Run(strategy, func(t *testing.T) {
			r := newVolumeRig(t, "ONE", "TWO")
			r.extra = "strategy = \"" + strategy + "\""
			vm, guest := r.machine("vm", qemutest.SATA.With("")...)
			r.start("")
			r.up()
			// A QEMU that may open no more files refuses the descriptor; with room for that
			// one, to open it as a disc.
			for more := range uint64(2) {
				for _, before := range []string{"", "ONE"} {
					if before != "" {
						r.must("insert", "vm", r.lv(before))
					}
					open := uint64(len(vm.OpenFiles(t, "")))
					var was unix.Rlimit
					require.NoError(t, unix.Prlimit(vm.PID(), unix.RLIMIT_NOFILE, nil, &was))
					require.NoError(t, unix.Prlimit(vm.PID(), unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: open + more, Max: was.Max}, nil))
					p := r.fails(1, "change", "vm", r.lv("TWO"))
					require.NoError(t, unix.Prlimit(vm.PID(), unix.RLIMIT_NOFILE, &was, nil))
					require.Equal(t, string(agent.QEMURefused), p.Code)
					t.Log(p.Detail)
					r.holds("vm/cd0", before, guest)
					if before != "" {
						r.active(before)
					} else {
						r.active()
					}
					r.ok()
				}
				r.must("eject", "vm")
				r.active()
			}
		})
	}
}

// TestEjectFails: the guest holds the door, so the disc stays, and its volume with it.
func TestEjectFails(t *testing.T) {
	r := newVolumeRig(t, "ONE", "TWO")
	_, guest := r.machine("vm", qemutest.SATA.With("")...)
	r.start("")
	r.up()
	r.must("insert", "vm", r.lv("ONE"))
	require.Equal(t, "ONE", guest.Volume())
	guest.Lock()
	for _, args := range [][]string{{"eject", "vm"}, {"change", "vm", r.lv("TWO")}} {
		for _, wait := range []string{"0s", "1s"} { // not asked; asked in vain
			p := r.fails(1, append(args, "--wait", wait)...)
			require.Equal(t, string(agent.DriveLocked), p.Code)
			rec := r.records()["vm/cd0"]
			require.Nil(t, rec.Change)
			require.Equal(t, r.lv("ONE"), rec.Loaded.Medium.Name)
			require.Equal(t, "ONE", guest.Volume())
			r.active("ONE")
		}
	}
	r.ok()
	r.must("change", "vm", r.lv("TWO"), "--force")
	r.holds("vm/cd0", "TWO", guest)
	r.active("TWO")
}

// TestVolumeHeldByOutsider: the disc is out, and a process that is no business of trayd's
// has its volume open. The caller hears of it, everybody can see it, and it ends by
// itself when the process does.
func TestVolumeHeldByOutsider(t *testing.T) {
	r := newVolumeRig(t, "ONE", "TWO")
	_, guest := r.machine("vm", qemutest.SATA.With("")...)
	r.start("")
	r.up()
	for _, args := range [][]string{{"eject", "vm"}, {"change", "vm", r.lv("TWO")}} {
		t.Run(args[0], func(t *testing.T) {
			r.t = t
			r.must("change", "vm", r.lv("ONE"))
			end := hold(t, mapperPath(t, r.device("ONE")))
			p := r.fails(5, args...)
			require.Equal(t, string(agent.Incomplete), p.Code)
			require.Equal(t, "urn:trayd:problem:incomplete", p.Type)
			require.Contains(t, p.Detail, "held open by sleep (pid ")
			in := "" // the disc is out all the same
			if args[0] == "change" {
				in = "TWO"
				require.Equal(t, in, guest.Volume())
			} else {
				require.Equal(t, qemutest.NoMedium, guest.Volume())
			}
			rec := r.records()["vm/cd0"]
			require.Nil(t, rec.Change)
			require.Len(t, rec.Releasing, 1)
			require.Equal(t, r.lv("ONE"), rec.Releasing[0].Volume.String())
			require.Contains(t, mapped(t), r.device("ONE"))
			for _, show := range [][]string{{"status"}, {"volumes"}, {"-o", "json", "drives", "vm/cd0"}} {
				require.Contains(t, r.must(show...), "held open by sleep", show)
			}
			require.Contains(t, r.must("status"), "1 waiting for release")
			require.Equal(t, 1, r.trayctl("state", "check").code)

			// Also when trayd is killed, or stopped, meanwhile.
			r.kill()
			r.start("")
			r.up()
			require.Len(t, r.records()["vm/cd0"].Releasing, 1)
			require.Contains(t, mapped(t), r.device("ONE"))

			end()
			since := time.Now()
			require.Eventually(t, func() bool { return len(r.records()["vm/cd0"].Releasing) == 0 }, soon, 10*time.Millisecond)
			t.Logf("released %s after its holder's end, lvchange included", time.Since(since).Round(time.Millisecond))
			r.holds("vm/cd0", in, guest)
			if in == "" {
				r.active()
			} else {
				r.active(in)
			}
			r.ok()
		})
	}
	r.t = t
	t.Log("used again meanwhile: it stays")
	r.must("change", "vm", r.lv("ONE"))
	end := hold(t, mapperPath(t, r.device("ONE")))
	r.fails(5, "eject", "vm")
	r.must("insert", "vm", r.lv("ONE"))
	r.holds("vm/cd0", "ONE", guest)
	end()
	r.ok()
	r.active("ONE")
}

// TestPausedMachineHoldsVolume: QEMU up to 8.2 keeps what was lent to it until its
// machine runs. The release waits for that.
func TestPausedMachineHoldsVolume(t *testing.T) {
	r := newVolumeRig(t, "ONE")
	side := filepath.Join(r.dir, "side")
	vm := r.vm("vm", append(qemutest.SATA.With(""), append(qemutest.Idle(t, r.dir), "-qmp", "unix:"+side+",server=on,wait=off")...)...)
	guest := vm.Guest(t)
	r.start("")
	r.up()
	r.must("insert", "vm", r.lv("ONE"))
	r.holds("vm/cd0", "ONE", guest)
	if got := r.trayctl("eject", "vm"); got.code == 0 {
		r.active() // a later QEMU
		return
	}
	require.Equal(t, qemutest.NoMedium, guest.Volume())
	require.Contains(t, r.must("volumes"), "qemu-system")
	conn, err := qmp.Dial(t.Context(), side, nil)
	require.NoError(t, err)
	defer conn.Close()
	qemutest.Run(t, conn)
	require.Eventually(t, func() bool { return len(r.records()["vm/cd0"].Releasing) == 0 }, soon, poll)
	r.active()
	r.holds("vm/cd0", "", guest)
	r.ok()
}

// TestReleaseFails: lvm2 refuses for another reason than that the volume is in use.
func TestReleaseFails(t *testing.T) {
	r := newVolumeRig(t, "ONE")
	_, guest := r.machine("vm", qemutest.SATA.With("")...)
	r.start("")
	r.up()
	r.must("insert", "vm", r.lv("ONE"))
	const local = "/etc/lvm/lvmlocal.conf"
	before, err := os.ReadFile(local)
	require.NoError(t, err)
	mend := func() { require.NoError(t, os.WriteFile(local, before, 0o644)) }
	t.Cleanup(mend)
	require.NoError(t, os.WriteFile(local, []byte(`devices { global_filter=["r|.*|"] }`), 0o644))
	p := r.fails(5, "eject", "vm")
	require.Equal(t, string(agent.Incomplete), p.Code)
	require.Contains(t, p.Detail, "lvchange says")
	require.Equal(t, qemutest.NoMedium, guest.Volume())
	require.Len(t, r.records()["vm/cd0"].Releasing, 1)
	r.active("ONE")
	mend()
	require.Eventually(t, func() bool { return len(r.mine()) == 0 && len(r.records()["vm/cd0"].Releasing) == 0 }, soon, poll)
	r.holds("vm/cd0", "", guest)
	r.ok()
}

// TestStateFileFails: what is written last can't be written. The disc is where it was
// asked to be, nobody says that all is well, and the next start settles it.
func TestStateFileFails(t *testing.T) {
	r := newVolumeRig(t, "ONE", "TWO")
	disk := r.stateDisk()
	_, guest := r.machine("vm", twoDrives...)
	r.start("")
	r.up()
	r.must("insert", "vm/cd0", r.lv("ONE"))

	t.Log("no space: the intent is refused, and nothing is touched")
	full := filepath.Join(r.dir, "state", "full")
	_ = exec.Command("dd", "if=/dev/zero", "of="+full, "bs=1k").Run() // until the disk is full
	for i := 0; ; i++ {
		require.Less(t, i, 200, "the state file is never full")
		got := r.trayctl("-o", "json", "change", "vm/cd0", r.lv([]string{"TWO", "ONE"}[i%2]))
		if got.code != 0 { // it had some room of its own
			require.Contains(t, got.stderr, agent.StateRefused)
			break
		}
	}
	in := "ONE"
	if strings.Contains(r.must("drives", "vm/cd0"), "TWO") {
		in = "TWO"
	}
	r.holds("vm/cd0", in, guest)
	r.active(in)
	t.Log("an eject is an intent, too")
	require.NotZero(t, r.trayctl("eject", "vm/cd0").code)
	require.NoError(t, os.Remove(full))
	r.must("change", "vm/cd0", r.lv("ONE"))

	t.Log("the disk fails between intent and outcome")
	require.Equal(t, "ONE", guest.Volume())
	guest.Lock()
	cmd := r.command("-o", "json", "change", "vm/cd0", r.lv("TWO"), "--wait", "1m")
	var said bytes.Buffer
	cmd.Stderr = &said
	require.NoError(t, cmd.Start())
	require.Eventually(t, func() bool {
		d := r.driveStatus("vm/cd0")
		return d.Operation != nil && d.Operation.Phase == agent.Waiting
	}, soon, poll, "it does not wait for the guest")
	disk.fail()
	guest.Unlock()
	require.Error(t, cmd.Wait())
	require.Equal(t, 5, cmd.ProcessState.ExitCode(), said.String())
	require.Equal(t, "TWO", guest.Volume())
	r.active("ONE", "TWO") // no volume goes before the record that lets it go
	require.Contains(t, r.must("status"), "the state file takes no more changes")
	require.Equal(t, string(agent.DriveBusy), r.fails(1, "eject", "vm/cd0").Code)
	require.Equal(t, string(agent.StateRefused), r.fails(1, "insert", "vm/cd1", r.discAt("ONE")).Code)
	r.kill()

	disk.mend()
	r.start("")
	r.up()
	r.settled("vm/cd0")
	require.Eventually(t, func() bool { return len(r.mine()) == 1 }, soon, poll)
	r.holds("vm/cd0", "TWO", guest)
	r.active("TWO")
	r.ok()
	r.kill() // before its disk goes
}

// stateDisk is a small disk under the state file, which can fail.
type stateDisk struct {
	r      *volumeRig
	linear string // its table
	broken string
}

// stateDisk mounts one. It has no journal of its own, so that what is written to it is
// what the state file writes.
func (r *volumeRig) stateDisk() *stateDisk {
	const sectors = 8 << 20 / 512
	d := &stateDisk{r: r, linear: fmt.Sprintf("0 %d linear %s 0", sectors, edge.Disks[1]), broken: fmt.Sprintf("0 %d error", sectors)}
	tool(r.t, "dmsetup", "create", "state", "--table", d.linear)
	r.t.Cleanup(func() { tool(r.t, "dmsetup", "remove", "--retry", "state") })
	tool(r.t, "mkfs.ext2", "-q", "/dev/mapper/state")
	require.NoError(r.t, os.Mkdir(filepath.Join(r.dir, "state"), 0o700))
	d.mount()
	r.t.Cleanup(func() { r.kill(); d.umount() })
	return d
}

func (d *stateDisk) mount() {
	tool(d.r.t, "mount", "/dev/mapper/state", filepath.Join(d.r.dir, "state"))
}
func (d *stateDisk) umount() { tool(d.r.t, "umount", filepath.Join(d.r.dir, "state")) }

// become exchanges the disk's table beneath the file system.
func (d *stateDisk) become(table string) {
	d.r.t.Helper()
	tool(d.r.t, "dmsetup", "suspend", "--noflush", "--nolockfs", "state")
	tool(d.r.t, "dmsetup", "reload", "state", "--table", table)
	tool(d.r.t, "dmsetup", "resume", "state")
}

func (d *stateDisk) fail() { d.become(d.broken) }

// mend is what an operator does: nobody uses the disk meanwhile.
func (d *stateDisk) mend() {
	d.r.t.Helper()
	d.become(d.linear)
	d.umount()
	_ = exec.Command("fsck.ext2", "-p", "/dev/mapper/state").Run() // it mends, and says so by its exit code
	d.mount()
}
