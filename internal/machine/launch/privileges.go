package launch

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// identity is who QEMU runs as.
type identity struct {
	uid, gid int
	groups   []uint32 // besides
}

// find looks a user up. The one who is there when that one isn't has a warning, since
// nobody's processes can get at each other.
func find(name string) (*identity, error) {
	u, err := user.Lookup(name)
	if errors.As(err, new(user.UnknownUserError)) {
		fmt.Fprintf(os.Stderr, "warning: there is no user %s, so QEMU runs as nobody; `systemd-sysusers trayd.conf` or `useradd --system %s` makes one\n", name, name)
		u, err = user.Lookup("nobody")
	}
	if err != nil {
		return nil, fmt.Errorf("who QEMU is to run as: %w", err)
	}
	id := &identity{}
	if id.uid, err = strconv.Atoi(u.Uid); err == nil {
		id.gid, err = strconv.Atoi(u.Gid)
	}
	if err != nil {
		return nil, fmt.Errorf("who QEMU is to run as: %w", err)
	}
	if id.uid == 0 {
		return nil, fmt.Errorf("QEMU is not run as root: configure another user than %s", name)
	}
	var st unix.Stat_t
	if unix.Stat("/dev/kvm", &st) == nil && st.Gid != 0 && st.Mode&0o060 == 0o060 {
		id.groups = []uint32{st.Gid}
	}
	return id, nil
}

// drop gives up every privilege of this thread, for good.
func drop(as *identity) error {
	for c := uintptr(0); ; c++ {
		// Without CAP_SETPCAP the bounding set stays; no_new_privs makes it worthless.
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err == unix.EINVAL || err == unix.EPERM {
			break
		}
	}
	if as != nil {
		if err := as.assume(); err != nil {
			return err
		}
	}
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("keep capabilities off: %w", err)
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("give up ambient capabilities: %w", err)
	}
	var none [2]unix.CapUserData
	if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
		return fmt.Errorf("give up capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no new privileges: %w", err)
	}
	return nil
}

// assume makes this thread, and no other, another user's. (syscall.Setuid is for all
// threads, which would be waited for.)
func (id *identity) assume() error {
	groups := append([]uint32{uint32(id.gid)}, id.groups...)
	if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&groups[0])), 0); e != 0 {
		return fmt.Errorf("become a member of its groups: %w", e)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(id.gid), uintptr(id.gid), uintptr(id.gid)); e != 0 {
		return fmt.Errorf("become group %d: %w", id.gid, e)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(id.uid), uintptr(id.uid), uintptr(id.uid)); e != 0 {
		return fmt.Errorf("become user %d: %w", id.uid, e)
	}
	return nil
}
