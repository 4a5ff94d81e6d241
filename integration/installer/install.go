package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/u-root/u-root/pkg/mount"

	"github.com/trayd/trayd/internal/guest/inside"
)

// The labels of the discs.
const (
	installerLabel = "INSTALLER"
	driversLabel   = "DRIVERS"
)

// installer has its discs mounted.
type installer struct {
	discs  map[string]*disc // by label
	driver []byte
}

type disc struct {
	inside.Drive
	*mount.MountPoint
}

func install() error {
	inside.Say("installer: booted from its disc on %s", firmware())
	if err := sayBlank(); err != nil {
		return err
	}
	i, err := mountDiscs(installerLabel, driversLabel)
	if err != nil {
		return err
	}
	if i.driver, err = os.ReadFile(filepath.Join(i.discs[driversLabel].Path, "driver.txt")); err != nil {
		return err
	}
	inside.Say("installer: driver: %s", strings.TrimSpace(string(i.driver)))
	answers, err := os.Open(filepath.Join(i.discs[driversLabel].Path, "answers.txt"))
	if err != nil {
		return err
	}
	defer answers.Close()
	return steps(answers, i)
}

// sayBlank waits for the disk, and says what is at its beginning.
func sayBlank() error {
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
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	sector := make([]byte, 512)
	if _, err := f.ReadAt(sector, 0); err != nil {
		return err
	}
	what := "blank"
	for _, b := range sector {
		if b != 0 {
			what = "written"
		}
	}
	inside.Say("installer: disk of %d bytes, %s", size, what)
	return nil
}

// mountDiscs finds the discs by their labels: the numbers of drives say nothing.
func mountDiscs(labels ...string) (*installer, error) {
	i := &installer{discs: make(map[string]*disc)}
	for end := time.Now().Add(diskLimit); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		for _, name := range inside.Drives(driveLimit) {
			d := inside.Drive(name)
			label, err := d.Volume()
			if err != nil || i.discs[label] != nil {
				continue // empty, or not ready yet
			}
			dir := filepath.Join("/mnt", name)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return nil, err
			}
			m, err := mount.Mount(d.Dev(), dir, "iso9660", "", mount.MS_RDONLY)
			if err != nil {
				return nil, err
			}
			i.discs[label] = &disc{d, m}
		}
		missing := ""
		for _, l := range labels {
			if i.discs[l] == nil {
				missing = l
			}
		}
		if missing == "" {
			return i, nil
		}
	}
	return nil, fmt.Errorf("no disc is labelled as one of %v: there are %v", labels, i.discs)
}

func (i *installer) do(step string) error {
	boot := i.discs[installerLabel]
	switch step {
	case "eject":
		if err := boot.Unmount(0); err != nil {
			return err
		}
		err := boot.Eject()
		inside.Say("installer: ejected: %v", err == nil)
		time.Sleep(time.Second) // installers don't cut the power in the same millisecond
		return err
	case "begin":
		return i.write(true)
	}
	return i.write(false)
}

// write writes the system and the driver, or the first half of the system alone.
func (i *installer) write(half bool) error {
	system, err := os.Open(filepath.Join(i.discs[installerLabel].Path, "system.img"))
	if err != nil {
		return err
	}
	defer system.Close()
	st, err := system.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(disk, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer out.Close()
	size, what := st.Size(), "all"
	if half {
		size, what = size/2, "half"
	}
	if _, err := io.CopyN(out, system, size); err != nil {
		return err
	}
	if !half {
		if _, err := out.WriteAt(append(i.driver, 0), driverAt); err != nil {
			return err
		}
	}
	if err := out.Sync(); err != nil {
		return err
	}
	inside.Say("installer: %s of the system is written", what)
	return nil
}
