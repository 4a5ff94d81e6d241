// Package edge is an edge host for tests: a virtual machine with Debian's kernel,
// systemd, device-mapper, lvm2 and QEMU, on two processors under software emulation.
// What needs a real kernel or a real systemd, or has to lose its power, runs there;
// machines in it are nested QEMUs whose guests don't run (-S, or played by qemutest).
//
// Prepare makes it from the packages of this host's own Debian, boots it once and saves
// the booted machine. That takes half a minute, everything is cached, and afterwards a
// host is restored in less than a second (Start). There are two ways to use one:
//
//   - from inside: tests in files with the build tag edge. They are ordinary Go tests,
//     compiled here and run there (integration/edge): `make edge-test PKG=./integration
//     RUN=TestVolumes`, and all of them in CI.
//   - from outside: Start, Must, PowerCycle, for tests that cut the power.
package edge

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/trayd/trayd/internal/guest"
)

//go:embed root.sh
var rootScript string

// packages are what the host's Debian consists of, with what they depend on.
var packages = []string{
	"systemd", "systemd-sysv", "dbus", "polkitd", "udev", "kmod", "iproute2",
	"lvm2", "dmsetup", "thin-provisioning-tools", "cryptsetup-bin", // veritysetup
	"nfs-kernel-server", "util-linux", "mount", "e2fsprogs", "qemu-system-x86", "qemu-utils",
	"mawk", "grep", "sed", "tar", "findutils", "procps", "less",
}

// modules lead to the root file system and the port for commands; ext4 asks for
// crc32c by the crypto interface, which its dependencies don't tell.
var modules = []string{"virtio_pci", "virtio_blk", "virtio_console", "crc32c_generic", "ext4"}

// Kit is what edge hosts are made of, in a cache directory.
type Kit struct {
	kernel    string
	image     string // the root file system, never written to
	initramfs string
	saved     string // folder with the booted machine: root.qcow2, state
}

// Prepare makes the kit in a cache directory, or finds what is there. out is shown what
// is being done. It waits for another process that is at it.
func Prepare(ctx context.Context, cache string, out io.Writer) (*Kit, error) {
	cache, err := filepath.Abs(cache)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(cache, "edge")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	unlock, err := lock(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, err
	}
	defer unlock()
	linux, err := guest.Prepare(ctx, cache, out)
	if err != nil {
		return nil, err
	}
	k := &Kit{kernel: linux.Kernel}
	if err := k.prepareRoot(ctx, dir, linux, out); err != nil {
		return nil, fmt.Errorf("the edge host's root: %w", err)
	}
	if err := k.prepareSaved(ctx, dir, linux, out); err != nil {
		return nil, fmt.Errorf("the edge host's saved machine: %w", err)
	}
	return k, nil
}

// lock waits until no other process prepares a kit in the same cache.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}

// key names what is made of these.
func key(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:8])
}

// prepareRoot makes the image of the root file system. It is made anew when its recipe
// or the kernel changes, not for every new version of a package: `make clean` is for
// that.
func (k *Kit) prepareRoot(ctx context.Context, dir string, linux *guest.Kit, out io.Writer) error {
	mods, release, err := linux.Modules()
	if err != nil {
		return err
	}
	suite, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return err
	}
	k.image = filepath.Join(dir, "root-"+key(rootScript, strings.Join(packages, " "), release, string(suite))+".img")
	if _, err := os.Stat(k.image); err == nil {
		return nil
	}
	if err := removeOthers(dir, "root-*", k.image); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "sh", append([]string{"-euc", rootScript, "root.sh", dir, mods, release, k.image}, packages...)...)
	if os.Geteuid() != 0 { // the files shall be root's in the image
		cmd.Args = append([]string{"unshare", "--map-root-user"}, cmd.Args...)
		if cmd.Path, err = exec.LookPath("unshare"); err != nil {
			return err
		}
	}
	cmd.Stdout = out
	var words strings.Builder
	cmd.Stderr = &words
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("internal/edge/root.sh: %w (it needs Debian's apt with package lists and what `make deps` installs)\n%s", err, words.String())
	}
	return nil
}

// removeOthers removes what was made of other ingredients.
func removeOthers(dir, pattern, keep string) error {
	old, err := filepath.Glob(filepath.Join(dir, pattern))
	for _, path := range old {
		if path != keep {
			err = errors.Join(err, os.RemoveAll(path))
		}
	}
	return err
}

// prepareSaved boots a host and saves it. A saved machine fits only the QEMU, the
// arguments and the disks that it was saved with.
func (k *Kit) prepareSaved(ctx context.Context, dir string, linux *guest.Kit, out io.Writer) error {
	agent := filepath.Join(dir, "edgeinit")
	if err := buildAgent(ctx, agent); err != nil {
		return err
	}
	name, err := k.savedName(agent)
	if err != nil {
		return err
	}
	k.saved = filepath.Join(dir, name)
	k.initramfs = filepath.Join(k.saved, "initramfs")
	if _, err := os.Stat(k.saved); err == nil {
		return nil
	}
	if err := removeOthers(dir, "saved-"+memory()+"-*", ""); err != nil {
		return err
	}
	fmt.Fprintln(out, "booting the edge host, to save it booted (20 s, once) ...")
	work := k.saved + ".new"
	if err := os.Mkdir(work, 0o755); err != nil {
		return err
	}
	k.initramfs = filepath.Join(work, "initramfs")
	if err := linux.Initramfs(k.initramfs, agent, modules); err != nil {
		return err
	}
	if err := k.save(ctx, work); err != nil {
		return err
	}
	k.initramfs = filepath.Join(k.saved, "initramfs")
	return os.Rename(work, k.saved)
}

// buildAgent builds the program that is the host's /init and runs the commands there.
func buildAgent(ctx context.Context, path string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-trimpath", "-ldflags=-s -w", "-o", path,
		"github.com/trayd/trayd/integration/edgeinit")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if words, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build ./integration/edgeinit: %w\n%s", err, words)
	}
	return nil
}

func (k *Kit) savedName(agent string) (string, error) {
	program, err := os.ReadFile(agent)
	if err != nil {
		return "", err
	}
	path, err := exec.LookPath(ground(qemu))
	if err != nil {
		return "", fmt.Errorf("%w: run `make deps`", err)
	}
	binary, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	version, err := exec.Command(path, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w", path, err)
	}
	kernel, err := os.Stat(k.kernel)
	if err != nil {
		return "", err
	}
	m := Machine{kit: &Kit{}} // where the files lie doesn't matter
	return "saved-" + memory() + "-" + key(filepath.Base(k.image), string(program), string(version), binary.ModTime().String(), fmt.Sprint(binary.Size()),
		fmt.Sprint(kernel.Size()), strings.Join(m.command(), " "), strings.Join(modules, " "), warmUp), nil
}

// bootTime is more than a boot takes on a loaded machine; at low load it is 13 s.
const bootTime = 3 * time.Minute
