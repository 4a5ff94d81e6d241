package machine

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/disk"
	"github.com/trayd/trayd/internal/wire"
)

func quiet(string) {}

// TestWholeOrNot: a machine that can't be filled leaves nothing, and what a death left at
// any step is gone after Tidy.
func TestWholeOrNot(t *testing.T) {
	s := Store{filepath.Join(t.TempDir(), "machines")}
	d := complete(t, &Definition{Name: "m"})
	fill := func(dir string) error { return os.WriteFile(filepath.Join(dir, "disk0.qcow2"), []byte("x"), 0o600) }

	broken := errors.New("no room")
	require.ErrorIs(t, s.Create(d, func(dir string) error { return errors.Join(fill(dir), broken) }, quiet), broken)
	require.Empty(t, all(t, s))

	for _, at := range []string{"filled", "written"} {
		func() {
			defer func() { require.Equal(t, "killed", recover()) }()
			_ = s.Create(d, fill, func(step string) {
				if step == at {
					panic("killed")
				}
			})
		}()
		names, err := s.Names()
		require.NoError(t, err)
		require.Empty(t, names, "no half machine is seen")
		_, err = s.Load("m")
		require.ErrorIs(t, err, ErrNoMachine)
	}
	require.NotEmpty(t, all(t, s))
	require.NoError(t, s.Tidy())
	require.Empty(t, all(t, s))

	require.NoError(t, s.Create(d, fill, quiet))
	require.ErrorIs(t, s.Create(d, fill, quiet), ErrExists)
	back, err := s.Load("m")
	require.NoError(t, err)
	require.Equal(t, d, back)
	st, err := os.Stat(s.Path("m", definitionFile))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), st.Mode())

	func() {
		defer func() { require.Equal(t, "killed", recover()) }()
		_ = s.Remove("m", func(string) { panic("killed") })
	}()
	require.False(t, s.Has("m"))
	require.NoError(t, s.Tidy())
	require.Empty(t, all(t, s))
	require.ErrorIs(t, s.Remove("m", quiet), ErrNoMachine)
}

func all(t *testing.T, s Store) []os.DirEntry {
	t.Helper()
	list, err := os.ReadDir(s.Dir)
	require.NoError(t, err)
	return list
}

// TestNoOutside: names that lead elsewhere are no machines.
func TestNoOutside(t *testing.T) {
	s := Store{t.TempDir()}
	for _, name := range []string{"..", ".", "", "a/../..", "/etc"} {
		require.False(t, s.Has(name))
		_, err := s.Load(name)
		require.Error(t, err)
		require.Error(t, s.Remove(name, func(string) {}))
	}
}

// TestDisks: qemu-img's disks are what they are taken for, untouched until something is
// written to them.
func TestDisks(t *testing.T) {
	dir, img := t.TempDir(), Images{"qemu-img"}
	ctx := context.Background()
	k := wire.Disk{Name: "disk0", Format: wire.FormatQCOW2, Size: 20 << 30}
	require.NoError(t, img.Blank(ctx, dir, k))
	file := filepath.Join(dir, "disk0.qcow2")
	isWritten := func(file string) bool {
		w, err := disk.Written(file)
		require.NoError(t, err)
		return w
	}
	require.False(t, isWritten(file))
	st, err := os.Stat(file)
	require.NoError(t, err)
	require.Less(t, st.Size(), int64(freshQCOW2), "sparse")

	linked := wire.Disk{Name: "disk1", Format: wire.FormatQCOW2, Size: 30 << 30, Linked: true, Base: file, BaseFormat: "qcow2"}
	require.NoError(t, img.Link(dir, linked))
	require.False(t, isWritten(filepath.Join(dir, "disk1.qcow2")))

	require.NoError(t, img.Grow(ctx, file, 40<<30))
	require.False(t, isWritten(file))
	require.NoError(t, exec.Command("qemu-io", "-c", "write 30G 512", file).Run())
	require.True(t, isWritten(file))

	var space *SpaceError
	require.ErrorAs(t, img.Blank(ctx, dir, wire.Disk{Name: "big", Format: wire.FormatQCOW2, Size: 60 << 40}), &space)
	require.NoFileExists(t, filepath.Join(dir, "big.qcow2"))
	var none *NoQEMUError
	require.ErrorAs(t, Images{"no-such-qemu-img"}.Blank(ctx, dir, k), &none)
	require.ErrorContains(t, img.Grow(ctx, filepath.Join(dir, "none"), 1), "qemu-img resize")
	_, err = disk.Written("/etc/passwd")
	require.Error(t, err)
}

// TestSettle: what a change was about to make or to remove goes when the definition doesn't
// have it, and no other file does.
func TestSettle(t *testing.T) {
	s := Store{t.TempDir()}
	disk := func(name string) wire.Disk { return wire.Disk{Name: name, Size: 1 << 30} }
	d := complete(t, &Definition{Name: "m", Disks: []wire.Disk{disk("kept"), disk("new")}})
	require.NoError(t, s.Create(d, func(string) error { return nil }, func(string) {}))
	for _, f := range []string{"kept.qcow2", "new.qcow2", "old.qcow2", "by-hand.qcow2"} {
		require.NoError(t, os.WriteFile(s.Path("m", f), nil, 0o600))
	}
	require.NoError(t, s.Changing("m", complete(t, &Definition{Disks: []wire.Disk{disk("new"), disk("old")}}).Disks))
	require.NoError(t, s.Tidy())
	var left []string
	list, err := os.ReadDir(s.Path("m"))
	require.NoError(t, err)
	for _, e := range list {
		left = append(left, e.Name())
	}
	require.Equal(t, []string{"by-hand.qcow2", "kept.qcow2", "machine.toml", "new.qcow2"}, left)
}
