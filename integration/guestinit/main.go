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

	"github.com/trayd/trayd/internal/guest/inside"
)

func main() {
	inside.Begin()
	drives := findDrives()
	inside.Say("up, with %d CD drives", len(drives))
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

// findDrives has the kernel tell of the host's requests to eject.
func findDrives() []*drive {
	var drives []*drive
	for _, name := range inside.Drives(5 * time.Second) { // no machine of ours is without one
		drives = append(drives, &drive{Drive: inside.Drive(name), name: name})
	}
	for _, d := range drives {
		// Without udev nobody has the kernel poll the drive for eject requests.
		if err := os.WriteFile("/sys/block/"+d.name+"/events_poll_msecs", []byte("200"), 0); err != nil {
			inside.Say("%s: %v", d.name, err)
		}
		if err := os.MkdirAll(d.dir(), 0o755); err != nil {
			inside.Say("%s: %v", d.name, err)
		}
	}
	return drives
}

// drive is one CD drive, as the guest sees it.
type drive struct {
	inside.Drive
	name    string
	mounted *mount.MountPoint
	said    string
}

func (d *drive) dir() string { return "/mnt/" + d.name }

// sayOnce says what is new.
func (d *drive) sayOnce(format string, args ...any) {
	if line := fmt.Sprintf(format, args...); line != d.said {
		d.said = line
		inside.Say("%s: %s", d.name, line)
	}
}

// look mounts a disc that is new, and lets go of one that has gone.
func (d *drive) look() {
	disc, changed := d.Status()
	if d.mounted != nil && (!disc || changed) {
		if err := d.mounted.Unmount(mount.MNT_DETACH); err != nil {
			inside.Say("%s: unmount: %v", d.name, err)
		}
		d.mounted = nil
	}
	if !disc {
		d.sayOnce("empty")
		return
	}
	if d.mounted == nil {
		d.read()
	}
}

// read mounts the disc and says what is on it. The first read after a change fails
// with a unit attention; the next look tries again.
func (d *drive) read() {
	m, err := mount.Mount(d.Dev(), d.dir(), "iso9660", "", mount.MS_RDONLY)
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

func (d *drive) volume() string {
	label, err := d.Volume()
	if err != nil {
		return err.Error()
	}
	return label
}

// letGo unmounts and opens the tray.
func (d *drive) letGo() {
	if d.mounted != nil {
		if err := d.mounted.Unmount(0); err != nil {
			inside.Say("%s: unmount: %v", d.name, err)
		}
		d.mounted = nil
	}
	if err := d.Eject(); err != nil {
		inside.Say("%s: %v", d.name, err)
	}
}

// followEjectRequests lets go of a disc when the host asks, which the kernel tells by
// a uevent.
func followEjectRequests(drives []*drive, all *sync.Mutex) {
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		inside.Say("uevents: %v", err)
		return
	}
	if err := unix.Bind(s, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		inside.Say("uevents: %v", err)
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
				inside.Say("%s: the host asks for the disc: unmounting and letting go", d.name)
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
				inside.Say("drop caches: %v", err)
			}
			for _, d := range drives {
				if d.mounted != nil {
					inside.Say("%s: read again: disc %s says: %s", d.name, d.volume(), d.readme())
				} else {
					inside.Say("%s: read again: no disc", d.name)
				}
			}
		case "eject":
			if len(drives) > 0 {
				drives[0].letGo()
			}
		case "off":
			inside.PowerOff()
		}
		all.Unlock()
	}
}
