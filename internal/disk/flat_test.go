package disk

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"
)

// flattened writes a disk, and what it stands on, as one image.
func (w *workshop) flattened(name string, format Format, size int64, base ...string) string {
	w.t.Helper()
	ctx := context.Background()
	extents, err := Tool("qemu-img").Map(ctx, w.path(name), format)
	require.NoError(w.t, err)
	var files []io.ReaderAt
	for _, file := range append([]string{name}, base...) {
		f, err := os.Open(w.path(file))
		require.NoError(w.t, err)
		w.t.Cleanup(func() { f.Close() })
		files = append(files, f)
	}
	f, err := NewFlat(ctx, files, extents, size)
	require.NoError(w.t, err)
	to := w.path(name + ".flat")
	out, err := os.Create(to)
	require.NoError(w.t, err)
	defer out.Close()
	n, err := io.CopyBuffer(struct{ io.Writer }{out}, struct{ io.Reader }{f}, make([]byte, 100_000))
	require.NoError(w.t, err)
	require.Equal(w.t, f.Size(), n)
	return to
}

// TestFlat: QEMU finds the image sound, and the same as the disk that it was made of.
func TestFlat(t *testing.T) {
	w := newWorkshop(t)
	const mib = 1 << 20
	w.create("empty", 20<<30, "")
	w.write(w.create("plain", 64*mib, ""), "write -P 7 1M 2M", "write -P 8 3000K 5K", "write -P 9 63M 1M", "write -z 1M 64K", "write -P 0 20M 1M")
	w.write(w.create("small-clusters", 8*mib, "cluster_size=512"), "write -P 7 1M 700", "write -P 8 100K 3K", "discard 1M 512")
	w.write(w.create("large-clusters", 64*mib, "cluster_size=2M"), "write -P 7 1M 1M")
	w.write(w.create("odd", 10*mib+512, ""), "write -P 7 10M 512", "write -P 3 0 512")
	w.write(w.create("far", 8<<40, ""), "write -P 7 0 64K", "write -P 8 1T 3M", "write -P 9 8191G 64M")
	w.write(w.create("overlay", 80*mib, "", "-b", w.path("plain"), "-F", "qcow2"), "write -P 1 2M 128K", "write -z 62M 2M", "write -P 2 70M 1M")
	for _, row := range []struct {
		name string
		size int64
		base []string
	}{
		{"empty", 20 << 30, nil}, {"plain", 64 * mib, nil}, {"small-clusters", 8 * mib, nil}, {"large-clusters", 64 * mib, nil},
		{"odd", 10*mib + 512, nil}, {"far", 8 << 40, nil}, {"overlay", 80 * mib, []string{"plain"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			to := w.flattened(row.name, QCOW2, row.size, row.base...)
			w.run("", "qemu-img", "check", "-q", "-f", "qcow2", to)
			w.run("", "qemu-img", "compare", "-q", "-f", "qcow2", "-F", "qcow2", w.path(row.name), to)
			f, err := os.Open(to)
			require.NoError(t, err)
			defer f.Close()
			st, err := f.Stat()
			require.NoError(t, err)
			info, err := Probe(f, st.Size())
			require.NoError(t, err)
			require.Equal(t, row.size, info.VirtualSize)
			written, err := Written(to)
			require.NoError(t, err)
			require.Equal(t, row.name != "empty", written)
		})
	}
	require.Less(t, w.size("plain.flat"), int64(4*mib)+10*clusterSize, "zeros are left out")
}

func TestFlatIsAReader(t *testing.T) {
	w := newWorkshop(t)
	w.write(w.create("disk", 1<<20, ""), "write -P 7 100K 200K")
	extents, err := Tool("qemu-img").Map(context.Background(), w.path("disk"), QCOW2)
	require.NoError(t, err)
	file, err := os.Open(w.path("disk"))
	require.NoError(t, err)
	defer file.Close()
	whole := func() []byte {
		f, err := NewFlat(context.Background(), []io.ReaderAt{file}, extents, 1<<20)
		require.NoError(t, err)
		b, err := io.ReadAll(f)
		require.NoError(t, err)
		return b
	}
	f, err := NewFlat(context.Background(), []io.ReaderAt{file}, extents, 1<<20)
	require.NoError(t, err)
	require.NoError(t, iotest.TestReader(struct{ io.Reader }{f}, whole()))
}

// TestNotFlat: what is compressed is somebody else's to read; nonsense is refused.
func TestNotFlat(t *testing.T) {
	w := newWorkshop(t)
	w.write(w.create("disk", 1<<20, ""), "write -P 7 100K 200K")
	w.run("", "qemu-img", "convert", "-c", "-O", "qcow2", w.path("disk"), w.path("compressed"))
	extents, err := Tool("qemu-img").Map(context.Background(), w.path("compressed"), QCOW2)
	require.NoError(t, err)
	_, err = NewFlat(context.Background(), []io.ReaderAt{nil}, extents, 1<<20)
	require.ErrorIs(t, err, ErrNotPlain)
	at := int64(0)
	for _, bad := range [][]Extent{
		{{Start: -1, Length: 5, Data: true, Offset: &at}},
		{{Start: 0, Length: 1<<20 + 1, Data: true, Offset: &at}},
		{{Start: 5, Length: 5, Data: true, Offset: &at}, {Start: 9, Length: 5, Data: true, Offset: &at}},
	} {
		_, err := NewFlat(context.Background(), []io.ReaderAt{nil}, bad, 1<<20)
		require.ErrorContains(t, err, "contradict")
	}
	_, err = Tool("qemu-img").Map(context.Background(), filepath.Join(t.TempDir(), "none"), QCOW2)
	require.Error(t, err)
}
