package launch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// open opens a file for QEMU.
func (f File) open() (*os.File, error) {
	how := "reading"
	if f.Mode != Read {
		how = "writing"
	}
	if f.Mode == Append {
		made, err := os.OpenFile(f.Path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
		if err == nil {
			made.Close()
		} else if !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("%s can't be made: %w", f.Path, reason(err))
		}
	}
	file, err := f.openSafely()
	if err != nil {
		return nil, fmt.Errorf("%s can't be opened for %s: %w", f.Path, how, err)
	}
	return file, nil
}

// openSafely looks at a file before it opens it: opening some devices does things, and
// opening a pipe waits.
func (f File) openSafely() (*os.File, error) {
	at, err := unix.Open(f.Path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, reason(err)
	}
	defer unix.Close(at)
	var st unix.Stat_t
	if err := unix.Fstat(at, &st); err != nil {
		return nil, reason(err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFBLK:
	case unix.S_IFLNK:
		return nil, errors.New("it is a symbolic link; name what it points to")
	default:
		return nil, errors.New("it is neither a regular file nor a block device")
	}
	flags := map[FileMode]int{Read: unix.O_RDONLY, ReadWrite: unix.O_RDWR, Append: unix.O_WRONLY | unix.O_APPEND}[f.Mode]
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", at), flags|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, reason(err)
	}
	return os.NewFile(uintptr(fd), f.Path), nil
}

// reason adds to an error of opening what can be done about it.
func reason(err error) error {
	switch {
	case errors.Is(err, unix.EROFS) && os.Getenv("INVOCATION_ID") != "":
		return fmt.Errorf("%w: either its file system is, or it lies where machines may not write: then add ReadWritePaths= with its directory by `systemctl edit trayd-vm@.service`", err)
	case errors.Is(err, fs.ErrPermission) && os.Getenv("INVOCATION_ID") != "":
		return fmt.Errorf("%w: trayd-vm@.service has no access to it (`systemctl cat trayd-vm@.service` says to what)", err)
	}
	return err
}
