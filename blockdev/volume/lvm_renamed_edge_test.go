//go:build edge

package volume

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// A volume that somebody renames is still the disc that was asked for, and is let go of all the
// same, whether it was being activated, was active, or was being let go of. No other is: not
// the one that has its name now.
func TestLVMRenamed(t *testing.T) {
	ctx := context.Background()
	group(t, "vg-a")
	h := NewHost("edge", Options{})
	disc, other := content(4, testSize), content(5, testSize)
	v := volumeOf(t, h, linear(t, "vg-a", "disc", disc))
	linear(t, "vg-a", "other", other)
	rename := func(from, to string) { tool(t, "lvrename", "vg-a/"+from, "vg-a/"+to) }
	active := func(want ...string) {
		t.Helper()
		names, err := dmNames("")
		require.NoError(t, err)
		require.ElementsMatch(t, want, names)
	}
	reads := func(want []byte) {
		t.Helper()
		st, err := v.State(ctx)
		require.NoError(t, err)
		require.True(t, st.Active)
		f, err := v.Open(ctx, "")
		require.NoError(t, err)
		got := make([]byte, testSize)
		_, err = io.ReadFull(f, got)
		require.NoError(t, errors.Join(err, f.Close()))
		require.True(t, bytes.Equal(want, got))
	}
	// afterTool does something as soon as a command of lvm2's has ended, once.
	afterTool := func(do func()) {
		h.onTool = func(string, output) { h.onTool = nil; do() }
	}

	afterTool(func() { rename("disc", "a-way") })
	err := activate(ctx, v)
	require.Equal(t, NoSuchVolume, reason(t, err))
	require.ErrorContains(t, err, "it was renamed to vg-a/a-way after trayd had activated it")
	active()
	require.Equal(t, NoSuchVolume, reason(t, activate(ctx, v)))
	rename("a-way", "disc")

	afterTool(func() {
		rename("disc", "a-way")
		rename("other", "disc")
		tool(t, "lvchange", "--activate", "y", "vg-a/disc")
	})
	require.Equal(t, NoSuchVolume, reason(t, activate(ctx, v)))
	active("vg--a-disc") // whose it is nobody here can know
	require.NoError(t, activate(ctx, v), "it is a disc of this name")
	reads(other)
	require.Empty(t, h.DeviceUUID(v.Ref()), "somebody else's")
	tool(t, "lvchange", "--activate", "n", "vg-a/disc")
	rename("disc", "other")
	rename("a-way", "disc")

	require.NoError(t, activate(ctx, v))
	rename("disc", "a-way")
	reads(disc)
	require.NoError(t, v.Release(ctx))
	active()
	rename("a-way", "disc")

	require.NoError(t, activate(ctx, v))
	rename("disc", "a-way")
	rename("other", "disc")
	tool(t, "lvchange", "--activate", "y", "vg-a/disc")
	reads(disc)
	f, err := v.Open(ctx, "")
	require.NoError(t, err)
	require.Equal(t, NoSuchVolume, reason(t, activate(ctx, v)), "for another drive")
	require.Equal(t, NoSuchVolume, reason(t, h.CreateLV(ctx, "vg-a", "disc", testSize)))
	var busy *BusyError
	require.ErrorAs(t, v.Release(ctx), &busy)
	require.Equal(t, NoSuchVolume, reason(t, h.RemoveLV(ctx, "vg-a", "disc")))
	st, err := v.State(ctx)
	require.NoError(t, err)
	require.Equal(t, State{Active: true, Renamed: "vg-a/a-way"}, st)
	reads(disc)
	require.NoError(t, f.Close())
	require.NoError(t, h.RemoveLV(ctx, "vg-a", "disc"), "turned off, and nothing removed")
	active("vg--a-disc")
	rename("disc", "other")
	rename("a-way", "disc")
	require.NoError(t, activate(ctx, v))
	rename("disc", "a-way")
	rename("other", "disc")
	tool(t, "lvchange", "--activate", "y", "vg-a/disc")
	require.NoError(t, v.Release(ctx))
	active("vg--a-disc")
	require.NoError(t, activate(ctx, v))
	reads(other)
	require.NoError(t, v.Release(ctx))
	active()
	rename("disc", "other")
	rename("a-way", "disc")

	// The group, too.
	require.NoError(t, activate(ctx, v))
	tool(t, "vgrename", "vg-a", "vg--b")
	tool(t, "lvrename", "vg--b/disc", "vg--b/a-way")
	reads(disc)
	require.NoError(t, v.Release(ctx))
	active()
	tool(t, "lvrename", "vg--b/a-way", "vg--b/disc")
	tool(t, "vgrename", "vg--b", "vg-a")

	// Somebody else turns it off: it is gone, whatever has its name.
	require.NoError(t, activate(ctx, v))
	rename("disc", "a-way")
	tool(t, "lvchange", "--activate", "n", "vg-a/a-way")
	rename("other", "disc")
	tool(t, "lvchange", "--activate", "y", "vg-a/disc")
	require.NoError(t, v.Release(ctx))
	active("vg--a-disc")
	tool(t, "lvchange", "--activate", "n", "vg-a/disc")
	rename("disc", "other")
	rename("a-way", "disc")

	// One that is idle doesn't keep its name.
	require.NoError(t, activate(ctx, v))
	rename("disc", "a-way")
	require.Equal(t, NoSuchVolume, reason(t, activate(ctx, v)))
	active()
	rename("a-way", "disc")

	// A trayd after this one is told, or sees it.
	require.NoError(t, activate(ctx, v))
	seeing := NewHost("edge", Options{})
	seeing.Adopt(v.Ref(), "")
	require.Equal(t, h.DeviceUUID(v.Ref()), seeing.DeviceUUID(v.Ref()))
	next := NewHost("edge", Options{})
	next.Adopt(v.Ref(), h.DeviceUUID(v.Ref()))
	v = volumeOf(t, next, v.Ref())
	rename("disc", "a-way")
	reads(disc)
	require.NoError(t, v.Release(ctx))
	active()

	// One that is being made.
	afterTool(func() { rename("new", "a-new") })
	require.Equal(t, NoSuchVolume, reason(t, h.CreateLV(ctx, "vg-a", "new", testSize)))
	active()
	list, err := h.ListLVs(ctx, "vg-a")
	require.NoError(t, err)
	require.True(t, slices.ContainsFunc(list, func(i LVInfo) bool { return i.Name == "a-new" && i.Incomplete && !i.Active }), list)
}
