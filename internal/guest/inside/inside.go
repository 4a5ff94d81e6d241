// Package inside is what the programs that run as the init of a test's guest have in
// common: the mounts and modules without which there is nothing to see, the console, and
// what one asks a CD drive for. It is of use as process 1 alone.
package inside

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The ioctls of linux/cdrom.h.
const (
	cdromEject       = 0x5309
	cdromChanged     = 0x5325
	cdromDriveStatus = 0x5326
	cdromLockDoor    = 0x5329
	discOK           = 4
	currentSlot      = 0x7fffffff // CDSL_CURRENT
)

// Say writes a line that the host reads on the serial console.
func Say(format string, args ...any) { fmt.Printf("guest: "+format+"\n", args...) }

// Begin mounts what the kernel has to show, and loads the modules that the initramfs has.
func Begin() {
	for dir, fs := range map[string]string{"/proc": "proc", "/sys": "sysfs", "/dev": "devtmpfs"} {
		if err := unix.Mount(fs, dir, fs, 0, ""); err != nil {
			Say("mount %s: %v", dir, err)
		}
	}
	list, err := os.ReadFile("/modules")
	if err != nil {
		Say("modules: %v", err)
	}
	for _, name := range strings.Fields(string(list)) {
		f, err := os.Open("/lib/" + name + ".ko")
		if err != nil {
			Say("module %s: %v", name, err)
			continue
		}
		if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && err != unix.EEXIST {
			Say("module %s: %v", name, err)
		}
		f.Close()
	}
}

// PowerOff ends the machine, Reset resets it. What was written has to be synced before.
func PowerOff() { reboot("power off", unix.LINUX_REBOOT_CMD_POWER_OFF) }

func Reset() { reboot("reset", unix.LINUX_REBOOT_CMD_RESTART) }

func reboot(what string, how int) {
	if err := unix.Reboot(how); err != nil {
		Say("%s: %v", what, err)
	}
}

// Drives are the names of the CD drives (sr0). It waits for them to appear, as their
// controllers are probed in the background; a machine without any is known after limit.
func Drives(limit time.Duration) []string {
	var names []string
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		found, err := filepath.Glob("/sys/block/sr*")
		if err == nil && len(found) > 0 && len(found) == len(names) {
			break // as many as at the last look
		}
		names = names[:0]
		for _, f := range found {
			names = append(names, filepath.Base(f))
		}
	}
	return names
}

// Drive is a CD drive by its name.
type Drive string

// Dev is its device node.
func (d Drive) Dev() string { return "/dev/" + string(d) }

// open doesn't wait for a disc.
func (d Drive) open() (*os.File, error) {
	return os.OpenFile(d.Dev(), os.O_RDONLY|unix.O_NONBLOCK, 0)
}

// Status says whether there is a disc, and whether it is another than at the last call.
func (d Drive) Status() (disc, changed bool) {
	f, err := d.open()
	if err != nil {
		return false, false
	}
	defer f.Close()
	status, _ := unix.IoctlRetInt(int(f.Fd()), cdromDriveStatus) // an error is no disc
	n, err := ioctl(f, cdromChanged, currentSlot)
	return status == discOK, err == nil && n == 1
}

// Volume reads the volume identifier: ECMA-119 8.4.6, byte 40 of sector 16.
func (d Drive) Volume() (string, error) {
	f, err := os.Open(d.Dev())
	if err != nil {
		return "", err
	}
	defer f.Close()
	b := make([]byte, 32)
	if _, err := f.ReadAt(b, 16*2048+40); err != nil {
		return "", err
	}
	return strings.Trim(string(b), " \x00"), nil
}

// Eject unlocks the door and opens the tray. The disc must not be mounted.
func (d Drive) Eject() error {
	f, err := d.open()
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := ioctl(f, cdromLockDoor, 0); err != nil {
		return fmt.Errorf("unlock: %w", err)
	}
	if _, err := ioctl(f, cdromEject, 0); err != nil {
		return fmt.Errorf("eject: %w", err)
	}
	return nil
}

func ioctl(f *os.File, request, arg uintptr) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, arg)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
