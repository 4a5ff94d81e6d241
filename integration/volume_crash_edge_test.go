//go:build edge

package integration_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/blockdev"
	"github.com/trayd/trayd/internal/agent"
	"github.com/trayd/trayd/internal/edge"
	"github.com/trayd/trayd/internal/qemutest"
	"github.com/trayd/trayd/qmp"
)

// released is the last fail point of every change that lets go of a volume: the volume is
// released, and the record doesn't say so yet.
const released = "volume-released"

// volumeCrashes are the rows of the crash table that discs on volumes add.
var volumeCrashes = []crash{
	{point: "volume-activated", strategy: "atomic", verb: agent.Replace, end: old, recovery: []string{written}},
	{point: "volume-activated", strategy: "atomic", verb: agent.Insert, empty: true, end: none, recovery: []string{written}},
	{point: released, strategy: "atomic", verb: agent.Replace, end: fresh},
	{point: released, strategy: "atomic", verb: agent.Eject, end: none},
	{point: released, strategy: "atomic", verb: guestEjects, end: none},
	{point: "volume-activated", strategy: "stepwise", verb: agent.Replace, end: old, recovery: []string{written}},
	{point: "volume-activated", strategy: "stepwise", verb: agent.Insert, empty: true, end: none, recovery: []string{written}},
	{point: released, strategy: "stepwise", verb: agent.Replace, end: fresh},
	{point: released, strategy: "stepwise", verb: guestEjects, end: none},
}

// crashesOf are all rows of a strategy.
func crashesOf(strategy string) []crash {
	return slices.DeleteFunc(slices.Concat(crashes, volumeCrashes), func(c crash) bool { return c.strategy != strategy })
}

// lets reports whether a volume is to be released in the end: the new one when it is
// rolled back, the old one when it goes forward. An eject that is rolled back has none.
func (c crash) lets() bool {
	return c.verb == agent.Replace || c.verb == agent.Insert && c.end == none || c.end == none
}

// volumeRecovery are the steps of the recovery that concern volumes: what lets go of one
// is written, and it is released. The others are the same as with files, and
// TestRecoveryKilledAtEveryStep has them.
func (c crash) volumeRecovery() []string {
	steps := slices.DeleteFunc(slices.Clone(c.recovery), func(step string) bool { return step != written })
	if c.lets() {
		steps = append(steps, released)
	}
	return steps
}

// crashHost is a host on which many rows of the table are played with the same machine.
type crashHost struct {
	*volumeRig
	name     string
	vm       *qemutest.VM
	side     *qmp.Conn // another client's monitor: what trayd can't say is asked here
	guest    *qemutest.Guest
	old, new string            // the media
	devices  map[string]string // what device-mapper calls them
	kept     []string          // devices that another machine uses all the time
}

// newCrashHost makes a host with the discs OLD and FRESH on logical volumes.
func newCrashHost(t *testing.T, strategy string) *crashHost {
	h := &crashHost{volumeRig: newVolumeRigNamed(t, strategy+"-", old, fresh)}
	h.extra = "strategy = \"" + strategy + "\""
	h.old, h.new = h.lv(old), h.lv(fresh)
	h.devices = map[string]string{old: h.device(old), fresh: h.device(fresh)}
	return h
}

// boot starts another machine. Their names differ, since trayd forgets one that has
// ended when it notices.
func (h *crashHost) boot() {
	h.name = fmt.Sprintf("vm%d", time.Now().UnixNano())
	h.vm, h.side = h.running(h.name, qemutest.IDE.With("")...)
	h.guest = h.vm.Guest(h.t)
}

func (h *crashHost) drive() string { return h.name + "/cd0" }

// crash takes the drive to the row's beginning and trayd to its death.
func (h *crashHost) crash(c crash) {
	t := h.t
	if h.daemon == nil {
		h.start("")
		h.up()
	}
	if c.empty {
		h.must("eject", h.name)
	} else {
		h.must("change", h.name, h.old)
	}
	h.stop()
	h.guest.Volume() // the change is a unit attention
	if c.locked {
		h.guest.Lock()
	}
	h.start(c.point)
	h.up()
	if c.verb == guestEjects {
		require.Empty(t, h.guest.Eject())
		h.died()
		return
	}
	args := []string{c.verb, h.name}
	if c.verb != agent.Eject {
		args = append(args, h.new)
	}
	if c.force {
		args = append(args, "--force")
	}
	got := h.trayctl(args...)
	require.Equal(t, 3, got.code, "trayctl must say that nobody knows: %s%s", got.stdout, got.stderr)
	h.died()
	if c.loads {
		require.Empty(t, h.guest.Load())
	}
}

