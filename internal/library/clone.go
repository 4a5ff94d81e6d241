package library

import (
	"os"

	"golang.org/x/sys/unix"
)

// CanClone reports whether a pool can share the blocks of a file with a file of its own:
// both on one file system that can (Btrfs, XFS). It tries with an empty one.
func (l *Library) CanClone(pool string, from *os.File) bool {
	p, err := l.poolFor(pool)
	if err != nil || p.Type != Dir || os.MkdirAll(p.Path, 0o755) != nil {
		return false
	}
	fd, err := unix.Open(p.Path, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return unix.IoctlFileClone(fd, int(from.Fd())) == nil
}
