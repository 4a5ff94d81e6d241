package library

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
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
