package hook

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/internal/child"
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
	out := &child.Output{Most: mostOutput}
	cmd := exec.Command(path)
	cmd.Dir = "/"
	cmd.Env = []string{
		"PATH=" + searchPath, "LANG=C.UTF-8",
		"TRAYD_EVENT_TYPE=" + e.Type, "TRAYD_EVENT_ID=" + strconv.FormatUint(e.ID, 10),
		"TRAYD_EVENT_VM=" + e.VM, "TRAYD_EVENT_DRIVE=" + e.Drive,
	}
	cmd.Stdin = bytes.NewReader(append(line, '\n'))
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = killDelay // for what has left its process group and keeps its output open
	err = child.Run(cmd, func() error { return supervise(ctx, cmd, limit) })
	said = strings.TrimSpace(out.String())
	if out.More() {
		said += " [...]"
	}
	return said, err
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
