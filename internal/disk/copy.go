package disk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// piece is how much Copy copies before it looks at its context, in bytes: a tenth of a
// second of a slow disk.
const piece = 16 << 20

// Copy makes dst, which is open for writing, a durable copy of src: they share their blocks
// where the file system can (Btrfs, XFS), otherwise the data is copied and the holes stay
// holes. What dst had before is lost. progress, which may be nil, is told now and then up to
// which byte of src the copy has come; it holds up the copying.
//
// After an error, or the end of ctx, which is looked at between two pieces, dst holds
// something or other. Errors of the kernel are kept (errors.Is(err, unix.ENOSPC)). Neither
// file may be used otherwise meanwhile; their offsets are moved.
func Copy(ctx context.Context, dst, src *os.File, progress func(done int64)) error {
	if progress == nil {
		progress = func(int64) {}
	}
	st, err := src.Stat()
	if err != nil {
		return fmt.Errorf("copy %s: %w", src.Name(), err)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := dst.Truncate(0); err != nil {
		return fmt.Errorf("copy to %s: %w", dst.Name(), err)
	}
	if unix.IoctlFileClone(int(dst.Fd()), int(src.Fd())) != nil {
		if err := dst.Truncate(st.Size()); err != nil {
			return fmt.Errorf("copy to %s: %w", dst.Name(), err)
		}
		if err := copyData(ctx, dst, src, st.Size(), progress); err != nil {
			return fmt.Errorf("copy %s to %s: %w", src.Name(), dst.Name(), err)
		}
	}
	if err := dst.Sync(); err != nil {
		return fmt.Errorf("copy to %s: %w", dst.Name(), err)
	}
	progress(st.Size())
	return nil
}

// copyData copies each run of data. What was copied is sent to the disk at once, so that the
// end has little to wait for.
func copyData(ctx context.Context, dst, src *os.File, size int64, progress func(int64)) error {
	in, out := int(src.Fd()), int(dst.Fd())
	for at := int64(0); at < size; {
		from, to, err := nextData(in, at, size)
		if err != nil || from >= size {
			return err
		}
		for at = from; at < to; {
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
			n, err := copyPiece(dst, src, at, min(to-at, piece))
			if err != nil {
				return err
			}
			if n == 0 {
				return fmt.Errorf("at byte %d: %w", at, io.ErrUnexpectedEOF)
			}
			_ = unix.SyncFileRange(out, at, n, unix.SYNC_FILE_RANGE_WRITE) // fsync says what went wrong
			at += n
			progress(at)
		}
	}
	return nil
}

// nextData is the next run of data from an offset on; size, if there is none. A file system
// that knows no holes has one run.
func nextData(fd int, at, size int64) (from, to int64, err error) {
	from, err = unix.Seek(fd, at, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size, size, nil
	case errors.Is(err, unix.EINVAL):
		return at, size, nil
	case err != nil:
		return 0, 0, err
	}
	to, err = unix.Seek(fd, from, unix.SEEK_HOLE)
	return from, min(to, size), err
}

// copyPiece copies at most n bytes at an offset, within the kernel if it can.
func copyPiece(dst, src *os.File, at, n int64) (int64, error) {
	from, to := at, at
	got, err := unix.CopyFileRange(int(src.Fd()), &from, int(dst.Fd()), &to, int(n), 0)
	for _, cannot := range []error{unix.EXDEV, unix.EINVAL, unix.ENOSYS, unix.EOPNOTSUPP} {
		if errors.Is(err, cannot) {
			return io.Copy(io.NewOffsetWriter(dst, at), io.NewSectionReader(src, at, n))
		}
	}
	if errors.Is(err, unix.EINTR) {
		return copyPiece(dst, src, at, n)
	}
	return int64(got), err
}
