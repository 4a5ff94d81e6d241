package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// nodeWait is how long a device's node may take. devtmpfs makes it before the device
	// can be used; where udev or a container's manager makes it, it comes a little later.
	nodeWait = time.Second
	// releaseWait is how long a release waits for those who hold a device for a moment
	// only: udev's blkid, after each activation and each write, needs up to 100 ms on a
	// slow machine.
	releaseWait = 500 * time.Millisecond
	pollEvery   = 5 * time.Millisecond
)

// sector is device-mapper's unit, in bytes, whatever the disk's is.
const sector = 512

// openNumber opens the block device of this number by the kernel's own name for it.
func openNumber(ctx context.Context, major, minor uint32, flags int) (*os.File, error) {
	link, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", major, minor))
	if err != nil {
		return nil, err
	}
	path := filepath.Join("/dev", filepath.Base(link))
	var f *os.File
	err = await(ctx, nodeWait, func() (bool, error) {
		f, err = os.OpenFile(path, flags, 0)
		return !errors.Is(err, fs.ErrNotExist), err
	})
	if err != nil {
		if f != nil {
			f.Close()
		}
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFBLK || st.Rdev != unix.Mkdev(major, minor) {
		f.Close()
		return nil, fmt.Errorf("%s is not the block device %d:%d: /dev is not the kernel's", path, major, minor)
	}
	return f, nil
}

// await asks every few milliseconds until the answer is yes, and returns its error. When
// the limit is over it returns what the last one said, when ctx ends the context's error.
func await(ctx context.Context, limit time.Duration, ask func() (bool, error)) error {
	deadline := time.Now().Add(limit)
	for {
		yes, err := ask()
		if yes || time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pollEvery):
		}
	}
}

// blockSize is a block device's or a file's size in bytes.
func blockSize(f *os.File) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if info.Mode().IsRegular() {
		return info.Size(), nil
	}
	return f.Seek(0, 2)
}

// ownOpens counts this process's descriptors of a block device.
func ownOpens(rdev uint64) int {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	n := 0
	for _, e := range list {
		var st unix.Stat_t
		// The kernel's link leads to the open file itself.
		if unix.Stat("/proc/self/fd/"+e.Name(), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && st.Rdev == rdev {
			n++
		}
	}
	return n
}
