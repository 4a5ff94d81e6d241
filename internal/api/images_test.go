package api

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/internal/access"
)

// TestOpenCallers: a client gets trayd to open a file that it has open for reading itself,
// and nothing else: trayd may read far more than its clients.
func TestOpenCallers(t *testing.T) {
	self := access.Identity{PID: os.Getpid(), UID: os.Getuid()}
	path := filepath.Join(t.TempDir(), "disc.iso")
	require.NoError(t, os.WriteFile(path, []byte("content"), 0o600))
	try := func(flags int, name string) *os.File {
		fd, err := unix.Open(name, flags|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		defer unix.Close(fd)
		return openCallers(self, fmt.Sprint(fd))
	}
	for _, flags := range []int{unix.O_RDONLY, unix.O_RDWR} {
		f := try(flags, path)
		require.NotNil(t, f)
		b, err := io.ReadAll(f)
		require.NoError(t, err)
		require.Equal(t, "content", string(b))
		_, err = f.Write([]byte("x"))
		require.Error(t, err, "it is opened for reading alone")
		require.NoError(t, f.Close())
	}
	require.Nil(t, try(unix.O_WRONLY, path), "it can't read it")
	require.Nil(t, try(unix.O_PATH, path), "that proves no right to read it")
	require.Nil(t, try(unix.O_RDONLY, filepath.Dir(path)), "a directory")
	require.Nil(t, try(unix.O_RDONLY, "/dev/null"), "a device")
	for _, number := range []string{"", "-1", "x", "65536", "9999", "../mem"} {
		require.Nil(t, openCallers(self, number), number)
	}
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	self.UID++
	require.Nil(t, openCallers(self, fmt.Sprint(f.Fd())), "the process is another user's now")
	require.Nil(t, openCallers(access.Identity{UID: os.Getuid()}, "1"), "nobody knows who it is")
}

// TestMayRead: whatever became of the client's number, it gets no file that it can't read. The
// rule is looked at by itself, since the moment in which another file is put there is short.
func TestMayRead(t *testing.T) {
	owner := os.Getuid()
	for _, row := range []struct {
		mode os.FileMode
		uid  int
		may  bool
	}{
		{0o600, owner, true}, {0o600, owner + 1, false}, {0o640, owner + 1, false}, {0o644, owner + 1, true}, {0o600, 0, true},
	} {
		path := filepath.Join(t.TempDir(), "disc.iso")
		require.NoError(t, os.WriteFile(path, nil, row.mode))
		f, err := os.Open(path)
		require.NoError(t, err)
		require.Equal(t, row.may, mayRead(f, row.uid), "%o by %d", row.mode, row.uid)
		require.NoError(t, f.Close())
	}
}
