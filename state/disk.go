package state

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// A disk is what a journal asks of the file system. It is an interface only because a failing fdatasync cannot be had
// on demand; the double stands in disk_test.go.
type disk interface {
	// open opens an existing regular file for reading and writing.
	open(path string) (file, error)
	// create makes an empty file, in place of one that may be there.
	create(path string) (file, error)
	// rename puts the file from in the place of the file to.
	rename(from, to string) error
	// syncDir makes the names in the directory dir durable.
	syncDir(dir string) error
}

// A file is an open journal. It is used by one goroutine at a time.
type file interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Truncate(size int64) error
	// datasync makes the content and the length durable. A call that failed is never repeated: the kernel may have
	// dropped the pages that it could not write.
	datasync() error
	// reserve allocates length bytes from offset on without changing the file's length.
	reserve(offset, length int64) error
}

// errNoReserve says that this file system cannot allocate ahead.
var errNoReserve = errors.New("the file system cannot reserve space")

// osDisk is the real one.
type osDisk struct{}

func (osDisk) open(path string) (file, error) {
	info, err := os.Stat(path) // before the open, which would wait on a FIFO
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &os.PathError{Op: "open", Path: path, Err: errors.New("not a regular file")}
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (osDisk) create(path string) (file, error) {
	// 0600: a journal can name images and hosts that are nobody else's business.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (osDisk) rename(from, to string) error { return os.Rename(from, to) }

func (osDisk) syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

type osFile struct{ *os.File }

func (f osFile) datasync() error {
	for {
		// EINTR is no verdict on the data: the call did not take place.
		if err := unix.Fdatasync(int(f.Fd())); err != unix.EINTR {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}

func (f osFile) reserve(offset, length int64) error {
	for {
		switch err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, offset, length); err {
		case unix.EINTR:
		case unix.EOPNOTSUPP, unix.ENOSYS:
			return errNoReserve
		default:
			return os.NewSyscallError("fallocate", err)
		}
	}
}
