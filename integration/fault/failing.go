package fault

import (
	"context"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/internal/qemutest"
)

// failing is a file system on a disk that has lost the blocks of a disc: that can be opened,
// and not be read.
type failing struct {
	disc   string // what can't be read
	dir    string
	device string
}

// newFailing mounts one beneath dir. It takes root.
func newFailing(ctx context.Context, dir string) (*failing, error) {
	f := &failing{dir: filepath.Join(dir, "failing")}
	f.disc = filepath.Join(f.dir, fresh+".iso")
	if err := f.make(ctx, dir); err != nil {
		f.close()
		return nil, fmt.Errorf("a disk that fails: %w", err)
	}
	return f, nil
}

func (f *failing) make(ctx context.Context, dir string) error {
	content := filepath.Join(dir, "content")
	for _, d := range []string{f.dir, content} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	defer os.RemoveAll(content)
	if _, err := qemutest.WriteDisc(content, fresh); err != nil {
		return err
	}
	disk := filepath.Join(dir, "failing.disk")
	if _, err := command(ctx, "mke2fs", "-q", "-t", "ext2", "-b", strconv.Itoa(blockSize), "-d", content, disk, "8M"); err != nil {
		return err
	}
	blocks, err := command(ctx, "debugfs", "-R", "blocks /"+filepath.Base(f.disc), disk)
	if err != nil {
		return err
	}
	device, err := command(ctx, "losetup", "--find", "--show", "--read-only", disk)
	if err != nil {
		return err
	}
	f.device = strings.TrimSpace(device)
	if err := unix.Mount(f.device, f.dir, "ext2", unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("mount %s: %w", f.device, err)
	}
	return f.lose(disk, blocks)
}

// blockSize is the file system's, in bytes.
const blockSize = 4096

// lose takes the disc's blocks away from beneath the file system, and all behind them:
// reads behind the end of a loop device's file fail with EIO.
func (f *failing) lose(disk, blocks string) error {
	first := int64(math.MaxInt64)
	for _, word := range strings.Fields(blocks) {
		if n, err := strconv.ParseInt(word, 10, 64); err == nil { // debugfs says its version, too
			first = min(first, n)
		}
	}
	if first == math.MaxInt64 {
		return fmt.Errorf("debugfs doesn't say where %s lies: %s", f.disc, blocks)
	}
	inside, err := os.Open(f.disc)
	if err != nil {
		return err
	}
	defer inside.Close()
	if err := os.Truncate(disk, first*blockSize); err != nil {
		return err
	}
	// What the kernel has read ahead of it is forgotten.
	device, err := os.Open(f.device)
	if err != nil {
		return err
	}
	defer device.Close()
	if _, err := unix.IoctlRetInt(int(device.Fd()), unix.BLKFLSBUF); err != nil {
		return fmt.Errorf("flush %s: %w", f.device, err)
	}
	if err := unix.Fadvise(int(inside.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		return err
	}
	if _, err := inside.ReadAt(make([]byte, 1), descriptors); err == nil {
		return fmt.Errorf("%s can be read all the same", f.disc)
	}
	return nil
}

// descriptors is where an ISO 9660 image says what it is, in bytes; what comes before is a
// hole, which can always be read.
const descriptors = 16 * 2048

func (f *failing) close() {
	_ = unix.Unmount(f.dir, unix.MNT_DETACH) // it may not be mounted, or a QEMU that ends has the disc
	if f.device != "" {
		_ = exec.Command("losetup", "--detach", f.device).Run() // autoclear does it later otherwise
	}
}

func command(ctx context.Context, name string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", name, err, out)
	}
	return string(out), nil
}
