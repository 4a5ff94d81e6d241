package volume

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// searchTime bounds the search for who holds something. A host with 1,000 processes
// needs some 20 ms.
const searchTime = 2 * time.Second

// deviceHolders are those who have a block device open: the devices and mounts on it
// and the processes, this one left out.
func deviceHolders(ctx context.Context, rdev uint64) []Holder {
	return append(above(rdev), processes(ctx, func(s *unix.Statx_t) bool {
		return s.Mode&unix.S_IFMT == unix.S_IFBLK && s.Rdev_major == unix.Major(rdev) && s.Rdev_minor == unix.Minor(rdev)
	})...)
}

// above are the devices, the mounts and the swap on a block device.
func above(rdev uint64) []Holder {
	var all []Holder
	devices, _ := filepath.Glob(fmt.Sprintf("/sys/dev/block/%d:%d/holders/*", unix.Major(rdev), unix.Minor(rdev)))
	for _, path := range devices {
		name := filepath.Base(path)
		if b, err := os.ReadFile(filepath.Join(path, "dm/name")); err == nil {
			name = "device-mapper device " + strings.TrimSpace(string(b))
		}
		all = append(all, Holder{Name: name})
	}
	mounts, _ := readMounts() // as far as the kernel tells
	for _, m := range mounts {
		if m.device == rdev {
			all = append(all, Holder{Name: "mount " + m.point})
		}
	}
	swaps, _ := os.ReadFile("/proc/swaps")
	for _, line := range strings.Split(string(swaps), "\n") {
		path, _, _ := strings.Cut(line, " ")
		var st unix.Stat_t
		if strings.HasPrefix(path, "/") && unix.Stat(path, &st) == nil && st.Rdev == rdev {
			all = append(all, Holder{Name: "swap"})
		}
	}
	return all
}

// processes are those that have something open, stand in it or run from it, this one
// left out. Those that end meanwhile are left out, too, and those that the kernel
// doesn't let us look at (CAP_SYS_PTRACE).
func processes(ctx context.Context, is func(*unix.Statx_t) bool) []Holder {
	ctx, cancel := context.WithTimeout(ctx, searchTime)
	defer cancel()
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	var found []Holder
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil || pid == os.Getpid() || ctx.Err() != nil {
			continue
		}
		if uses(ctx, pid, is) {
			found = append(found, Holder{PID: pid, Name: processName(pid)})
		}
	}
	return found
}

func uses(ctx context.Context, pid int, is func(*unix.Statx_t) bool) bool {
	proc := fmt.Sprintf("/proc/%d/", pid)
	looks := func(path string) bool {
		var s unix.Statx_t
		// DONT_SYNC: a server that doesn't answer must not be asked.
		err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_BASIC_STATS|unix.STATX_MNT_ID, &s)
		return err == nil && is(&s)
	}
	for _, link := range []string{"cwd", "root", "exe"} {
		if looks(proc + link) {
			return true
		}
	}
	dir, err := os.Open(proc + "fd")
	if err != nil {
		return false
	}
	defer dir.Close()
	for ctx.Err() == nil {
		fds, err := dir.Readdirnames(1024)
		for _, fd := range fds {
			if looks(proc + "fd/" + fd) {
				return true
			}
		}
		if err != nil {
			break
		}
	}
	return false
}

func processName(pid int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return "a process that has just ended"
	}
	return strings.TrimSpace(string(b))
}
