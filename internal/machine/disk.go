package machine

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/internal/wire"
)

// Images makes disks, by qemu-img: it knows its format best.
type Images struct{ QemuImg string }

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
	return i.run(ctx, "create", "-q", "-f", k.Format, filepath.Join(dir, DiskFile(k)), strconv.FormatInt(int64(k.Size), 10))
}

// Link makes a disk that keeps only what differs from its base.
func (i Images) Link(ctx context.Context, dir string, k wire.Disk) error {
	if err := CheckSpace(dir, freshQCOW2); err != nil {
		return err
	}
	// QEMU is given the base by descriptor and doesn't look at the name; other tools do.
	return i.run(ctx, "create", "-q", "-f", wire.FormatQCOW2, "-F", k.BaseFormat, "-b", k.Base,
		filepath.Join(dir, DiskFile(k)), strconv.FormatInt(int64(k.Size), 10))
}

// Grow makes a disk larger.
func (i Images) Grow(ctx context.Context, file string, size wire.Size) error {
	return i.run(ctx, "resize", "-q", "-f", wire.FormatQCOW2, file, strconv.FormatInt(int64(size), 10))
}

func (i Images) run(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, i.QemuImg, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		return &NoQEMUError{i.QemuImg, err}
	}
	if err != nil {
		return fmt.Errorf("qemu-img %s: %s", args[0], strings.TrimSpace(strings.ReplaceAll(out.String(), "\n", " ")+" ("+err.Error()+")"))
	}
	return nil
}

// The places of a qcow2 header (docs/interop/qcow2.txt of QEMU).
const (
	qcow2Magic   = 0x514649fb // "QFI\xfb"
	l1SizeAt     = 36
	l1OffsetAt   = 40
	qcow2Header  = 72
	maxL1Entries = 4 << 20 // 32 MiB of table: QEMU's limit (QCOW_MAX_L1_SIZE)
)

// Written reports whether a guest has ever written to a qcow2 disk: an untouched one has an
// empty first table. What a running QEMU hasn't flushed yet isn't seen.
func Written(file string) (bool, error) {
	f, err := os.Open(file)
	if err != nil {
		return false, err
	}
	defer f.Close()
	h := make([]byte, qcow2Header)
	if _, err := io.ReadFull(f, h); err != nil {
		return false, err
	}
	entries := binary.BigEndian.Uint32(h[l1SizeAt:])
	if binary.BigEndian.Uint32(h) != qcow2Magic || entries > maxL1Entries {
		return false, fmt.Errorf("%s is no qcow2 disk", file)
	}
	table := make([]byte, 8*int(entries))
	if _, err := f.ReadAt(table, int64(binary.BigEndian.Uint64(h[l1OffsetAt:]))); err != nil && !errors.Is(err, io.EOF) {
		return false, err // the file may end within an empty table
	}
	return len(bytes.Trim(table, "\x00")) > 0, nil
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