// check looks at the end as the guest, QEMU, the kernel and the records see it.
func (h *crashHost) check(c crash) {
	t := h.t
	want, device := c.end, h.devices[c.end]
	// The release follows the outcome.
	require.Eventually(t, func() bool {
		rec := h.records()[h.drive()]
		return rec.Change == nil && rec.Releasing == nil
	}, soon, poll, "not settled")
	d := h.look(h.drive())
	require.Equal(t, "closed", d.Tray)
	rec := h.records()[h.drive()]
	var nodes, devices []string
	if want == none {
		require.Equal(t, agent.StateEmpty, d.State)
		require.Nil(t, rec.Loaded)
		want = qemutest.NoMedium
	} else {
		require.Equal(t, agent.StateLoaded, d.State)
		require.True(t, d.Medium.Ours)
		require.Equal(t, want, d.Medium.VolumeID)
		require.Equal(t, d.Medium.Node, rec.Loaded.Node)
		nodes, devices = []string{d.Medium.Node}, []string{device}
	}
	require.Equal(t, want, h.guest.Volume(), "what the guest reads")

	// Independent of trayd: QEMU by its other monitor, the kernel by its own tools.
	ctx := t.Context()
	ours, err := blockdev.Nodes(ctx, h.side, "trayd-")
	require.NoError(t, err)
	require.ElementsMatch(t, nodes, ours, "nodes")
	loans, err := blockdev.Lent(ctx, h.side, "trayd-")
	require.NoError(t, err)
	require.Empty(t, loans, "descriptor sets")
	var open []string
	for _, path := range slices.Compact(h.vm.OpenFiles(t, "/dev/dm-")) {
		open = append(open, strings.TrimSpace(read(t, "/sys/class/block/"+strings.TrimPrefix(path, "/dev/")+"/dm/name")))
	}
	require.ElementsMatch(t, devices, open, "devices that QEMU holds open")
	all := slices.Concat(devices, h.kept)
	slices.Sort(all)
	require.ElementsMatch(t, slices.Compact(all), h.mine(), "active volumes")
	h.ok()

	if c.locked && !c.force {
		// The guest had been asked before trayd died. Its late answer is put right.
		h.guest.Unlock()
		require.Empty(t, h.guest.Eject())
		require.Eventually(t, func() bool { return h.guest.Volume() == want }, soon, poll,
			"a tray that opened late because of us is closed again")
		h.settled(h.drive())
	} else if c.locked {
		h.guest.Unlock()
	}
}

func read(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(b)
}

// TestVolumeCrashes kills trayd at each point of each change between logical volumes,
// and the recovery as well where it lets go of one. What is left in the end is what the
// table says, and not one volume, node, descriptor or record more.
func TestVolumeCrashes(t *testing.T) {
	for _, strategy := range []string{"atomic", "stepwise"} {
		t.Run(strategy, func(t *testing.T) {
			t.Parallel()
			h := newCrashHost(t, strategy)
			h.boot()
			for _, c := range crashesOf(strategy) {
				t.Run(c.name(), func(t *testing.T) {
					h.t = t
					h.crash(c)
					for _, step := range c.volumeRecovery() {
						t.Log("killed at", step)
						h.start(step)
						h.died()
					}
					h.start("")
					h.up()
					h.check(c)
				})
				if t.Failed() {
					return
				}
			}
			h.t = t
		})
	}
}

// mapperCrashes are the rows for which it matters how a volume is made and removed: the
// other kinds of volumes have these, and both ends, in common with logical volumes. How
// the disc is changed makes no difference but in the middle of it, where the drive is empty.
func mapperCrashes() []crash {
	return slices.DeleteFunc(slices.Concat(crashes, volumeCrashes), func(c crash) bool {
		return c.strategy == "stepwise" && c.point != "medium-removed" || !slices.Contains([]string{"intent-written", "volume-activated", "swapped", "medium-removed", written, released}, c.point) ||
			c.locked || c.loads || c.verb == guestEjects
	})
}

