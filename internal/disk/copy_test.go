package disk

import (
	"context"
	"errors"
	"io"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// mounted is a file system of its own in a file, with a directory for the test.
func (w *workshop) mounted(fstype string) string {
	w.t.Helper()
	image, mnt := w.raw(fstype, 200<<20, ""), w.path("on-"+fstype)
	require.NoError(w.t, os.Mkdir(mnt, 0o755))
	switch fstype {
	case "tmpfs":
		w.run("", "mount", "-t", "tmpfs", "tmpfs", mnt)
	default:
		w.run("", "mkfs."+fstype, "-q", image)
		w.run("", "mount", "-o", "loop", image, mnt)
	}
	w.t.Cleanup(func() { w.run("", "umount", mnt) })
	return mnt
}

// pair opens two files: one with data and holes, and one with something else.
func (w *workshop) pair(from, to string) (dst, src *os.File) {
	w.t.Helper()
	var err error
	src, err = os.Create(from + "/src")
	require.NoError(w.t, err)
	w.t.Cleanup(func() { src.Close() })
	for _, at := range []int64{0, 5 * mib, 23*mib + 4096} {
		b := make([]byte, 2*mib+5)
		for i := range b {
			b[i] = byte(at + int64(i)*7)
		}
		_, err = src.WriteAt(b, at)
		require.NoError(w.t, err)
	}
	require.NoError(w.t, src.Truncate(40*mib+3))
	require.NoError(w.t, src.Sync())
	dst, err = os.Create(to + "/dst")
	require.NoError(w.t, err)
	w.t.Cleanup(func() { dst.Close() })
	_, err = dst.WriteAt(make([]byte, 100), 60*mib)
	require.NoError(w.t, err)
	return dst, src
}

func blocks(t *testing.T, f *os.File) int64 {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Fstat(int(f.Fd()), &st))
	return st.Blocks * 512
}

// TestCopy: a copy has the same bytes and the same holes, or shares its blocks.
func TestCopy(t *testing.T) {
	w := newWorkshop(t)
	ext4, btrfs, tmpfs := w.mounted("ext4"), w.mounted("btrfs"), w.mounted("tmpfs")
	for _, row := range []struct {
		name, from, to string
		shared         bool
	}{
		{"ext4", ext4, ext4, false},
		{"btrfs", btrfs, btrfs, true},
		{"from ext4 to btrfs", ext4, btrfs, false},
		{"from tmpfs to ext4", tmpfs, ext4, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			dst, src := w.pair(row.from, row.to)
			var told []int64
			require.NoError(t, Copy(t.Context(), dst, src, func(n int64) { told = append(told, n) }))
			want, err := os.ReadFile(src.Name())
			require.NoError(t, err)
			got, err := os.ReadFile(dst.Name())
			require.NoError(t, err)
			require.True(t, string(want) == string(got), "the same bytes")
			require.EqualValues(t, len(want), told[len(told)-1])
			require.IsIncreasing(t, told)
			require.InDelta(t, 3*2*mib, blocks(t, dst), mib, "the holes are holes")
			if row.shared {
				require.Contains(t, w.run("", "filefrag", "-v", dst.Name()), "shared")
			}
		})
	}
}

// TestCopyEnds: a copy ends with its context, and says what the disk says.
func TestCopyEnds(t *testing.T) {
	w := newWorkshop(t)
	dst, src := w.pair(w.dir, w.dir)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("nobody wants it any more")
	err := Copy(ctx, dst, src, func(int64) { cancel(why) })
	require.ErrorIs(t, err, why)
	require.ErrorIs(t, Copy(ctx, dst, src, nil), context.Canceled)

	full := w.path("full")
	require.NoError(t, os.Mkdir(full, 0o755))
	require.NoError(t, unix.Mount("tmpfs", full, "tmpfs", 0, "size=3m"))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(full, 0)) })
	small, err := os.Create(full + "/dst")
	require.NoError(t, err)
	defer small.Close()
	require.ErrorIs(t, Copy(t.Context(), small, src, nil), unix.ENOSPC)

	empty, err := os.Create(w.path("empty"))
	require.NoError(t, err)
	defer empty.Close()
	require.NoError(t, Copy(t.Context(), dst, empty, nil))
	n, err := dst.Seek(0, io.SeekEnd)
	require.NoError(t, err)
	require.Zero(t, n)
}
