package volume

import (
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// tree has a file at in/a/b/file and another at out/secret; the root is in.
func tree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "in/a/b"), 0o755))
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "out"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "in/a/b/file"), []byte("inside"), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "out/secret"), []byte("outside"), 0o644))
	return dir
}

func TestOpenBeneath(t *testing.T) {
	dir := tree(t)
	root := filepath.Join(dir, "in")
	for link, target := range map[string]string{
		"file": "a/b/file", "a/up": "../a/b", "a/b/self": "file", "twice": "a/up/self", "dir": "a/b/", "dot": "./a/.//b/./file",
		"out": "../out", "a/out": "../../out/secret", "abs": filepath.Join(root, "a/b/file"), "absdir": filepath.Join(root, "a"),
		"loop": "loop", "round": "a/round", "a/round": "../round", "dangling": "a/none", "back": "a/../a/b/file", "out-and-in": "../in/a/b/file",
	} {
		require.NoError(t, os.Symlink(target, filepath.Join(root, link)))
	}
	require.NoError(t, unix.Mkfifo(filepath.Join(root, "fifo"), 0o644))
	for _, rel := range []string{"a/b/file", "file", "a/up/file", "a/b/self", "twice", "dir/file", "dot", "back", "a/b/../../file", "./a//b/file", "fifo"} {
		f, err := OpenBeneath(root, rel)
		require.NoError(t, err, rel)
		if rel != "fifo" {
			got, err := io.ReadAll(f)
			require.NoError(t, err, rel)
			require.Equal(t, "inside", string(got), rel)
		}
		require.Equal(t, filepath.Join(root, rel), f.Name())
		require.NoError(t, f.Close())
	}
	for rel, want := range map[string]error{
		"../out/secret": unix.EXDEV, "a/../../out/secret": unix.EXDEV, "..": unix.EXDEV, "a/b/../../..": unix.EXDEV, "out/secret": unix.EXDEV, "a/out": unix.EXDEV,
		"abs": unix.EXDEV, "absdir/b/file": unix.EXDEV, "/etc/passwd": unix.EXDEV, "out-and-in": unix.EXDEV, "loop": unix.ELOOP, "round": unix.ELOOP,
		"dangling": unix.ENOENT, "none/file": unix.ENOENT, "a/b/file/x": unix.ENOTDIR, "a/b/file/": unix.ENOTDIR,
	} {
		_, err := OpenBeneath(root, rel)
		require.ErrorIs(t, err, want, rel)
	}
	for _, rel := range []string{"", ".", "a", "a/", "a/b/..", "dir"} { // as open(2) has it
		f, err := OpenBeneath(root, rel)
		require.NoError(t, err, rel)
		info, err := f.Stat()
		require.NoError(t, err)
		require.True(t, info.IsDir(), rel)
		require.NoError(t, f.Close())
	}
	_, err := OpenBeneath(filepath.Join(dir, "none"), "file")
	require.ErrorIs(t, err, unix.ENOENT)
	require.ErrorContains(t, err, filepath.Join(dir, "none"))
}

// TestOpenBeneathUnreadable: who may pass through a directory needn't be able to read it.
func TestOpenBeneathUnreadable(t *testing.T) {
	dir := tree(t)
	for _, path := range []string{filepath.Dir(dir), dir} {
		require.NoError(t, os.Chmod(path, 0o755))
	}
	for _, path := range []string{"in/a/b", "in/a", "in"} {
		require.NoError(t, os.Chmod(filepath.Join(dir, path), 0o311))
		t.Cleanup(func() { _ = os.Chmod(filepath.Join(dir, path), 0o755) }) // else it can't be removed
	}
	var read, opened error
	var f *os.File
	var done sync.WaitGroup
	done.Go(func() {
		runtime.LockOSThread() // for good: the thread, which is another user's from here on, ends
		if os.Getuid() == 0 {
			if read = unix.Setfsuid(65534); read != nil {
				return
			}
		}
		_, read = os.ReadDir(filepath.Join(dir, "in/a"))
		f, opened = OpenBeneath(filepath.Join(dir, "in"), "a/b/file")
	})
	done.Wait()
	require.ErrorIs(t, read, unix.EACCES)
	require.NoError(t, opened)
	require.NoError(t, f.Close())
}

// TestOpenBeneathRaces: somebody exchanges a directory for a link that leads out, and back,
// all the time. What is opened is inside, or there is an error.
func TestOpenBeneathRaces(t *testing.T) {
	dir := tree(t)
	root := filepath.Join(dir, "in")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "out/file"), []byte("outside"), 0o644))
	require.NoError(t, os.Symlink("../../out", filepath.Join(root, "a/c")))
	b, c := filepath.Join(root, "a/b"), filepath.Join(root, "a/c")
	var end atomic.Bool
	ended := make(chan error)
	go func() {
		var err error
		for !end.Load() && err == nil {
			err = unix.Renameat2(unix.AT_FDCWD, b, unix.AT_FDCWD, c, unix.RENAME_EXCHANGE)
		}
		ended <- err
	}()
	opened, refused := 0, 0
	for range 20_000 {
		f, err := OpenBeneath(root, "a/b/file")
		if err != nil {
			require.True(t, strings.Contains(err.Error(), unix.EXDEV.Error()) || strings.Contains(err.Error(), unix.ENOTDIR.Error()), "%v", err)
			refused++
			continue
		}
		got, err := io.ReadAll(f)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		require.Equal(t, "inside", string(got))
		opened++
	}
	end.Store(true)
	require.NoError(t, <-ended)
	require.NotZero(t, opened)
	require.NotZero(t, refused)
}

// TestOpenInside: what is mounted into a file system isn't of it, be it the same one.
func TestOpenInside(t *testing.T) {
	needRoot(t)
	root := filepath.Join(tree(t), "in")
	require.NoError(t, os.Mkdir(filepath.Join(root, "mounted"), 0o755))
	tool(t, "mount", "--bind", filepath.Join(root, "a"), filepath.Join(root, "mounted"))
	t.Cleanup(func() { tool(t, "umount", filepath.Join(root, "mounted")) })
	f, err := openInside(root, "a/b/file")
	require.NoError(t, err)
	require.NoError(t, f.Close())
	_, err = openInside(root, "mounted/b/file")
	require.ErrorIs(t, err, unix.EXDEV)
	_, err = openInside(root, "a/b")
	require.ErrorContains(t, err, "it is not a file")
}

// TestOpenBeneathDeep: a way through more directories than the kernel's paths have doesn't use
// up trayd's descriptors.
func TestOpenBeneathDeep(t *testing.T) {
	root := t.TempDir()
	at, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	for range 2 * maxDepth {
		require.NoError(t, unix.Mkdirat(at, "d", 0o755))
		next, err := unix.Openat(at, "d", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		require.NoError(t, unix.Close(at))
		at = next
	}
	require.NoError(t, unix.Close(at))
	f, err := OpenBeneath(root, strings.Repeat("d/", maxDepth-1))
	require.NoError(t, err)
	require.NoError(t, f.Close())
	_, err = OpenBeneath(root, strings.Repeat("d/", 2*maxDepth))
	require.ErrorIs(t, err, unix.ENAMETOOLONG)
}
