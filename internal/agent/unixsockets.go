package agent

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// ownSocket pins a socket of a machine of trayd's own: at is a path that leads to that very
// socket until done is called. The directory is QEMU's to write to: one that its guest has
// taken over could have trayd, and who looks at a console, connect to any socket of the
// host, by a symbolic link.
func ownSocket(path string) (at string, done func(), err error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	st, err := f.Stat()
	if err == nil && st.Mode().Type() != os.ModeSocket {
		err = fmt.Errorf("%s: %w", path, errNoSocket)
	}
	if err != nil {
		f.Close()
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d", fd), func() { f.Close() }, nil
}

// errNoSocket is for what stands where a machine's socket should be.
var errNoSocket = errors.New("it is no socket: QEMU makes one there, and somebody has put something else in its place")

// servesSomebody reports whether whoever listens at a path has accepted a connection there
// that is still open.
func servesSomebody(path string) (bool, error) {
	f, err := os.Open("/proc/net/unix")
	if err != nil {
		return false, err
	}
	defer f.Close()
	return acceptedAt(f, path)
}

// acceptedAt looks for an accepted connection in the kernel's table of unix sockets
// (net/unix/af_unix.c, unix_seq_show): Num RefCount Protocol Flags Type St Inode Path. An
// accepted one has the listener's path and is connected (St 03); one that waits to be accepted
// is 02, and the client's end has no path.
func acceptedAt(table io.Reader, path string) (bool, error) {
	const state, name = 5, 7
	lines := bufio.NewScanner(table)
	for lines.Scan() {
		f := strings.SplitN(strings.Join(strings.Fields(lines.Text()), " "), " ", name+1)
		if len(f) > name && f[name] == path && f[state] == "03" {
			return true, nil
		}
	}
	return false, lines.Err()
}