// TestMapperCrashes is the crash table's essence with volumes that trayd itself makes in
// device-mapper: a linear one of two pieces, and a verity one. Another machine has the
// linear one in its drive all the time. Every row is played twice: the machine goes on,
// and it is killed together with trayd.
func TestMapperCrashes(t *testing.T) {
	h := &crashHost{volumeRig: newVolumeRig(t)}
	h.old, h.new = "dm:linear", "dm:verity"
	h.devices = map[string]string{old: "trayd-linear", fresh: "trayd-verity"}
	h.kept = []string{"trayd-linear"}
	volumes := h.linear("linear", old) + h.verity("verity", fresh)
	_, other := h.machine("other", qemutest.SATA.With("")...)
	for _, strategy := range []string{"atomic", "stepwise"} {
		h.extra = "strategy = \"" + strategy + "\"\n" + volumes
		for _, c := range mapperCrashes() {
			if c.strategy != strategy {
				continue
			}
			t.Run(c.name(), func(t *testing.T) {
				h.t = t
				h.boot()
				defer func() {
					h.vm.Kill()
					h.kill()
				}()
				h.start("")
				h.up()
				h.must("change", "other", h.old)
				h.stop()
				h.crash(c)
				h.start("")
				h.up()
				h.check(c)
				h.stop()

				h.crash(c)
				h.vm.Kill()
				h.start("")
				h.up()
				require.Eventually(t, func() bool { return len(h.records()) == 1 && len(h.mine()) == 1 }, soon, poll,
					"records or volumes of a machine that is no more")
				require.Equal(t, h.kept, h.mine())
				require.Equal(t, old, other.Volume())
				h.ok()
				h.stop()
			})
		}
	}
	h.t = t
	h.start("")
	h.up()
	h.must("eject", "other")
	require.Empty(t, h.mine())
	require.NotContains(t, tool(t, "losetup", "--all"), h.dir, "loop devices beneath them")
	h.ok()
}

// linear defines a linear volume of two pieces, in a file and on a disk.
func (r *volumeRig) linear(name, disc string) string {
	t := r.t
	t.Helper()
	content := []byte(read(t, r.disc(disc)))
	content = append(content, make([]byte, -len(content)&0x7ff)...) // whole sectors of a disc
	const half = 40 << 10                                           // in the middle of it
	first := filepath.Join(r.dir, name+".part")
	require.NoError(t, os.WriteFile(first, content[:half], 0o600))
	f, err := os.OpenFile(edge.Disks[1], os.O_WRONLY, 0)
	require.NoError(t, err)
	defer f.Close()
	const at = 1 << 20
	_, err = f.WriteAt(content[half:], at)
	require.NoError(t, err)
	require.NoError(t, f.Sync())
	return fmt.Sprintf("[[volume]]\nname = %q\ntype = \"linear\"\nextents = [{ device = %q }, { device = %q, start = %d, length = %d }]\n",
		name, first, edge.Disks[1], at, len(content)-half)
}

// verity defines a volume whose blocks are checked, of files.
func (r *volumeRig) verity(name, disc string) string {
	t := r.t
	t.Helper()
	data, hash, root := filepath.Join(r.dir, name+".data"), filepath.Join(r.dir, name+".hash"), filepath.Join(r.dir, name+".root")
	content := []byte(read(t, r.disc(disc)))
	content = append(content, make([]byte, -len(content)&0xfff)...) // whole blocks
	require.NoError(t, os.WriteFile(data, content, 0o600))
	tool(t, "veritysetup", "format", "--root-hash-file", root, data, hash)
	return fmt.Sprintf("[[volume]]\nname = %q\ntype = \"verity\"\ndata = %q\nhash = %q\nroot_hash = %q\n", name, data, hash, strings.TrimSpace(read(t, root)))
}

// TestKilledWhileActivating kills trayd while the lvchange that it has started still
// runs: that turns the volume on after trayd's next start. Nobody has to find it later.
func TestKilledWhileActivating(t *testing.T) {
	r := newVolumeRig(t, "ONE", "TWO")
	_, guest := r.machine("vm", qemutest.SATA.With("")...)
	r.start("")
	r.up()
	r.must("insert", "vm", r.lv("ONE"))
	// lvm2 waits for the group's lock. Whoever changes the group has it.
	lock, err := os.OpenFile("/run/lock/lvm/V_"+r.group, os.O_RDWR|os.O_CREATE, 0o600)
	require.NoError(t, err)
	defer lock.Close()
	require.NoError(t, unix.Flock(int(lock.Fd()), unix.LOCK_EX))
	cmd := r.command("change", "vm", r.lv("TWO"))
	require.NoError(t, cmd.Start())
	require.Eventually(t, func() bool { return exec.Command("pgrep", "lvchange").Run() == nil }, soon, poll)
	r.kill()
	require.Error(t, cmd.Wait())
	r.start("")
	time.Sleep(2 * time.Second) // while it has much time to see that TWO is inactive
	require.NoError(t, unix.Flock(int(lock.Fd()), unix.LOCK_UN))
	r.up()
	require.Eventually(t, func() bool {
		return exec.Command("pgrep", "lvchange").Run() != nil && len(r.records()["vm/cd0"].Releasing) == 0
	}, soon, poll)
	r.holds("vm/cd0", "ONE", guest)
	r.active("ONE")
	r.ok()
}
