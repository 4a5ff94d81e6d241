package main

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/u-root/u-root/pkg/mount"

	"github.com/trayd/trayd/internal/guest/inside"
)

// seedLabel is the label of cloud-init's disc.
const seedLabel = "cidata"

// system is what was installed.
func system() error {
	if err := sayDriver(); err != nil {
		return err
	}
	for _, name := range inside.Drives(driveLimit) {
		d := inside.Drive(name)
		label, err := d.Volume()
		if err != nil {
			inside.Say("system: %s: no disc", name)
			continue
		}
		inside.Say("system: %s: disc %s", name, label)
		if label == seedLabel {
			if err := followSeed(d); err != nil {
				return err
			}
		}
	}
	inside.Say("system: ready")
	return nil
}

// sayDriver reads what the installer has put behind the system.
func sayDriver() error {
	var f *os.File
	var err error
	for end := time.Now().Add(diskLimit); ; time.Sleep(20 * time.Millisecond) {
		if f, err = os.Open(disk); err == nil || time.Now().After(end) {
			break
		}
	}
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 512)
	if _, err := f.ReadAt(b, driverAt); err != nil {
		return err
	}
	driver, _, _ := bytes.Cut(b, []byte{0})
	inside.Say("system: booted from its disk on %s, driver: %s", firmware(), bytes.TrimSpace(driver))
	return nil
}

// followSeed does what cloud-init would: it says the host's name, and resets the machine if
// it is told to.
func followSeed(d inside.Drive) error {
	dir := "/mnt/seed"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if _, err := mount.Mount(d.Dev(), dir, "iso9660", "", mount.MS_RDONLY); err != nil {
		return err
	}
	meta, err := os.ReadFile(filepath.Join(dir, "meta-data"))
	if err != nil {
		return err
	}
	user, err := os.ReadFile(filepath.Join(dir, "user-data"))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(meta) + string(user)) {
		inside.Say("seed: %s", strings.TrimSpace(line))
	}
	if bytes.Contains(user, []byte("mode: reboot")) {
		inside.Say("resetting")
		inside.Reset()
	}
	return nil
}

// An event of linux/input.h: two words of time, then type, code and value.
const (
	eventSize = 24
	eventKey  = 1   // EV_KEY
	keyPower  = 116 // KEY_POWER
)

// followPowerButton powers off when the button is pressed.
func followPowerButton() {
	for ; ; time.Sleep(100 * time.Millisecond) {
		names, _ := filepath.Glob("/sys/class/input/event*/device/name") // none yet
		for _, n := range names {
			if name, err := os.ReadFile(n); err != nil || !bytes.HasPrefix(name, []byte("Power Button")) {
				continue
			}
			f, err := os.Open("/dev/input/" + strings.Split(n, "/")[4])
			if err != nil {
				continue
			}
			awaitPower(f)
			f.Close()
		}
	}
}

func awaitPower(f *os.File) {
	event := make([]byte, eventSize)
	for {
		if _, err := f.Read(event); err != nil {
			return
		}
		if binary.LittleEndian.Uint16(event[16:]) == eventKey && binary.LittleEndian.Uint16(event[18:]) == keyPower && event[20] == 1 {
			inside.Say("the power button was pressed: powering off")
			inside.PowerOff()
		}
	}
}
