package library

import (
	"bytes"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/internal/wire"
)

// TestClone: on a file system that can, an image shares the blocks of its file and is
// another file all the same.
func TestClone(t *testing.T) {
	run := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		require.NoError(t, err, "%v: %s", args, out)
		return string(out)
	}
	dir := t.TempDir()
	image, mnt := filepath.Join(dir, "btrfs"), filepath.Join(dir, "mnt")
	require.NoError(t, os.WriteFile(image, nil, 0o600))
	require.NoError(t, os.Truncate(image, 200<<20)) // of which 100 are left for files
	require.NoError(t, os.Mkdir(mnt, 0o755))
	run("mkfs.btrfs", "-q", image)
	run("mount", "-o", "loop", image, mnt)
	t.Cleanup(func() { run("umount", mnt) })

	r := newRig(t, func(o *Options) { o.Pools[0].Path = filepath.Join(mnt, "pool") })
	b := big(t, 70<<20)
	path := filepath.Join(mnt, "mine.iso")
	require.NoError(t, os.WriteFile(path, b, 0o644))
	run("sync", "-f", path)
	add := func(name string, size int64) (Image, error) {
		f, err := os.Open(path)
		require.NoError(t, err)
		defer f.Close()
		require.True(t, r.CanClone("local", f))
		require.False(t, r.CanClone("fast", f))
		return r.Upload(t.Context(), Request{Name: name, Pool: "local", Checksum: hexOf(b)}, f, size)
	}
	_, err := add("short", int64(len(b))-1)
	require.Equal(t, Invalid, code(err))
	i, err := add("mine", int64(len(b)))
	require.NoError(t, err)
	require.Contains(t, run("filefrag", "-v", i.Place), "shared")
	require.NoError(t, os.WriteFile(path, []byte("something else"), 0o644))
	_, err = r.Verify(t.Context(), "", "mine")
	require.NoError(t, err, "whoever has the file has no hand in the image")

	elsewhere, err := os.Open(image)
	require.NoError(t, err)
	defer elsewhere.Close()
	require.False(t, r.CanClone("local", elsewhere))
}

// TestDiskFull: a disk that fills up in the middle is a failure of its own, and is empty
// again afterwards.
func TestDiskFull(t *testing.T) {
	mnt := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", mnt, "tmpfs", 0, "size=4m"))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(mnt, 0)) })
	b := big(t, 8<<20)
	s := newServer(t, map[string][]byte{"/big.iso": b})
	r := newRig(t, func(o *Options) { o.Pools[0].Path = filepath.Join(mnt, "pool") })
	known := r.add(Request{Name: "known", URLs: []string{s.URL + "/big.iso"}})
	s.set(func(w http.ResponseWriter, _ *http.Request) bool { // without its length
		for at := 0; at < len(b); at += 1 << 20 {
			_, _ = w.Write(b[at:min(at+1<<20, len(b))])
			w.(http.Flusher).Flush()
		}
		return true
	})
	unknown := r.add(Request{Name: "unknown", URLs: []string{s.URL + "/big.iso"}})
	for _, i := range []Image{known, unknown} {
		require.Equal(t, wire.ImageFailed, i.State)
		require.Equal(t, NoSpace, i.Failure.Code, i.Failure.Cause)
		require.NotEmpty(t, i.Failure.Remedy)
	}
	_, err := r.Upload(t.Context(), Request{Name: "up"}, bytes.NewReader(b), -1)
	require.Equal(t, NoSpace, code(err))
	require.Empty(t, r.left())
	s.set(nil)
	small := disc(t, "SMALL")
	_, err = r.Upload(t.Context(), Request{Name: "small"}, bytes.NewReader(small), int64(len(small)))
	require.NoError(t, err)
}
