// Command guestinit is the only program of the guests that demo and tests boot. It
// behaves as a Linux with udev does towards its CD drives: it mounts what is put in
// (which locks the door), and lets go when it is asked to. It says what it sees on
// the console, one line each, and takes commands there:
//
//	read    read every disc again, past the page cache
//	eject   eject the first disc, as an installer does at its end
//	off     power off
package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/u-root/u-root/pkg/mount"
	"golang.org/x/sys/unix"
)

// The ioctls of linux/cdrom.h.
const (
	cdromEject       = 0x5309
	cdromLockDoor    = 0x5329
	cdromDriveStatus = 0x5326
	cdromChanged     = 0x5325
	discOK           = 4
	currentSlot      = 0x7fffffff // CDSL_CURRENT
)

func main() {
	for dir, fs := range map[string]string{"/proc": "proc", "/sys": "sysfs", "/dev": "devtmpfs"} {
		if err := unix.Mount(fs, dir, fs, 0, ""); err != nil {
			say("mount %s: %v", dir, err)
		}
	}
	loadModules()
	drives := findDrives()
	say("up, with %d CD drives", len(drives))
	var all sync.Mutex // one thing at a time: commands, eject requests, the regular look
	go followEjectRequests(drives, &all)
	go takeCommands(drives, &all)
	for {
		all.Lock()
		for _, d := range drives {
			d.look()
		}
		all.Unlock()
		time.Sleep(200 * time.Millisecond) // a drive has no event for a disc that was put in
	}
}

func say(format string, args ...any) { fmt.Printf("guest: "+format+"\n", args...) }

func loadModules() {
	list, err := os.ReadFile("/modules")
	if err != nil {
		say("modules: %v", err)
	}
	for _, name := range strings.Fields(string(list)) {
		f, err := os.Open("/lib/" + name + ".ko")
		if err != nil {
			say("module %s: %v", name, err)
			continue
		}
		if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil && err != unix.EEXIST {
			say("module %s: %v", name, err)
		}
		f.Close()
	}
}

// findDrives waits for the drives to appear: their controllers are probed in the
// background. A machine without any is ready after the wait.
func findDrives() []*drive {
	var drives []*drive
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		found, err := filepath.Glob("/sys/block/sr*")
		if err != nil || len(found) == 0 || len(found) != len(drives) {
			drives = drives[:0]
			for _, f := range found {
				drives = append(drives, &drive{name: filepath.Base(f)})
			}
			continue
		}
		break // as many as at the last look
	}
	for _, d := range drives {
		// Without udev nobody has the kernel poll the drive for eject requests.
		if err := os.WriteFile("/sys/block/"+d.name+"/events_poll_msecs", []byte("200"), 0); err != nil {
			say("%s: %v", d.name, err)
		}
		if err := os.MkdirAll(d.dir(), 0o755); err != nil {
			say("%s: %v", d.name, err)
		}
	}
	return drives
}

// drive is one CD drive, as the guest sees it.
type drive struct {
	name    string
	mounted *mount.MountPoint
	said    string
}

func (d *drive) dev() string { return "/dev/" + d.name }
func (d *drive) dir() string { return "/mnt/" + d.name }

// sayOnce says what is new.
func (d *drive) sayOnce(format string, args ...any) {
	if line := fmt.Sprintf(format, args...); line != d.said {
		d.said = line
		say("%s: %s", d.name, line)
	}
}

// look mounts a disc that is new, and lets go of one that has gone.
func (d *drive) look() {
	status, changed := d.status()
	if d.mounted != nil && (status != discOK || changed) {
		if err := d.mounted.Unmount(mount.MNT_DETACH); err != nil {
			say("%s: unmount: %v", d.name, err)
		}
		d.mounted = nil
	}
	if status != discOK {
		d.sayOnce("empty")
		return
	}
	if d.mounted == nil {
		d.read()
	}
}

func (d *drive) status() (status int, changed bool) {
	f, err := os.OpenFile(d.dev(), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return 0, false
	}
	defer f.Close()
	status, _ = unix.IoctlRetInt(int(f.Fd()), cdromDriveStatus) // an error is no disc
	n, err := ioctl(f, cdromChanged, currentSlot)
	return status, err == nil && n == 1
}

func ioctl(f *os.File, request, arg uintptr) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, arg)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// read mounts the disc and says what is on it. The first read after a change fails
// with a unit attention; the next look tries again.
func (d *drive) read() {
	m, err := mount.Mount(d.dev(), d.dir(), "iso9660", "", mount.MS_RDONLY)
	if err != nil {
		return
	}
	d.mounted = m
	d.sayOnce("disc %s says: %s", d.volume(), d.readme())
}

func (d *drive) readme() string {
	for _, name := range []string{"readme.txt", "README.TXT", "README"} {
		if b, err := os.ReadFile(filepath.Join(d.dir(), name)); err == nil {
			return string(bytes.TrimSpace(b))
		} else if !os.IsNotExist(err) {
			return err.Error()
		}
	}
	return "(no readme)"
}

// volume reads the volume identifier: ECMA-119 8.4.6, byte 40 of sector 16.
func (d *drive) volume() string {
	f, err := os.Open(d.dev())
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	b := make([]byte, 32)
	if _, err := f.ReadAt(b, 16*2048+40); err != nil {
		return err.Error()
	}
	return strings.Trim(string(b), " \x00")
}

// letGo unmounts and opens the tray.
func (d *drive) letGo() {
	if d.mounted != nil {
		if err := d.mounted.Unmount(0); err != nil {
			say("%s: unmount: %v", d.name, err)
		}
		d.mounted = nil
	}
	f, err := os.OpenFile(d.dev(), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		say("%s: %v", d.name, err)
		return
	}
	defer f.Close()
	if _, err := ioctl(f, cdromLockDoor, 0); err != nil {
		say("%s: unlock: %v", d.name, err)
	}
	if _, err := ioctl(f, cdromEject, 0); err != nil {
		say("%s: eject: %v", d.name, err)
	}
}

// followEjectRequests lets go of a disc when the host asks, which the kernel tells by
// a uevent.
func followEjectRequests(drives []*drive, all *sync.Mutex) {
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		say("uevents: %v", err)
		return
	}
	if err := unix.Bind(s, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		say("uevents: %v", err)
		return
	}
	b := make([]byte, 8192)
	for {
		n, _, err := unix.Recvfrom(s, b, 0)
		if err != nil || !bytes.Contains(b[:n], []byte("DISK_EJECT_REQUEST=1")) {
			continue
		}
		all.Lock()
		for _, d := range drives {
			if bytes.Contains(b[:n], []byte("DEVNAME="+d.name+"\x00")) {
				say("%s: the host asks for the disc: unmounting and letting go", d.name)
				d.letGo()
			}
		}
		all.Unlock()
	}
}

func takeCommands(drives []*drive, all *sync.Mutex) {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		all.Lock()
		switch strings.TrimSpace(lines.Text()) {
		case "read":
			if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
				say("drop caches: %v", err)
			}
			for _, d := range drives {
				if d.mounted != nil {
					say("%s: read again: disc %s says: %s", d.name, d.volume(), d.readme())
				} else {
					say("%s: read again: no disc", d.name)
				}
			}
		case "eject":
			if len(drives) > 0 {
				drives[0].letGo()
			}
		case "off":
			if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
				say("power off: %v", err)
			}
		}
		all.Unlock()
	}
}
