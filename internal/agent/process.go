package agent

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Process tells one QEMU from the next of the same name: a pid alone is used
// again. The zero Process is one whose identity the kernel didn't give.
type Process struct {
	PID int `json:"pid"`
	// Start is the host's boot (the first eight digits of its boot id) and the
	// process's start within it, in clock ticks: field 22 of /proc/PID/stat.
	Start string `json:"start,omitempty"`
}

// lookUp reads the identity of a live process.
func lookUp(pid int, boot string) Process {
	fields := statFields(pid)
	if len(fields) < 20 {
		return Process{PID: pid}
	}
	return Process{PID: pid, Start: boot + "/" + string(fields[19])}
}

// alive reports whether the very process still runs: one that only has to be reaped doesn't
// (proc_pid_stat(5): Z, and X for a moment).
func (p Process) alive(boot string) bool {
	fields := statFields(p.PID)
	if len(fields) < 20 || bytes.ContainsAny(fields[0], "ZX") {
		return false
	}
	return p.Start == "" || p.Start == boot+"/"+string(fields[19])
}

// watch opens the process's end: the file becomes readable then (pidfd_open(2), Linux
// 5.10 for PIDFD_NONBLOCK). It is nil where the kernel can't, or the process is gone.
func (p Process) watch(boot string) *os.File {
	if p.PID <= 0 {
		return nil
	}
	fd, err := unix.PidfdOpen(p.PID, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	if !p.alive(boot) { // the number may be another's by now
		f.Close()
		return nil
	}
	return f
}

// await waits until the process has ended. It is false when ctx ends before, or nobody can
// tell.
func (p Process) await(ctx context.Context, boot string) bool {
	f := p.watch(boot)
	if f == nil {
		return p.Start != "" && !p.alive(boot)
	}
	stop := context.AfterFunc(ctx, func() { f.Close() })
	err := awaitEnd(f)
	if stop() {
		f.Close()
	}
	return err == nil
}

// awaitEnd waits until the process has ended, or the file is closed.
func awaitEnd(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		return n > 0 || err != nil && err != unix.EINTR
	})
}

// stopped reports whether the process is stopped by a signal or a debugger.
func (p Process) stopped() bool {
	fields := statFields(p.PID)
	return len(fields) > 0 && (bytes.Equal(fields[0], []byte("T")) || bytes.Equal(fields[0], []byte("t")))
}

// statFields are the fields of /proc/PID/stat from the third (state) on: the
// second, the name, may itself hold blanks and parentheses.
func statFields(pid int) [][]byte {
	if pid <= 0 {
		return nil
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return nil
	}
	return bytes.Fields(b[i+1:])
}

// bootID is short for this boot of the host; "" where the kernel doesn't say.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil || len(b) < 8 {
		return ""
	}
	return strings.TrimSpace(string(b[:8]))
}
