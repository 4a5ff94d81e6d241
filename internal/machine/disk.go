package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/internal/disk"
	"github.com/trayd/trayd/internal/wire"
)

// Images makes disks, by qemu-img: it knows its format best.
type Images struct{ Tool disk.Tool }

// SpaceError is a disk that there is no room for.
type SpaceError struct {
	Dir        string
	Need, Free int64 // bytes
}

func (e *SpaceError) Error() string {
	return fmt.Sprintf("%s has %.1f GiB free, and %.1f GiB are needed", e.Dir, gib(e.Free), gib(e.Need))
}

func gib(bytes int64) float64 { return float64(bytes) / (1 << 30) }

// Next is what to do about it.
func (e *SpaceError) Next() string { return "free space there, or use a smaller disk" }

// freshQCOW2 is about what an empty qcow2 takes, in bytes.
const freshQCOW2 = 1 << 20

// CheckSpace refuses disks that the file system of dir has no room for. A sparse disk grows
// as the guest writes: one that couldn't ever be filled is refused, as its guest would stop
// in the middle of an installation.
func CheckSpace(dir string, need int64) error {
	var st unix.Statfs_t
	for unix.Statfs(dir, &st) != nil { // the directory is made later
		parent := filepath.Dir(dir)
		if parent == dir {
			return nil
		}
		dir = parent
	}
	if free := int64(st.Bavail) * st.Bsize; free < need {
		return &SpaceError{dir, need, free}
	}
	return nil
}

// Blank makes an empty, sparse disk.
func (i Images) Blank(ctx context.Context, dir string, k wire.Disk) error {
	if err := CheckSpace(dir, int64(k.Size)); err != nil {
		return err
	}
	return i.error(i.Tool.Create(ctx, filepath.Join(dir, DiskFile(k)), int64(k.Size)))
}

// Link makes a disk that keeps only what differs from its base. QEMU is given the base by
// descriptor and doesn't look at the name in the disk; other tools do.
func (i Images) Link(dir string, k wire.Disk) error {
	if err := CheckSpace(dir, freshQCOW2); err != nil {
		return err
	}
	return disk.CreateOverlay(filepath.Join(dir, DiskFile(k)), k.Base, disk.Format(k.BaseFormat), int64(k.Size))
}

// Grow makes a disk larger.
func (i Images) Grow(ctx context.Context, file string, size wire.Size) error {
	return i.error(i.Tool.Resize(ctx, file, int64(size)))
}

func (i Images) error(err error) error {
	if _, is := disk.NotInstalled(err); is {
		return &NoQEMUError{string(i.Tool), err}
	}
	return err
}

// Sync makes a new disk durable.
func Sync(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// NewVars makes a machine's UEFI variables of what the firmware begins with.
func NewVars(fw Firmware, file string) (err error) {
	from, err := os.Open(fw.Vars)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, from)
	return errors.Join(err, to.Sync(), to.Close())
}
