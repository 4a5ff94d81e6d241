// Package child starts programs that may do less than trayd: they have none of its
// capabilities, and die with it.
package child

import (
	"fmt"
	"os/exec"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Run calls f, which starts cmd and waits for its end, and returns what f does. The program
// inherits no capability (it has those that its own file gives it) and is killed when this process
// ends, whatever ends it. cmd.SysProcAttr may be set before; f may do anything else, too.
func Run(cmd *exec.Cmd, f func() error) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	ended := make(chan error)
	go func() {
		// The signal of Pdeathsig comes when the thread ends that has started it. Capabilities
		// are a thread's too: this one is never used for anything else (it isn't unlocked).
		runtime.LockOSThread()
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil && err != unix.EINVAL { // before Linux 4.3
			ended <- fmt.Errorf("its capabilities can't be dropped: %w", err)
			return
		}
		ended <- f()
	}()
	return <-ended
}

// Output keeps the first Most bytes of what is written to it. One goroutine at a time may
// write: as os/exec does, also where it is both outputs of a program.
type Output struct {
	Most int
	kept []byte
	more bool
}

// Write never fails.
func (o *Output) Write(p []byte) (int, error) {
	n := min(len(p), o.Most-len(o.kept))
	o.kept = append(o.kept, p[:n]...)
	o.more = o.more || n < len(p)
	return len(p), nil
}

// String is what was kept; what is no UTF-8 in it is shown as "?".
func (o *Output) String() string { return strings.ToValidUTF8(string(o.kept), "?") }

// More reports whether there was more than is kept.
func (o *Output) More() bool { return o.more }
