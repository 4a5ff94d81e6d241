package machine

import (
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// logKeep is how much of a log there is at least, in bytes: what `trayctl vm log` shows. Twice
// as much is its limit.
const logKeep = 1 << 20

// BoundLogs gives back to the file system what is old in a machine's logs: a guest writes to
// its serial console what it likes, and trayd's state lies on the same disk. QEMU, which
// appends to them, may run. Offsets in a log stay what they are; its beginning reads as zeros
// then, or, where the file system knows no holes, all of it goes.
func (s Store) BoundLogs(name string) error {
	var all error
	for _, log := range []string{SerialLog, "qemu.log"} {
		if err := bound(s.Path(name, log)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			all = errors.Join(all, err)
		}
	}
	return all
}

func bound(path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Blocks*512 <= 2*logKeep {
		return nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, st.Size-logKeep)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return f.Truncate(0)
	}
	if err != nil {
		return &os.PathError{Op: "fallocate", Path: path, Err: err}
	}
	return nil
}
