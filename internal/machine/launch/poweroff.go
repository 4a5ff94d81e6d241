package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/qmp"
)

// PowerSocket is the name, in a machine's RunDir, of the monitor that PowerOff uses, and
// nobody else: a monitor has one client.
const PowerSocket = "power"

// powerTime is how long QEMU has to answer. A guest has as long as its caller says.
const powerTime = 10 * time.Second

// PowerOff presses a machine's power button, and waits until its process has ended. It is
// nil at once when there is no such process. The error says that the guest wasn't asked,
// or that ctx ended first; the machine runs on then.
func PowerOff(ctx context.Context, runDir string, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err == unix.ESRCH || pid <= 0 {
		return nil
	}
	if err != nil {
		return fmt.Errorf("process %d: %w", pid, err)
	}
	process := os.NewFile(uintptr(fd), "pidfd")
	defer process.Close()
	if err := press(ctx, filepath.Join(runDir, PowerSocket)); err != nil {
		if ended(process) {
			return nil
		}
		return fmt.Errorf("the guest can't be asked to power off: %w", err)
	}
	if err := awaitEnd(ctx, process); err != nil {
		return fmt.Errorf("the guest was asked to power off, and has not: %w", err)
	}
	return nil
}

func press(ctx context.Context, socket string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, powerTime)
	defer cancel()
	c, err := qmp.Dial(ctx, socket, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	return c.Execute(ctx, "system_powerdown", nil, nil)
}

// awaitPoll is how often a process is looked at that is awaited. Kill is the one that
// waits for it; a process ends within milliseconds of that.
const awaitPoll = 10 * time.Millisecond

// awaitEnd waits until the process of a pidfd has ended.
func awaitEnd(ctx context.Context, process *os.File) error {
	for !ended(process) {
		if err := ctx.Err(); err != nil {
			return err
		}
		poll(process, awaitPoll)
	}
	return nil
}

func ended(process *os.File) bool { return poll(process, 0) }

// poll reports whether the process has ended, and waits for that for so long.
func poll(process *os.File, wait time.Duration) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(process.Fd()), Events: unix.POLLIN}}, int(wait.Milliseconds()))
	return err == nil && n > 0
}
