package access

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"slices"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Groups are the names of the groups whose members may do something on the unix socket. ""
// is nobody.
type Groups struct {
	Change string
	View   string
	// Stranger has the user that this process runs as be nobody, and not Admin: as a service
	// trayd has capabilities that the programs it runs (qemu-img, lvm2, hooks) don't have, and
	// they would get them back by asking trayd.
	Stranger bool
}

// Peer is the process at the other end of a unix connection, by the kernel's word at the
// moment when it connected (SO_PEERCRED, SO_PEERGROUPS; Linux 4.13). Root, and unless it is a
// Stranger the user that this process runs as, are Admin. Groups that don't exist let nobody in.
func (g Groups) Peer(c *net.UnixConn) (Identity, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return Identity{}, err
	}
	var (
		cred   *unix.Ucred
		groups []uint32
		failed error
	)
	if err := raw.Control(func(fd uintptr) {
		if cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); failed == nil {
			groups, failed = peerGroups(int(fd))
		}
	}); err != nil {
		return Identity{}, err
	}
	if failed != nil {
		return Identity{}, fmt.Errorf("the kernel doesn't say who is at the other end: %w", failed)
	}
	name := "uid " + strconv.Itoa(int(cred.Uid))
	if u, err := user.LookupId(strconv.Itoa(int(cred.Uid))); err == nil {
		name = u.Username
	}
	return Identity{
		Name: fmt.Sprintf("%s (pid %d)", name, cred.Pid),
		Key:  "uid:" + strconv.Itoa(int(cred.Uid)),
		Role: g.roleOf(cred.Uid, append(groups, cred.Gid)),
		PID:  int(cred.Pid),
		UID:  int(cred.Uid),
	}, nil
}

// UID is the user of the process at the other end of a unix connection.
func UID(c *net.UnixConn) (int, error) {
	uid, _, err := IDs(c)
	return uid, err
}

// IDs are the user and the group of the process at the other end of a unix connection.
func IDs(c *net.UnixConn) (uid, gid int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, 0, err
	}
	var cred *unix.Ucred
	var failed error
	if err := raw.Control(func(fd uintptr) { cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, 0, err
	}
	if failed != nil {
		return 0, 0, failed
	}
	return int(cred.Uid), int(cred.Gid), nil
}

func (g Groups) roleOf(uid uint32, gids []uint32) Role {
	switch {
	case uid == 0:
		return Admin
	case int(uid) == os.Getuid() && g.Stranger:
		return None
	case int(uid) == os.Getuid():
		return Admin
	case isMember(g.Change, gids):
		return Change
	case isMember(g.View, gids):
		return View
	}
	return None
}

func isMember(group string, gids []uint32) bool {
	if group == "" {
		return false
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return false
	}
	gid, err := strconv.ParseUint(g.Gid, 10, 32)
	return err == nil && slices.Contains(gids, uint32(gid))
}

// peerGroups are the supplementary groups of the peer. x/sys has no call for it.
func peerGroups(fd int) ([]uint32, error) {
	groups := make([]uint32, 32)
	for {
		size := uint32(len(groups)) * 4
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0)
		switch {
		case errno == 0:
			return groups[:size/4], nil
		case errors.Is(errno, unix.ERANGE) && int(size)/4 > len(groups): // the size that it takes
			groups = make([]uint32, size/4)
		default:
			return nil, errno
		}
	}
}
