package launch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrRunning means that a process of the machine holds its lock.
var ErrRunning = errors.New("it runs already")

// lockPatience is how long a lock is tried that somebody holds who has not said who he
// is, and lockPoll how often. Whoever only looks holds it for microseconds, a launcher
// says it in its first milliseconds.
const (
	lockPatience = time.Second
	lockPoll     = 2 * time.Millisecond
)

// Lock is a machine's lock, taken.
//
// Its descriptor is for reading only: QEMU inherits it, and must not be able to say that
// the machine's process is another's, which Kill would end.
type Lock struct {
	f *os.File
}

// TakeLock takes a machine's lock. The error matches ErrRunning when another has it.
func TakeLock(d Dirs, name string) (*Lock, error) {
	if err := d.check(name); err != nil {
		return nil, err
	}
	for end := time.Now().Add(lockPatience); ; time.Sleep(lockPoll) {
		l, err := tryLock(d, name)
		if !errors.Is(err, ErrRunning) || errors.As(err, new(*holderError)) || time.Now().After(end) {
			return l, err
		}
	}
}

// holderError is ErrRunning of a process that is known.
type holderError struct {
	machine string
	holder  holder
}

func (e *holderError) Error() string {
	return fmt.Sprintf("machine %s: %v, as process %d", e.machine, ErrRunning, e.holder.pid)
}
func (e *holderError) Unwrap() error { return ErrRunning }

// tryLock takes a machine's lock if that is to be had at once.
func tryLock(d Dirs, name string) (*Lock, error) {
	path := d.lock(name)
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("the lock of machine %s: %w", name, err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return &Lock{f}, forget(path, f)
	}
	holder, _ := readHolder(f) // an error of looking isn't one of locking
	f.Close()
	switch {
	case err != unix.EWOULDBLOCK:
		return nil, fmt.Errorf("the lock of machine %s: %w", name, err)
	case holder.alive():
		return nil, &holderError{name, holder}
	}
	return nil, fmt.Errorf("machine %s: %w: another start of it is under way", name, ErrRunning)
}

// forget removes who held the lock before.
func forget(path string, f *os.File) error {
	if err := os.Truncate(path, 0); err != nil {
		f.Close()
		return fmt.Errorf("the lock %s can't be written: %w", path, err)
	}
	return nil
}

// inheritLock is the lock that Detached has taken for this process, which it started.
func inheritLock(fd uintptr) *Lock { return &Lock{os.NewFile(fd, "lock")} }

// Hold writes into the lock's file that this process, the launcher, holds it: whoever
// looks for the machine finds it by that.
func (l *Lock) Hold(d Dirs, name string) error {
	start, err := startOf(os.Getpid())
	if err == nil {
		err = os.WriteFile(d.lock(name), fmt.Appendf(nil, "%d %s\n", os.Getpid(), start), 0o600)
	}
	if err != nil {
		return fmt.Errorf("the lock of machine %s can't be written: %w", name, err)
	}
	return nil
}

// Close gives the lock up, unless another process has inherited it.
func (l *Lock) Close() error { return l.f.Close() }

// holder is the process that wrote that it holds a lock. The zero holder is nobody.
type holder struct {
	pid   int
	start string // startOf
}

// held looks who has a machine's lock, without waiting. The zero holder with true is
// somebody who has not said who he is yet.
func held(d Dirs, name string) (holder, bool, error) {
	f, err := os.Open(d.lock(name))
	if errors.Is(err, fs.ErrNotExist) {
		return holder{}, false, nil
	}
	if err != nil {
		return holder{}, false, fmt.Errorf("the lock of machine %s: %w", name, err)
	}
	defer f.Close()
	switch err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); err {
	case nil:
		return holder{}, false, nil
	case unix.EWOULDBLOCK:
		h, err := readHolder(f)
		return h, true, err
	default:
		return holder{}, false, fmt.Errorf("the lock of machine %s: %w", name, err)
	}
}

// look is held that gives a holder the time to say who he is.
func look(ctx context.Context, d Dirs, name string) (h holder, running bool, err error) {
	for end := time.Now().Add(lockPatience); ; time.Sleep(lockPoll) {
		h, running, err = held(d, name)
		if err != nil || !running || h.alive() || ctx.Err() != nil || time.Now().After(end) {
			return h, running, err
		}
	}
}

// kill ends whoever holds a machine's lock, and waits until nobody does. A start that is
// under way is waited for, to end that. doomed is told of each process before its end.
func kill(ctx context.Context, d Dirs, name string, doomed func(pid int)) error {
	for {
		h, running, err := held(d, name)
		if err != nil || !running {
			return err
		}
		doomed(h.pid)
		if err := h.kill(ctx); err != nil {
			return fmt.Errorf("machine %s can't be ended: %w", name, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("machine %s doesn't end: %w", name, ctx.Err())
		case <-time.After(lockPoll):
		}
	}
}

// kill ends the process, if it is still that one, and waits until it has ended.
func (h holder) kill(ctx context.Context) error {
	process, err := h.open()
	if process == nil {
		return err
	}
	defer process.Close()
	if err := unix.PidfdSendSignal(int(process.Fd()), unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
		return fmt.Errorf("process %d: %w", h.pid, err)
	}
	return awaitEnd(ctx, process)
}

func readHolder(f *os.File) (h holder, err error) {
	b := make([]byte, 64)
	n, _ := f.ReadAt(b, 0) // what can't be read is as what is being written
	if n == 0 || b[n-1] != '\n' {
		return holder{}, nil // being written
	}
	if _, err = fmt.Sscanf(string(b[:n]), "%d %s\n", &h.pid, &h.start); err != nil {
		return holder{}, fmt.Errorf("%s doesn't say who holds it: %w", f.Name(), err)
	}
	return h, nil
}

// open is a descriptor for the process (pidfd_open(2)), nil when it has ended.
func (h holder) open() (*os.File, error) {
	fd, err := unix.PidfdOpen(h.pid, 0)
	if err == unix.ESRCH || h.pid == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", h.pid, err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	if start, err := startOf(h.pid); err != nil || start != h.start { // the number is another's by now
		f.Close()
		return nil, nil
	}
	return f, nil
}

func (h holder) alive() bool {
	start, err := startOf(h.pid)
	return err == nil && start == h.start
}

// startOf is when a process started, in clock ticks since the host's boot: field 22 of
// /proc/PID/stat (proc(5)). An exec doesn't change it.
func startOf(pid int) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	// The second field, the name, may itself hold blanks and parentheses.
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(fields) < 20 {
		return "", fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields)+2)
	}
	return fields[19], nil
}
