//go:build edge

package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/edge"
)

// These need device-mapper and lvm2, which an edge host has.

// group makes a volume group on both empty disks.
func group(t *testing.T, vg string) {
	t.Helper()
	tool(t, "pvcreate", "--yes", edge.Disks[0], edge.Disks[1]) // whatever an earlier test left there
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
		require.Equal(t, want, reason(t, activate(ctx, v)), name)
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
		require.NoError(t, activate(ctx, v))
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
	require.Equal(t, Failed, reason(t, activate(ctx, v)))
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
	require.Equal(t, NotHere, reason(t, activate(context.Background(), volumeOf(t, h, Ref{LVM, "vg/lv"}))))
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
	require.NoError(t, activate(ctx, v))
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
		err := activate(short, v)
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
	require.NoError(t, activate(ctx, v))
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
		require.NoError(t, activate(ctx, v))
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

	require.NoError(t, activate(ctx, v))
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
