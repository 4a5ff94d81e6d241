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

// listenOurselves makes the API's socket.
func listenOurselves(c config.API, log *slog.Logger) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(c.Socket), 0o755); err != nil {
		return nil, fmt.Errorf("the directory of api.socket can't be made: %w", err)
	}
	if err := removeStale(c.Socket); err != nil {
		return nil, err
	}
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

// admit lets everybody connect: what they may do is looked up for each connection, by the
// kernel's word (access.Groups). A group that doesn't exist is no reason not to run.
func admit(c config.API, log *slog.Logger) error {
	for key, group := range map[string]string{"api.group": c.Group, "api.view_group": c.ViewGroup} {
		if _, err := user.LookupGroup(group); group != "" && err != nil {
			log.Warn(key+" doesn't exist: nobody is let in by it", "group", group)
		}
	}
	if err := os.Chmod(c.Socket, 0o666); err != nil {
		return fmt.Errorf("api.socket: %w", err)
	}
	return nil
}

// privileged reports whether trayd may more than other processes of its user: as
// trayd.service has it.
func privileged() bool {
	header, caps := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, [2]unix.CapUserData{}
	if os.Getuid() == 0 || unix.Capget(&header, &caps[0]) != nil {
		return false
	}
	return caps[0].Effective != 0 || caps[1].Effective != 0
}
