package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/internal/config"
	"github.com/trayd/trayd/systemd"
)

// listen returns the API's listener: systemd's where there is one, and our own else.
func listen(c *config.Config, log *slog.Logger) (net.Listener, error) {
	l, err := systemd.Listener()
	switch {
	case err != nil:
		return nil, err
	case l != nil:
		if at := l.Addr().String(); at != c.API.Socket {
			log.Info("the API is where the socket unit says, not where api.socket does", "socket", at, "configured", c.API.Socket)
		}
		return l, nil
	}
	return listenOurselves(c.API, log)
}

// listenOurselves makes the API's socket, for root and the configured group.
func listenOurselves(c config.API, log *slog.Logger) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(c.Socket), 0o755); err != nil {
		return nil, fmt.Errorf("the directory of api.socket can't be made: %w", err)
	}
	if err := removeStale(c.Socket); err != nil {
		return nil, err
	}
	// Nobody else may connect in the moment before the group is set.
	old := unix.Umask(0o177)
	l, err := net.Listen("unix", c.Socket)
	unix.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("api.socket: %w", err)
	}
	if err := admit(c, log); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// removeStale removes a socket that nobody listens on any more.
func removeStale(path string) error {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("api.socket: %w", err)
	case st.Mode()&os.ModeSocket == 0:
		return fmt.Errorf("api.socket: %s is there and is no socket; move it away or configure another place", path)
	}
	conn, err := net.Dial("unix", path)
	switch {
	case err == nil:
		defer conn.Close()
		return fmt.Errorf("another process%s listens on api.socket %s; stop it, or configure another place", listenerPID(conn), path)
	case errors.Is(err, unix.ECONNREFUSED):
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("api.socket: a stale socket can't be removed: %w", err)
		}
		return nil
	}
	return fmt.Errorf("api.socket: %s is in the way: %w", path, err)
}

// listenerPID is who listens at the other end, for the message.
func listenerPID(c net.Conn) string {
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return ""
	}
	var cred *unix.Ucred
	if raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}) != nil || err != nil {
		return ""
	}
	return fmt.Sprintf(" (pid %d)", cred.Pid)
}

// admit lets the group in. A group that doesn't exist is no reason not to run: the
// socket is root's alone then.
func admit(c config.API, log *slog.Logger) error {
	if c.Group == "" {
		return nil
	}
	g, err := user.LookupGroup(c.Group)
	if err != nil {
		log.Warn("api.group doesn't exist: only root may connect", "group", c.Group)
		return nil
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		return fmt.Errorf("api.group %s: %w", c.Group, err)
	}
	if err := os.Chown(c.Socket, -1, gid); err != nil {
		log.Warn("api.group can't be let in: only root and trayd's own user may connect", "group", c.Group, "error", err)
		return nil
	}
	if err := os.Chmod(c.Socket, 0o660); err != nil {
		return fmt.Errorf("api.socket: %w", err)
	}
	return nil
}
