package qmp

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// peerOf asks for SO_PEERCRED, unix(7).
func peerOf(raw syscall.RawConn) Peer {
	var peer Peer
	raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			peer = Peer{PID: int(cred.Pid), UID: int(cred.Uid), GID: int(cred.Gid)}
		}
	})
	return peer
}
