package hook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/internal/wire"
)

const (
	// killDelay is between SIGTERM and SIGKILL.
	killDelay = 2 * time.Second
	// mostOutput is how many bytes of what a hook says are logged.
	mostOutput = 4 << 10
	// searchPath is where a shell script's commands are looked for.
	searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

var errTimeout = errors.New("it took too long")

// execute runs an executable to its end, at most so long, and returns what it said. The error
// is errTimeout, the context's, or how it ended.
func execute(ctx context.Context, path string, e wire.Event, limit time.Duration) (said string, err error) {
	line, err := json.Marshal(e)
	if err != nil {
		return "", err
	}
	out := &beginning{}
	cmd := exec.Command(path)
	cmd.Dir = "/"
	cmd.Env = []string{
		"PATH=" + searchPath, "LANG=C.UTF-8",
		"TRAYD_EVENT_TYPE=" + e.Type, "TRAYD_EVENT_ID=" + strconv.FormatUint(e.ID, 10),
		"TRAYD_EVENT_VM=" + e.VM, "TRAYD_EVENT_DRIVE=" + e.Drive,
	}
	cmd.Stdin = bytes.NewReader(append(line, '\n'))
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = killDelay // for what has left its process group and keeps its output open
	ended := make(chan error)
	go func() {
		// The signal of Pdeathsig comes when the thread ends that has started it. Capabilities
		// are a thread's too: this one is never used for anything else (it isn't unlocked).
		runtime.LockOSThread()
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil && err != unix.EINVAL { // before Linux 4.3
			ended <- fmt.Errorf("its capabilities can't be dropped: %w", err)
			return
		}
		ended <- supervise(ctx, cmd, limit)
	}()
	err = <-ended
	return strings.TrimSpace(out.text()), err
}

// supervise starts a process and ends its group when its time is over or the context ends.
func supervise(ctx context.Context, cmd *exec.Cmd, limit time.Duration) error {
	if err := cmd.Start(); err != nil {
		return err
	}
	group := -cmd.Process.Pid
	var why error // guarded by over
	over, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(over)
		late := time.NewTimer(limit)
		defer late.Stop()
		select {
		case <-done:
			return
		case <-ctx.Done():
			why = ctx.Err()
		case <-late.C:
			why = errTimeout
		}
		_ = unix.Kill(group, unix.SIGTERM) // it may have ended
		late.Reset(killDelay)
		select {
		case <-done:
		case <-late.C:
			_ = unix.Kill(group, unix.SIGKILL)
		}
	}()
	awaitEnd(cmd.Process.Pid)
	close(done)
	<-over
	// It isn't reaped yet, so the group's number is still its own.
	_ = unix.Kill(group, unix.SIGKILL)
	err := cmd.Wait()
	if why != nil {
		return why
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		return fmt.Errorf("what it has left running keeps its output open")
	}
	return err
}

// awaitEnd waits for a child's end and leaves it to be reaped.
func awaitEnd(pid int) {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			return
		}
	}
}

// beginning keeps the first bytes of what is written. os/exec writes from one goroutine, as
// both outputs are the same.
type beginning struct {
	b    []byte
	more bool
}

func (w *beginning) Write(p []byte) (int, error) {
	n := min(len(p), mostOutput-len(w.b))
	w.b = append(w.b, p[:n]...)
	w.more = w.more || n < len(p)
	return len(p), nil
}

func (w *beginning) text() string {
	text := strings.ToValidUTF8(string(w.b), "?")
	if w.more {
		text += " [...]"
	}
	return text
}
