//go:build edge

package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/internal/edge"
)

// These need device-mapper and lvm2, which an edge host has.

// group makes a volume group on both empty disks.
func group(t *testing.T, vg string) {
	t.Helper()
	tool(t, "pvcreate", edge.Disks[0], edge.Disks[1])
	tool(t, "vgcreate", vg, edge.Disks[0], edge.Disks[1])
	t.Cleanup(func() {
		tool(t, "vgremove", "--yes", vg)
		tool(t, "pvremove", edge.Disks[0], edge.Disks[1])
		left, err := dmNames("")
		require.NoError(t, err)
		require.Empty(t, left, "no device is left")
	})
}

// linear makes an inactive logical volume with this content.
func linear(t *testing.T, vg, lv string, b []byte, args ...string) Ref {
	t.Helper()
	tool(t, append([]string{"lvcreate", "--yes", "--size", fmt.Sprintf("%db", len(b)), "--name", lv, vg}, args...)...)
	require.NoError(t, os.WriteFile("/dev/"+vg+"/"+lv, b, 0))
	tool(t, "udevadm", "settle")
	tool(t, "lvchange", "--activate", "n", vg+"/"+lv)
	return Ref{LVM, vg + "/" + lv}
}

func TestLVM(t *testing.T) {
	contract(t, func(t *testing.T) *subject {
		group(t, "vg-a")
		h, disc, other := NewHost("edge", Options{}), content(1, testSize), content(2, testSize)
		s := &subject{
			host: h, ref: linear(t, "vg-a", "my-disc--1.iso", disc), content: disc,
			other:  &subject{host: h, ref: linear(t, "vg-a", "striped", other, "--stripes", "2"), content: other},
			absent: Ref{LVM, "vg-a/none"},
		}
		s.foreign = func(t *testing.T) { tool(t, "lvchange", "--activate", "y", s.ref.Name) }
		return s
	})
}

// Each condition that keeps a logical volume from being used has its name, and leaves
// nothing active.
func TestLVMReasons(t *testing.T) {
	ctx := context.Background()
	group(t, "vg-a")
	h := NewHost("edge", Options{})
	refuse := func(name string, want Reason) {
		t.Helper()
		v := volumeOf(t, h, Ref{LVM, name})
		before, err := dmNames("")
		require.NoError(t, err)
		require.Equal(t, want, reason(t, v.Activate(ctx)), name)
		after, err := dmNames("")
		require.NoError(t, err)
		require.Equal(t, before, after)
		if want != Snapshot && want != Thin { // these may be active for others
			require.NoError(t, v.Release(ctx))
		}
	}
	disc := content(3, testSize)
	linear(t, "vg-a", "first", disc, edge.Disks[0])
	linear(t, "vg-a", "second", disc, edge.Disks[1])
	linear(t, "vg-a", "mirrored", disc, "--type", "raid1")
	refuse("nogroup/first", NoSuchGroup)
	refuse("vg-a/none", NoSuchVolume)

	tool(t, "lvcreate", "--yes", "--snapshot", "--size", "4m", "--name", "snap", "vg-a/first")
	tool(t, "lvchange", "--activate", "y", "vg-a/first")
	refuse("vg-a/snap", Snapshot) // active
	tool(t, "lvchange", "--activate", "n", "vg-a/first")
	refuse("vg-a/snap", Snapshot)
	tool(t, "lvcreate", "--yes", "--type", "thin-pool", "--size", "64m", "--name", "pool", "vg-a")
	tool(t, "lvcreate", "--yes", "--thin", "--virtualsize", "16m", "--name", "thin", "vg-a/pool")
	refuse("vg-a/thin", Thin) // active
	tool(t, "udevadm", "settle")
	tool(t, "lvchange", "--activate", "n", "vg-a")
	refuse("vg-a/thin", Thin)
	refuse("vg-a/pool", Thin)

	// One that has snapshots, and one on two disks, can be used.
	for _, name := range []string{"vg-a/first", "vg-a/mirrored"} {
		v := volumeOf(t, h, Ref{LVM, name})
		require.NoError(t, v.Activate(ctx))
		f, err := v.Open(ctx, "")
		require.NoError(t, err)
		got := make([]byte, testSize)
		_, err = io.ReadFull(f, got)
		require.NoError(t, errors.Join(err, f.Close()))
		require.True(t, bytes.Equal(disc, got))
		require.NoError(t, v.Release(ctx))
		left, err := dmNames("")
		require.NoError(t, err)
		require.Empty(t, left)
	}
	tool(t, "lvremove", "--yes", "vg-a/pool", "vg-a/snap")

	tool(t, "vgexport", "vg-a")
	refuse("vg-a/first", Exported)
	tool(t, "vgimport", "vg-a")

	// lvm2 sees one disk less.
	hidden := toolConfig(t, fmt.Sprintf(`devices { global_filter = [ "r|%s|" ] }`, edge.Disks[1]))
	refuse("vg-a/second", PartialGroup)
	refuse("vg-a/first", PartialGroup)
	_, err := h.Space(ctx, "vg-a")
	require.Equal(t, PartialGroup, reason(t, err))
	hidden()

	// Neither a word for a shell nor another device with an LV's name is taken for one.
	require.NoError(t, dmCreate("vg--a-first", "somebody"))
	t.Cleanup(func() { _ = dmRemove("vg--a-first") })
	v := volumeOf(t, h, Ref{LVM, "vg-a/first"})
	require.Equal(t, Failed, reason(t, v.Activate(ctx)))
	require.Equal(t, Failed, reason(t, v.Release(ctx)))
}

