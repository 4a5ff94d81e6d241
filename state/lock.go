package state

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// A lock makes its holder the only writer of a journal. It is a lock on a file of its own, since the journal itself is
// replaced when it is rewritten; the kernel lets go of it when the holder dies, however it dies.
type lock struct{ f *os.File }

// acquire takes the lock of the journal at path, or fails at once with ErrLocked.
func acquire(path string) (*lock, error) {
	f, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state: %s: lock: %w", path, err)
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err != unix.EINTR {
			break
		}
	}
	if err == unix.EWOULDBLOCK {
		defer f.Close()
		return nil, fmt.Errorf("state: %s: %w by %s; stop it first, or ask it through its API",
			path, ErrLocked, holder(f))
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("state: %s: lock: %w", path, os.NewSyscallError("flock", err))
	}
	// The pid is for people only: that it could not be written (a full disk) is no reason to refuse.
	if f.Truncate(0) == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return &lock{f: f}, nil
}

// holder says who wrote the lock file.
func holder(f *os.File) string {
	text, _ := io.ReadAll(io.NewSectionReader(f, 0, 32))
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return "a process that did not say which"
	}
	return fmt.Sprintf("the process with pid %d", pid)
}

// release lets go. The file stays: removing it would let two processes lock two files of the same name.
func (l *lock) release() error {
	_ = l.f.Truncate(0)
	return l.f.Close()
}

// resolve follows a symbolic link at path, so that two names of one journal have one lock, and a rewrite replaces the
// journal and not the link.
func resolve(path string) (string, error) {
	info, err := os.Lstat(path)
	if err != nil || info.Mode()&os.ModeSymlink == 0 {
		return path, nil // that it does not exist is found out, and handled, later
	}
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", fmt.Errorf("state: %w", err)
	}
	return target, nil
}
