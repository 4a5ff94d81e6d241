package systemd

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// Listener returns the listening unix stream socket that the service manager passed,
// or nil when it passed none. Anything but exactly one such socket is an error, since
// a daemon that listens somewhere else than its socket unit says is hard to find out
// about. It may be called once: it takes $LISTEN_FDS away, so that children don't take
// the descriptors for theirs.
//
// Closing the listener leaves the socket in the file system, where the manager goes on
// listening.
func Listener() (*net.UnixListener, error) {
	files := activation.Files(true)
	defer func() {
		for _, f := range files {
			f.Close() // the listener has a duplicate
		}
	}()
	switch {
	case len(files) == 0:
		return nil, nil
	case len(files) > 1:
		names := make([]string, len(files))
		for i, f := range files {
			names[i] = f.Name()
		}
		return nil, fmt.Errorf("the service manager passed %d sockets (%s), and one is wanted: leave one ListenStream= in the socket unit",
			len(files), strings.Join(names, ", "))
	}
	if err := checkListener(files[0]); err != nil {
		return nil, fmt.Errorf("the socket %s that the service manager passed: %w", files[0].Name(), err)
	}
	l, err := net.FileListener(files[0])
	if err != nil {
		return nil, fmt.Errorf("the socket %s that the service manager passed: %w", files[0].Name(), err)
	}
	return l.(*net.UnixListener), nil // as checkListener found out
}

func checkListener(f *os.File) error {
	option := func(name int) int {
		v, err := unix.GetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, name)
		if err != nil {
			return -1
		}
		return v
	}
	switch {
	case option(unix.SO_TYPE) < 0:
		return errors.New("it is no socket")
	case option(unix.SO_DOMAIN) != unix.AF_UNIX:
		return errors.New("it is not a unix socket: ListenStream= in the socket unit must be a path")
	case option(unix.SO_TYPE) != unix.SOCK_STREAM:
		return errors.New("it is not a stream socket: use ListenStream= in the socket unit")
	case option(unix.SO_ACCEPTCONN) != 1:
		return errors.New("it doesn't listen but is one connection: the socket unit must not say Accept=yes")
	}
	return nil
}