// toolConfig has lvm2 read a configuration of ours on top of the host's.
func toolConfig(t *testing.T, text string) (undo func()) {
	t.Helper()
	const path = "/etc/lvm/lvmlocal.conf"
	was, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	undo = func() { require.NoError(t, os.WriteFile(path, was, 0o644)) }
	t.Cleanup(undo)
	return undo
}

// lvm2 that isn't there is said to be missing.
func TestLVMNotHere(t *testing.T) {
	lvm, err := findTool("lvchange")
	require.NoError(t, err)
	require.NoError(t, os.Rename(lvm, lvm+".away"))
	t.Cleanup(func() { require.NoError(t, os.Rename(lvm+".away", lvm)) })
	h := NewHost("edge", Options{})
	require.Equal(t, NotHere, reason(t, volumeOf(t, h, Ref{LVM, "vg/lv"}).Activate(context.Background())))
}

// What is activated is read-only, and the group's metadata isn't touched by it.
// A kill of lvm2 between making a device and starting it leaves one without a table, which
// a release removes.
func TestLVMCutOff(t *testing.T) {
	ctx := context.Background()
	group(t, "vg-a")
	v := volumeOf(t, NewHost("edge", Options{}), linear(t, "vg-a", "disc", content(1, testSize)))
	ids := tool(t, "lvs", "--noheadings", "--separator", "", "--options", "vg_uuid,lv_uuid", "vg-a/disc")
	require.NoError(t, dmCreate("vg--a-disc", "LVM-"+strings.ReplaceAll(strings.TrimSpace(ids), "-", "")))
	st, err := v.State(ctx)
	require.NoError(t, err)
	require.False(t, st.Active)
	require.NoError(t, v.Release(ctx))
	left, err := dmNames("")
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestLVMReadOnly(t *testing.T) {
	ctx := context.Background()
	group(t, "vg-a")
	h := NewHost("edge", Options{})
	ref := linear(t, "vg-a", "disc", content(4, testSize))
	seqno := tool(t, "vgs", "--noheadings", "--options", "vg_seqno", "vg-a")
	v := volumeOf(t, h, ref)
	require.NoError(t, v.Activate(ctx))
	d, ok, err := dmStatus("vg--a-disc")
	require.NoError(t, err)
	require.True(t, ok && d.ReadOnly)
	require.NoError(t, v.Release(ctx))
	require.Equal(t, seqno, tool(t, "vgs", "--noheadings", "--options", "vg_seqno", "vg-a"))
}

// Whenever its time ends, an activation has either succeeded or left nothing, and so
// has the making of a volume.
func TestLVMInterrupted(t *testing.T) {
	ctx := context.Background()
	group(t, "vg-a")
	h := NewHost("edge", Options{})
	v := volumeOf(t, h, linear(t, "vg-a", "disc", content(4, testSize)))
	volumes := func() int {
		list, err := h.ListLVs(ctx, "vg-a")
		require.NoError(t, err)
		return len(list)
	}
	// Work that was left behind needs a while to put things back.
	const while = 20 * time.Second
	cut := 0
	for limit := 10 * time.Millisecond; limit < 800*time.Millisecond; limit += 110 * time.Millisecond {
		short, cancel := context.WithTimeout(ctx, limit)
		err := v.Activate(short)
		cancel()
		active := func() bool {
			st, err := v.State(ctx)
			require.NoError(t, err)
			return st.Active
		}
		if err != nil {
			cut++
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.Eventually(t, func() bool { return !active() }, while, 100*time.Millisecond, "after %v: %v", limit, err)
		} else {
			require.True(t, active())
		}
		require.NoError(t, v.Release(ctx))

		short, cancel = context.WithTimeout(ctx, limit)
		err = h.CreateLV(short, "vg-a", "new", testSize)
		cancel()
		if err != nil {
			cut++
			require.Eventually(t, func() bool { return volumes() == 1 }, while, time.Second, "after %v: %v", limit, err)
		} else {
			require.Equal(t, 2, volumes())
		}
		require.NoError(t, h.RemoveLV(ctx, "vg-a", "new"))
	}
	require.Greater(t, cut, 4)
	t.Logf("%d were cut off", cut)
}

// A mount and a device above hold a volume as processes do.
func TestHeldFromAbove(t *testing.T) {
	ctx, dir := context.Background(), t.TempDir()
	image := fileSystem(t, dir, "above", content(1, testSize))
	h := NewHost("edge", Options{DM: []Definition{{Name: "disc", Linear: []Extent{{Device: image}}}}})
	v := volumeOf(t, h, Ref{DM, "disc"})
	require.NoError(t, v.Activate(ctx))
	f, err := v.Open(ctx, "")
	require.NoError(t, err)
	device := f.Name()
	require.NoError(t, f.Close())
	tool(t, "mount", "-o", "ro,noload", device, dir)
	var busy *BusyError
	require.ErrorAs(t, v.Release(ctx), &busy)
	require.Equal(t, []Holder{{Name: "mount " + dir}}, busy.Holders)
	tool(t, "umount", dir)
	tool(t, "dmsetup", "create", "above", "--readonly", "--table", "0 8 linear "+device+" 0")
	require.ErrorAs(t, v.Release(ctx), &busy)
	require.Equal(t, []Holder{{Name: "device-mapper device above"}}, busy.Holders)
	require.EqualError(t, busy, "volume dm:disc is held open by device-mapper device above")
	tool(t, "dmsetup", "remove", "--retry", "above")
	require.NoError(t, v.Release(ctx))
}

// The time that a volume takes besides lvm2's own.
func TestLVMOverhead(t *testing.T) {
	ctx := context.Background()
	group(t, "vg-a")
	h := NewHost("edge", Options{})
	var tools time.Duration
	commands := 0
	h.onTool = func(_ string, o output) { tools += o.took; commands++ }
	v := volumeOf(t, h, linear(t, "vg-a", "disc", content(5, testSize)))
	const rounds = 5
	var ours, opened, theirs, state time.Duration
	for range rounds {
		tools = 0
		begin := time.Now()
		require.NoError(t, v.Activate(ctx))
		took := time.Since(begin)
		f, err := v.Open(ctx, "")
		opened += time.Since(begin) - took
		require.NoError(t, err)
		ours += took - tools
		theirs += tools
		begin = time.Now()
		_, err = v.State(ctx)
		state += time.Since(begin)
		require.NoError(t, errors.Join(err, f.Close()))
		require.NoError(t, v.Release(ctx))
	}
	require.Equal(t, 2*rounds, commands, "one to activate, one to release")
	t.Logf("activate %v besides lvchange's %v; open %v; state of one held here %v", ours/rounds, theirs/rounds, opened/rounds, state/rounds)
}

func TestPool(t *testing.T) {
	ctx := context.Background()
	group(t, "vg-a")
	h := NewHost("edge", Options{})
	space, err := h.Space(ctx, "vg-a")
	require.NoError(t, err)
	require.Equal(t, space.Size, space.Free)
	_, err = h.Space(ctx, "none")
	require.Equal(t, NoSuchGroup, reason(t, err))
	_, err = h.ListLVs(ctx, "none")
	require.Equal(t, NoSuchGroup, reason(t, err))

	disc := content(6, testSize+100*sector)
	require.NoError(t, h.CreateLV(ctx, "vg-a", "disc", int64(len(disc))))
	require.Error(t, h.CreateLV(ctx, "vg-a", "disc", int64(len(disc))), "it is there")
	list, err := h.ListLVs(ctx, "vg-a")
	require.NoError(t, err)
	require.Len(t, list, 1)
	require.NotEmpty(t, list[0].UUID)
	require.Equal(t, LVInfo{Name: "disc", UUID: list[0].UUID, Size: 8 << 20, Active: true, Incomplete: true, Tags: []string{h.incompleteTag()}}, list[0])
	f, err := h.OpenForWriting(ctx, "vg-a", "disc")
	require.NoError(t, err)
	_, err = f.Write(disc)
	require.NoError(t, errors.Join(err, f.Sync()))
	var busy *BusyError
	require.ErrorAs(t, h.RemoveLV(ctx, "vg-a", "disc"), &busy)
	require.NoError(t, f.Close())
	require.NoError(t, h.FinishLV(ctx, "vg-a", "disc"))
	require.NoError(t, h.FinishLV(ctx, "vg-a", "disc"), "again")
	v := volumeOf(t, h, Ref{LVM, "vg-a/disc"})
	require.NoError(t, v.Release(ctx))
	list, err = h.ListLVs(ctx, "vg-a")
	require.NoError(t, err)
	require.Equal(t, LVInfo{Name: "disc", UUID: list[0].UUID, Size: 8 << 20}, list[0])
	_, err = h.OpenForWriting(ctx, "vg-a", "disc")
	require.Equal(t, NoSuchVolume, reason(t, err), "it is finished")

	require.NoError(t, v.Activate(ctx))
	r, err := v.Open(ctx, "")
	require.NoError(t, err)
	got := make([]byte, len(disc))
	_, err = io.ReadFull(r, got)
	require.NoError(t, errors.Join(err, r.Close()))
	require.True(t, bytes.Equal(disc, got))

	err = h.CreateLV(ctx, "vg-a", "huge", 1<<40)
	require.Equal(t, NoSpace, reason(t, err))
	require.Contains(t, err.Error(), "1048576 MiB")
	require.Equal(t, NoSuchGroup, reason(t, h.CreateLV(ctx, "none", "disc", 1)))
	require.Equal(t, NoSuchVolume, reason(t, h.FinishLV(ctx, "vg-a", "none")))
	require.NoError(t, h.RemoveLV(ctx, "vg-a", "disc"))
	require.NoError(t, h.RemoveLV(ctx, "vg-a", "disc"), "again")
	over, cancel := context.WithCancel(ctx)
	cancel()
	require.ErrorIs(t, h.CreateLV(over, "vg-a", "late", 1), context.Canceled)
	list, err = h.ListLVs(ctx, "vg-a")
	require.NoError(t, err)
	require.Empty(t, list)
}

// disks are two loop devices with this content.
func disks(t *testing.T, a, b []byte) (string, string) {
	t.Helper()
	dir := t.TempDir()
	attach := func(name string, b []byte) string {
		loop := tool(t, "losetup", "--find", "--show", "--read-only", file(t, dir, name, b))
		t.Cleanup(func() { tool(t, "losetup", "--detach", loop) })
		return loop
	}
	return attach("a", a), attach("b", b)
}

func TestDM(t *testing.T) {
	contract(t, func(t *testing.T) *subject {
		a, b, c := content(1, testSize), content(2, testSize), content(3, testSize)
		diskA, diskB := disks(t, a, b)
		path := file(t, t.TempDir(), "disc.iso", c)
		h := NewHost("edge", Options{DM: []Definition{
			{Name: "joined", Linear: []Extent{{Device: diskB, Start: sector, Length: 1 << 20}, {Device: path, Start: 2048}, {Device: diskA}}},
			{Name: "file", Linear: []Extent{{Device: path}}},
		}})
		joined := bytes.Join([][]byte{b[sector : sector+1<<20], c[2048:], a}, nil)
		s := &subject{
			host: h, ref: Ref{DM, "joined"}, content: joined,
			other: &subject{host: h, ref: Ref{DM, "file"}, content: c}, absent: Ref{DM, "none"},
		}
		s.foreign = func(t *testing.T) { // an agent that was killed
			require.NoError(t, volumeOf(t, NewHost("edge", h.options), s.ref).Activate(context.Background()))
		}
		t.Cleanup(func() {
			require.Eventually(t, func() bool {
				return !strings.Contains(tool(t, "losetup", "--list", "--noheadings", "--output", "BACK-FILE"), path)
			}, 5*time.Second, 10*time.Millisecond, "the file's loop devices went away by themselves")
		})
		return s
	})
}

// A table that doesn't fit its devices is refused with the figures, and leaves nothing.
func TestDMRefused(t *testing.T) {
	ctx := context.Background()
	disk, _ := disks(t, content(1, testSize), content(2, testSize))
	dir := t.TempDir()
	odd := file(t, dir, "odd", content(3, 4096+100))
	for name, c := range map[string]struct {
		extent Extent
		want   Reason
	}{
		"start":     {Extent{Device: disk, Start: 100}, Damaged},
		"length":    {Extent{Device: disk, Length: 100}, Damaged},
		"tail":      {Extent{Device: odd}, Damaged},
		"behind":    {Extent{Device: disk, Start: testSize}, Damaged},
		"too-long":  {Extent{Device: disk, Start: sector, Length: testSize}, Damaged},
		"negative":  {Extent{Device: disk, Start: -sector, Length: sector}, Damaged},
		"overflow":  {Extent{Device: disk, Start: 1 << 62, Length: 1 << 62}, Damaged},
		"missing":   {Extent{Device: "/dev/none"}, NotHere},
		"directory": {Extent{Device: dir}, Damaged},
	} {
		h := NewHost("edge", Options{DM: []Definition{{Name: name, Linear: []Extent{{Device: disk}, c.extent}}}})
		require.Equal(t, c.want, reason(t, volumeOf(t, h, Ref{DM, name}).Activate(ctx)), name)
	}
	h := NewHost("edge", Options{DM: []Definition{{Name: "neither"}}})
	require.Equal(t, Damaged, reason(t, volumeOf(t, h, Ref{DM, "neither"}).Activate(ctx)))
	left, err := dmNames("")
	require.NoError(t, err)
	require.Empty(t, left)

	// The kernel's own refusal: dm won't stand on a disk that is a mount.
	tool(t, "mke2fs", "-q", edge.Disks[0], "8M")
	mnt := t.TempDir()
	tool(t, "mount", edge.Disks[0], mnt)
	t.Cleanup(func() { tool(t, "umount", mnt) })
	h = NewHost("edge", Options{DM: []Definition{{Name: "mounted", Linear: []Extent{{Device: disk}, {Device: edge.Disks[0]}}}}})
	require.Equal(t, Damaged, reason(t, volumeOf(t, h, Ref{DM, "mounted"}).Activate(ctx)))
	left, err = dmNames("")
	require.NoError(t, err)
	require.Empty(t, left)
}

// Devices are told apart by their uuid and their table.
func TestDMOthers(t *testing.T) {
	ctx := context.Background()
	disk, other := disks(t, content(1, testSize), content(2, testSize))
	define := func(device string) Options {
		return Options{DM: []Definition{{Name: "disc", Linear: []Extent{{Device: device}}}}}
	}
	ref := Ref{DM, "disc"}
	mine := NewHost("edge", define(disk))
	require.NoError(t, volumeOf(t, mine, ref).Activate(ctx))
	t.Cleanup(func() { require.NoError(t, volumeOf(t, mine, ref).Release(ctx)) })

	// Somebody of another mark.
	stranger := volumeOf(t, NewHost("edge2", define(disk)), ref)
	require.Equal(t, Failed, reason(t, stranger.Activate(ctx)))
	require.Equal(t, Failed, reason(t, stranger.Release(ctx)))
	orphans, err := stranger.(*dmVolume).host.Orphans(ctx)
	require.NoError(t, err)
	require.Empty(t, orphans)

	// The configuration has changed.
	mine.Configure(define(other))
	require.Equal(t, Damaged, reason(t, volumeOf(t, mine, ref).Activate(ctx)))

	// A new agent of the same mark that doesn't know the volume any more.
	again := NewHost("edge", Options{})
	orphans, err = again.Orphans(ctx)
	require.NoError(t, err)
	require.Equal(t, []Ref{ref}, orphans)
	require.Equal(t, Undefined, reason(t, volumeOf(t, again, ref).Activate(ctx)))
	require.NoError(t, volumeOf(t, again, ref).Release(ctx))

	// What a kill between making and starting it leaves.
	require.NoError(t, dmCreate("trayd-disc", "TRAYD-edge-disc"))
	orphans, err = again.Orphans(ctx)
	require.NoError(t, err)
	require.Equal(t, []Ref{ref}, orphans)
	require.NoError(t, volumeOf(t, mine, ref).Activate(ctx))
	f, err := volumeOf(t, mine, ref).Open(ctx, "")
	require.NoError(t, err)
	got := make([]byte, testSize)
	_, err = io.ReadFull(f, got)
	require.NoError(t, errors.Join(err, f.Close()))
	require.True(t, bytes.Equal(content(2, testSize), got))
}

// What udev does about a device of ours, and how long one takes.
// Two agents that define the same name: one has it, and the other's failure takes nothing
// from it.
func TestDMTwoHosts(t *testing.T) {
	ctx := context.Background()
	disk, _ := disks(t, content(1, testSize), content(2, testSize))
	o := Options{DM: []Definition{{Name: "same", Linear: []Extent{{Device: disk}}}}}
	var both []Volume
	for _, mark := range []string{"one", "two"} {
		both = append(both, volumeOf(t, NewHost(mark, o), Ref{DM, "same"}))
	}
	for range 100 {
		errs, begin := make([]error, len(both)), make(chan struct{})
		var wg sync.WaitGroup
		for i, v := range both {
			wg.Go(func() { <-begin; errs[i] = v.Activate(ctx) })
		}
		close(begin)
		wg.Wait()
		require.False(t, errs[0] == nil && errs[1] == nil)
		require.True(t, errs[0] == nil || errs[1] == nil, "%v, %v", errs[0], errs[1])
		for i, v := range both {
			if errs[i] == nil {
				st, err := v.State(ctx)
				require.NoError(t, err)
				require.True(t, st.Active)
				require.NoError(t, v.Release(ctx))
			}
		}
	}
}

func TestDMTime(t *testing.T) {
	ctx := context.Background()
	disk, _ := disks(t, content(1, testSize), nil)
	h := NewHost("edge", Options{DM: []Definition{{Name: "disc", Linear: []Extent{{Device: disk}}}}})
	v := volumeOf(t, h, Ref{DM, "disc"})
	t.Cleanup(func() { require.NoError(t, v.Release(ctx)) })
	const rounds = 20
	var on, off, state time.Duration
	for range rounds {
		begin := time.Now()
		require.NoError(t, v.Activate(ctx))
		f, err := v.Open(ctx, "")
		on += time.Since(begin)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		begin = time.Now()
		_, err = v.State(ctx)
		state += time.Since(begin)
		require.NoError(t, err)
		begin = time.Now()
		require.NoError(t, v.Release(ctx))
		off += time.Since(begin)
	}
	t.Logf("activate and open %v, state %v, release %v", on/rounds, state/rounds, off/rounds)
	require.NoError(t, v.Activate(ctx))
	tool(t, "udevadm", "settle")
	require.NoFileExists(t, "/dev/mapper/trayd-disc", "udev leaves it alone")
	semaphores, err := os.ReadFile("/proc/sysvipc/sem")
	require.NoError(t, err)
	require.Equal(t, 1, strings.Count(string(semaphores), "\n"), "no cookie is left")
}

// verity makes data and hashes, and returns the root hash.
func verity(t *testing.T, data, hashes string, args ...string) string {
	t.Helper()
	out := tool(t, append([]string{"veritysetup", "format", data, hashes}, args...)...)
	_, root, ok := strings.Cut(out, "Root hash:")
	require.True(t, ok, out)
	return strings.Fields(root)[0]
}

func TestVerity(t *testing.T) {
	contract(t, func(t *testing.T) *subject {
		dir, disc := t.TempDir(), content(1, testSize)
		data, hashes := file(t, dir, "disc.iso", disc), filepath.Join(dir, "hashes")
		diskData, _ := disks(t, disc, disc)
		both := file(t, dir, "both", disc) // hashes behind the data
		const offset = "4194304"
		small := filepath.Join(dir, "small")
		h := NewHost("edge", Options{DM: []Definition{
			{Name: "files", Verity: &Verity{Data: data, Hash: hashes, RootHash: verity(t, data, hashes)}},
			{Name: "both", Verity: &Verity{Data: both, Hash: both, HashOffset: testSize, RootHash: strings.ToUpper(verity(t, both, both, "--hash-offset", offset, "--data-blocks", "1024"))}},
			{Name: "disk", Verity: &Verity{Data: diskData, Hash: small, RootHash: verity(t, diskData, small, "--hash", "sha512", "--salt", "-", "--data-block-size", "512", "--hash-block-size", "1024")}},
		}})
		s := &subject{
			host: h, ref: Ref{DM, "files"}, content: disc,
			other: &subject{host: h, ref: Ref{DM, "both"}, content: disc}, absent: Ref{DM, "none"},
		}
		third := &subject{host: h, ref: Ref{DM, "disk"}, content: disc}
		v := third.volume(t)
		require.NoError(t, v.Activate(context.Background()))
		bad, err := h.Corrupted(context.Background(), third.ref)
		require.NoError(t, err)
		require.False(t, bad)
		require.NoError(t, v.Activate(context.Background()), "the same table")
		require.NoError(t, v.Release(context.Background()))
		return s
	})
}

// A flipped byte is an error to who reads it, and reported at once, once.
func TestVerityCorrupt(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	dir, disc := t.TempDir(), content(1, testSize)
	data, hashes := file(t, dir, "disc.iso", disc), filepath.Join(dir, "hashes")
	root := verity(t, data, hashes)
	h := NewHost("edge", Options{DM: []Definition{{Name: "disc", Verity: &Verity{Data: data, Hash: hashes, RootHash: root}}}})
	ref := Ref{DM, "disc"}
	v := volumeOf(t, h, ref)
	t.Cleanup(func() { require.NoError(t, v.Release(context.Background())) })

	type report struct {
		ref    Ref
		detail string
	}
	reports, over := make(chan report, 10), make(chan error)
	go func() { over <- h.Watch(ctx, func(r Ref, detail string) { reports <- report{r, detail} }) }()

	f, err := os.OpenFile(data, os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte{^disc[1<<20]}, 1<<20)
	require.NoError(t, errors.Join(err, f.Close()))
	for range 2 { // each time that it is active
		require.NoError(t, v.Activate(ctx))
		r, err := v.Open(ctx, "")
		require.NoError(t, err)
		_, err = r.ReadAt(make([]byte, 4096), 8192)
		require.NoError(t, err)
		bad, err := h.Corrupted(ctx, ref)
		require.NoError(t, err)
		require.False(t, bad)
		begin := time.Now()
		for range 3 {
			_, err = r.ReadAt(make([]byte, 4096), 1<<20)
			require.ErrorIs(t, err, unix.EIO)
		}
		select {
		case got := <-reports:
			t.Logf("reported %v after the read began: %s", time.Since(begin), got.detail)
			require.Equal(t, ref, got.ref)
			require.Contains(t, got.detail, "block 256 of its data")
		case <-time.After(5 * time.Second):
			require.Fail(t, "no report")
		}
		bad, err = h.Corrupted(ctx, ref)
		require.NoError(t, err)
		require.True(t, bad)
		require.NoError(t, r.Close())
		require.NoError(t, v.Release(ctx))
	}
	cancel()
	require.NoError(t, <-over)
	require.Empty(t, reports, "once each")
}

func TestVerityRefused(t *testing.T) {
	ctx := context.Background()
	dir, disc := t.TempDir(), content(1, testSize)
	data, hashes := file(t, dir, "disc.iso", disc), filepath.Join(dir, "hashes")
	root := verity(t, data, hashes)
	good, err := os.ReadFile(hashes)
	require.NoError(t, err)
	changed := func(at int, b ...byte) string {
		all := bytes.Clone(good)
		copy(all[at:], b)
		return file(t, dir, fmt.Sprintf("changed%d", at), all)
	}
	wrong := strings.Repeat("0", len(root))
	for name, c := range map[string]Verity{
		"root":      {Data: data, Hash: hashes, RootHash: wrong},
		"short":     {Data: data, Hash: hashes, RootHash: root[2:]},
		"nohex":     {Data: data, Hash: hashes, RootHash: "x" + root[1:]},
		"magic":     {Data: data, Hash: changed(0, 'V'), RootHash: root},
		"version":   {Data: data, Hash: changed(8, 2), RootHash: root},
		"type":      {Data: data, Hash: changed(12, 7), RootHash: root},
		"algorithm": {Data: data, Hash: changed(32, 'x'), RootHash: root},
		"block":     {Data: data, Hash: changed(64, 1), RootHash: root},
		"count":     {Data: data, Hash: changed(72, 1, 4), RootHash: root},
		"salt":      {Data: data, Hash: changed(80, 0xff, 0xff), RootHash: root},
		"cut":       {Data: data, Hash: file(t, dir, "cut", good[:8192]), RootHash: root},
		"small":     {Data: data, Hash: file(t, dir, "tiny", good[:100]), RootHash: root},
		"offset":    {Data: data, Hash: hashes, HashOffset: 100, RootHash: root},
		"behind":    {Data: data, Hash: hashes, HashOffset: 1 << 30, RootHash: root},
		"data":      {Data: file(t, dir, "less", disc[:testSize-4096]), Hash: hashes, RootHash: root},
	} {
		h := NewHost("edge", Options{DM: []Definition{{Name: name, Verity: &c}}})
		require.Equal(t, Damaged, reason(t, volumeOf(t, h, Ref{DM, name}).Activate(ctx)), name)
	}
	h := NewHost("edge", Options{DM: []Definition{{Name: "gone", Verity: &Verity{Data: data, Hash: dir + "/none", RootHash: root}}}})
	require.Equal(t, NotHere, reason(t, volumeOf(t, h, Ref{DM, "gone"}).Activate(ctx)))
	left, err := dmNames("")
	require.NoError(t, err)
	require.Empty(t, left)
}

// A file system on a logical volume that is found by its label.
func TestMountLabel(t *testing.T) {
	ctx, dir := context.Background(), t.TempDir()
	disc := content(1, testSize)
	image := fileSystem(t, dir, "isos", disc)
	tool(t, "dd", "if="+image, "of="+edge.Disks[0], "bs=1M", "conv=fsync")
	t.Cleanup(func() { tool(t, "wipefs", "--all", edge.Disks[0]) })
	tool(t, "udevadm", "settle")
	uuid := tool(t, "blkid", "-o", "value", "-s", "UUID", edge.Disks[0])
	h := NewHost("edge", Options{Dir: filepath.Join(dir, "mnt"), Mounts: []FileSystem{
		{Name: "label", Source: "LABEL=isos"}, {Name: "uuid", Source: "UUID=" + uuid, Type: "ext4"}, {Name: "device", Source: edge.Disks[0]},
	}})
	for _, name := range []string{"label", "uuid", "device"} {
		v := volumeOf(t, h, Ref{Mount, name})
		require.NoError(t, v.Activate(ctx))
		f, err := v.Open(ctx, "disc.iso")
		require.NoError(t, err)
		got := make([]byte, testSize)
		_, err = io.ReadFull(f, got)
		require.NoError(t, errors.Join(err, f.Close()))
		require.True(t, bytes.Equal(disc, got))
		require.NoError(t, v.Release(ctx))
	}
}

// TestMountNFS: an export of a server, which is this host's own.
func TestMountNFS(t *testing.T) {
	ctx, dir := context.Background(), t.TempDir()
	export := filepath.Join(dir, "export")
	require.NoError(t, os.Mkdir(export, 0o755))
	disc := content(1, testSize)
	require.NoError(t, os.WriteFile(filepath.Join(export, "disc.iso"), disc, 0o644))
	for _, file := range []string{"/etc/exports", "/var/lib/nfs/etab", "/var/lib/nfs/rmtab"} { // the maintainer script's
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		require.NoError(t, os.WriteFile(file, nil, 0o644))
	}
	tool(t, "modprobe", "nfsd")
	tool(t, "mount", "-t", "nfsd", "nfsd", "/proc/fs/nfsd")
	t.Cleanup(func() { tool(t, "umount", "/proc/fs/nfsd") })
	tool(t, "exportfs", "-o", "ro,insecure,no_root_squash,no_subtree_check,fsid=1", "127.0.0.1:"+export)
	t.Cleanup(func() { tool(t, "exportfs", "-au") })
	mountd := exec.Command("/usr/sbin/rpc.mountd", "--foreground", "--no-nfs-version", "2", "--no-nfs-version", "3")
	require.NoError(t, mountd.Start())
	t.Cleanup(func() { _ = mountd.Process.Kill(); _ = mountd.Wait() })
	tool(t, "rpc.nfsd", "--no-nfs-version", "3", "--host", "127.0.0.1", "1")
	t.Cleanup(func() { tool(t, "rpc.nfsd", "0") })
	// A server that has just started makes readers wait for those of before: 90 s.
	require.NoError(t, os.WriteFile("/proc/fs/nfsd/v4_end_grace", []byte("Y"), 0))

	h := NewHost("edge", Options{Dir: filepath.Join(dir, "mnt"), Mounts: []FileSystem{
		{Name: "nas", Source: "127.0.0.1:" + export}, {Name: "typed", Source: "localhost:" + export, Type: "nfs4", Options: "soft,timeo=50"},
		{Name: "none", Source: "127.0.0.1:/no/such/export", Options: "soft,timeo=50"},
	}})
	for _, name := range []string{"nas", "typed"} {
		v := volumeOf(t, h, Ref{Mount, name})
		require.NoError(t, v.Activate(ctx), name)
		f, err := v.Open(ctx, "disc.iso")
		require.NoError(t, err)
		got := make([]byte, testSize)
		_, err = io.ReadFull(f, got)
		require.NoError(t, err)
		require.True(t, bytes.Equal(disc, got))
		var busy *BusyError
		require.NoError(t, f.Close())
		held := exec.Command("/bin/sleep", "60")
		held.Dir = filepath.Join(dir, "mnt", name)
		require.NoError(t, held.Start())
		require.ErrorAs(t, v.Release(ctx), &busy)
		require.NoError(t, held.Process.Kill())
		_ = held.Wait() // killed
		require.NoError(t, v.Release(ctx))
		st, err := v.State(ctx)
		require.NoError(t, err)
		require.False(t, st.Active)
	}
	var refused *Error
	require.ErrorAs(t, volumeOf(t, h, Ref{Mount, "none"}).Activate(ctx), &refused)
	require.NotEmpty(t, refused.Next)
}
