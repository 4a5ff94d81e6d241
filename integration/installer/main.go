// Command installer is the only program of a small operating system that installs itself
// without a human. As the init of a boot disc (role=installer on the kernel's command line)
// it finds the disc of drivers by its label, writes the system to the first disk with the
// driver behind it, and ends as the answers on that disc say. As the init of what it has
// installed (role=system) it says where it was booted from and which driver it has, does
// what cloud-init's disc wants, and powers off on the power button.
//
// The answers are steps, one a line; so is what is typed on the serial console:
//
//	begin   write the first half of the system
//	write   write the system and the driver
//	eject   eject the disc that was booted
//	reset   reset the machine
//	off     power off
//	ask     take the next steps from the serial console
package main

import (
	"bufio"
	"bytes"
	"io"
	"os"
	"strings"
	"time"

	"github.com/trayd/trayd/internal/guest/inside"
)

const (
	// diskLimit is how long a disk or drive may take to be found: its controller is probed
	// in the background.
	diskLimit = 30 * time.Second
	// driveLimit is after which a machine is taken to have no CD drives.
	driveLimit = 5 * time.Second

	disk = "/dev/vda"
	// driverAt is where the driver is on the disk, in bytes: behind every system.
	driverAt = 256 << 20
)

func main() {
	inside.Begin()
	go followPowerButton()
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		inside.Say("%v", err)
	}
	if bytes.Contains(line, []byte("role=installer")) {
		err = install()
	} else {
		err = system()
	}
	if err != nil {
		inside.Say("failed: %v", err)
	}
	if err := steps(os.Stdin, nil); err != nil {
		inside.Say("failed: %v", err)
	}
	select {} // process 1 never ends
}

// firmware is what has started the machine: the kernel has a folder for UEFI's services.
func firmware() string {
	if _, err := os.Stat("/sys/firmware/efi"); err == nil {
		return "UEFI"
	}
	return "BIOS"
}

// steps does what the lines say. They end with the console's, which has no end.
func steps(lines io.Reader, i *installer) error {
	for scan := bufio.NewScanner(lines); scan.Scan(); {
		step := strings.TrimSpace(scan.Text())
		var err error
		switch step {
		case "begin", "write", "eject":
			if i == nil {
				inside.Say("there is nothing to %s", step)
				continue
			}
			err = i.do(step)
		case "reset":
			inside.Say("resetting")
			inside.Reset()
		case "off":
			inside.Say("powering off")
			inside.PowerOff()
		case "ask":
			inside.Say("what next?")
			return steps(os.Stdin, i)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
