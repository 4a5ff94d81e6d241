// Command edgeinit is two things in an edge host. As /init of the initramfs it loads
// the modules that lead to the root file system and starts the systemd that lies
// there. As `edgeinit serve` it is a service of that systemd and runs the commands
// that tests send through a virtio serial port.
package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/internal/edge/remote"
)

func main() {
	var err error
	if len(os.Args) == 2 && os.Args[1] == "serve" {
		err = serve()
	} else {
		err = start()
	}
	fmt.Fprintf(os.Stderr, "edgeinit: %v\n", err)
	os.Exit(1)
}

// start goes on to the real root. It returns only when that fails, and the kernel
// panics then, which ends QEMU.
func start() error {
	for _, m := range []struct{ dir, fs string }{{"/dev", "devtmpfs"}, {"/proc", "proc"}, {"/sys", "sysfs"}} {
		if err := unix.Mount(m.fs, m.dir, m.fs, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	list, err := os.ReadFile("/modules")
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(string(list)) {
		if err := load("/lib/" + name + ".ko"); err != nil {
			return fmt.Errorf("module %s: %w", name, err)
		}
	}
	if err := mountRoot(); err != nil {
		return err
	}
	if err := settle("/mnt/run"); err != nil {
		return err
	}
	for _, dir := range []string{"/dev", "/proc", "/sys"} {
		if err := unix.Mount(dir, "/mnt"+dir, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s: %w", dir, err)
		}
	}
	// What switch_root does: the root moves over the initramfs.
	if err := unix.Chdir("/mnt"); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	const systemd = "/usr/lib/systemd/systemd"
	return fmt.Errorf("%s: %w", systemd, unix.Exec(systemd, []string{systemd}, []string{"PATH=/usr/sbin:/usr/bin", "LANG=C.UTF-8"}))
}

// settle mounts /run, as systemd would, and puts this program there for the service.
// So the root's image doesn't depend on it.
func settle(run string) error {
	if err := unix.Mount("tmpfs", run, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount %s: %w", run, err)
	}
	program, err := os.ReadFile("/init")
	if err != nil {
		return err
	}
	return os.WriteFile(run+"/edgeinit", program, 0o755)
}

func load(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && err != unix.EEXIST {
		return err
	}
	return nil
}

// mountRoot waits for the disk, which is probed in the background.
func mountRoot() error {
	var err error
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if err = unix.Mount("/dev/vda", "/mnt", "ext4", 0, ""); err == nil {
			return nil
		}
	}
	return fmt.Errorf("mount /dev/vda: %w", err)
}

func serve() error {
	path, err := findPort()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	// The commands' environment is an ordinary root's.
	for _, v := range []string{"INVOCATION_ID", "JOURNAL_STREAM", "SYSTEMD_EXEC_PID"} {
		os.Unsetenv(v)
	}
	os.Setenv("HOME", "/root")
	os.Setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	os.Setenv("LANG", "C.UTF-8")
	if err := os.Chdir("/root"); err != nil {
		return err
	}
	return remote.Serve(port{f})
}

// findPort finds the port by the name that QEMU gave it.
func findPort() (string, error) {
	const name = "edge"
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		files, err := filepath.Glob("/sys/class/virtio-ports/*/name")
		if err != nil {
			return "", err
		}
		for _, f := range files {
			if b, err := os.ReadFile(f); err == nil && strings.TrimSpace(string(b)) == name {
				return "/dev/" + filepath.Base(filepath.Dir(f)), nil
			}
		}
		// As a service it may be earlier than udev, which loads what is there.
		_ = exec.Command("modprobe", "virtio_console").Run() // the loop's end says that it isn't there
	}
	return "", fmt.Errorf("no virtio serial port %q", name)
}

// port is a virtio serial port, which says EOF as long as nobody has its other end:
// between a machine's restoration and the first command, for one.
type port struct{ *os.File }

func (p port) Read(b []byte) (int, error) {
	for {
		n, err := p.File.Read(b)
		if n > 0 || err != io.EOF {
			return n, err
		}
		time.Sleep(10 * time.Millisecond)
	}
}
