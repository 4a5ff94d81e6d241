package wire

import (
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"strings"
	"time"
)

// Definition is a machine of trayd's own, as its file beneath the state directory says.
type Definition struct {
	Name string `toml:"name" json:"name"`
	UUID string `toml:"uuid" json:"uuid,omitempty"`
	// Flavour is the named size of the configuration that the machine was made with.
	Flavour  string `toml:"flavour,omitempty" json:"flavour,omitempty"`
	Memory   Size   `toml:"memory" json:"memory,omitempty"`
	CPUs     int    `toml:"cpus" json:"cpus,omitempty"`
	Machine  string `toml:"machine" json:"machine,omitempty"`   // MachineQ35 or MachinePC
	Firmware string `toml:"firmware" json:"firmware,omitempty"` // FirmwareBIOS or FirmwareUEFI
	Boot     string `toml:"boot" json:"boot,omitempty"`         // BootDisk, BootCDROM or BootCDROMOnce
	// DetachAfterInstall takes the disc out once the installation has ended.
	DetachAfterInstall bool `toml:"detach_after_install" json:"detach_after_install"`
	// Autostart starts the machine when the host has booted.
	Autostart  bool      `toml:"autostart" json:"autostart"`
	VNC        bool      `toml:"vnc" json:"vnc"`
	Serial     bool      `toml:"serial" json:"serial"`           // a serial console, and its log
	GuestAgent bool      `toml:"guest_agent" json:"guest_agent"` // QEMU's guest agent's channel
	Disks      []Disk    `toml:"disk,omitempty" json:"disks,omitempty"`
	CDROMs     []CDROM   `toml:"cdrom,omitempty" json:"cdroms,omitempty"`
	Networks   []Network `toml:"network,omitempty" json:"networks,omitempty"`
}

// Disk is a disk of a machine.
type Disk struct {
	Name   string `toml:"name" json:"name,omitempty"`
	Bus    string `toml:"bus" json:"bus,omitempty"` // BusVirtio, BusSATA, BusIDE or BusSCSI
	Size   Size   `toml:"size" json:"size,omitempty"`
	Format string `toml:"format" json:"format,omitempty"` // FormatQCOW2
	// Image is the disk image that it was made from, "" for a blank disk. Linked disks keep
	// only what differs from it, and need it; the others are copies.
	Image  string `toml:"image,omitempty" json:"image,omitempty"`
	Linked bool   `toml:"linked,omitempty" json:"linked,omitempty"`
	// Base is the file that a linked disk stands on, and its format.
	Base       string `toml:"base,omitempty" json:"base,omitempty"`
	BaseFormat string `toml:"base_format,omitempty" json:"base_format,omitempty"`
	// BootOrder is 1 for what is booted first; 0 leaves it to Definition.Boot.
	BootOrder int `toml:"boot_order,omitempty" json:"boot_order,omitempty"`
}

// CDROM is a CD drive of a machine.
type CDROM struct {
	Name   string `toml:"name" json:"name,omitempty"`
	Bus    string `toml:"bus" json:"bus,omitempty"` // BusSATA, BusIDE, BusSCSI or BusUSB
	Medium string `toml:"medium,omitempty" json:"medium,omitempty"`
	// Optional lets the machine start without the disc when it can't be had.
	Optional  bool `toml:"optional,omitempty" json:"optional,omitempty"`
	BootOrder int  `toml:"boot_order,omitempty" json:"boot_order,omitempty"`
	// Seed is set for the drive of cloud-init's disc, which goes after the first boot.
	Seed bool `toml:"seed,omitempty" json:"seed,omitempty"`
}

// Network is a network interface of a machine.
type Network struct {
	Type   string `toml:"type" json:"type,omitempty"` // NetworkUser, NetworkBridge or NetworkTap
	Bridge string `toml:"bridge,omitempty" json:"bridge,omitempty"`
	Tap    string `toml:"tap,omitempty" json:"tap,omitempty"` // an existing tap device
	Model  string `toml:"model" json:"model,omitempty"`
	MAC    string `toml:"mac" json:"mac,omitempty"`
}

// The words of a Definition.
const (
	MachineQ35 = "q35"
	MachinePC  = "pc"

	FirmwareBIOS = "bios"
	FirmwareUEFI = "uefi"

	BootDisk      = "disk"       // disks, then CD drives
	BootCDROM     = "cdrom"      // CD drives, then disks
	BootCDROMOnce = "cdrom-once" // BootCDROM until a disk has been written to, then BootDisk

	BusVirtio = "virtio"
	BusSATA   = "sata"
	BusIDE    = "ide"
	BusSCSI   = "scsi"
	BusUSB    = "usb"

	FormatQCOW2 = "qcow2"

	NetworkNone   = "none"
	NetworkUser   = "user"   // QEMU's own, behind the host's address
	NetworkBridge = "bridge" // a tap device of the machine's own in a bridge of the host
	NetworkTap    = "tap"    // a tap device that the host's administrator has made
)

// Size is a number of bytes. People write and read it as "20GiB"; in JSON it is a number,
// and such a word is taken, too.
type Size int64

var sizeUnits = []struct {
	suffix string
	bytes  float64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"kB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12},
	{"K", 1 << 10}, {"M", 1 << 20}, {"G", 1 << 30}, {"T", 1 << 40}, {"B", 1}, {"", 1},
}

// ParseSize reads "20G", "20GiB", "1.5GiB" or "1024": a letter alone is of 1024.
func ParseSize(text string) (Size, error) {
	for _, u := range sizeUnits {
		digits, ok := strings.CutSuffix(text, u.suffix)
		if !ok {
			continue
		}
		n, err := strconv.ParseFloat(strings.TrimSpace(digits), 64)
		if err != nil || n < 0 || math.IsNaN(n) || strings.ContainsAny(digits, "eExXpPiInN_") {
			break
		}
		return Size(min(n*u.bytes, math.MaxInt64/2)), nil // no disk, no memory has more
	}
	return 0, fmt.Errorf("%q is not a size; write a number with its unit, such as 20G or 512MiB", text)
}

// String is the size as people write it, exactly.
func (s Size) String() string {
	for _, u := range []struct {
		suffix string
		bytes  Size
	}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if s >= u.bytes && s%u.bytes == 0 {
			return strconv.FormatInt(int64(s/u.bytes), 10) + u.suffix
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// MarshalText is String.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText is ParseSize.
func (s *Size) UnmarshalText(text []byte) (err error) {
	*s, err = ParseSize(string(text))
	return err
}

// MarshalJSON is the number of bytes.
func (s Size) MarshalJSON() ([]byte, error) { return strconv.AppendInt(nil, int64(s), 10), nil }

// UnmarshalJSON takes a number of bytes, or a string as of ParseSize.
func (s *Size) UnmarshalJSON(b []byte) error {
	var text string
	if json.Unmarshal(b, &text) == nil {
		return s.UnmarshalText([]byte(text))
	}
	return json.Unmarshal(b, (*int64)(s))
}

// MachineStatus is what may be seen of a machine of trayd's own besides its VMStatus.
type MachineStatus struct {
	Definition Definition `json:"definition"`
	Dir        string     `json:"dir"` // its disks, and its definition's file
	// Unit is the systemd unit that it runs as, "" where it is a process of its own.
	Unit string `json:"unit,omitempty"`
	// Disks are the sizes that the disks have now.
	Disks []DiskStatus `json:"disks"`
	// Sockets are those of the running machine.
	Sockets map[string]string `json:"sockets,omitempty"`
	// Screen is whether the guest has drawn anything: see the Screen words.
	Screen string `json:"screen,omitempty"`
	// Notes say what keeps the machine from booting, or what to look at.
	Notes []string `json:"notes,omitempty"`
	// Failure is why its last start or run ended badly.
	Failure string `json:"failure,omitempty"`
}

// DiskStatus is what may be seen of a disk.
type DiskStatus struct {
	Name      string `json:"name"`
	File      string `json:"file"`
	Allocated int64  `json:"allocated"` // bytes on the host
	Written   bool   `json:"written"`   // the guest has written to it
}

// What a machine's screen shows.
const (
	ScreenBlank = "blank" // one colour
	ScreenDrawn = "drawn"
	ScreenNone  = "none" // no display
)

// States of a machine of trayd's own that doesn't run; those of one that does are QEMU's.
const (
	VMStopped = "stopped"
	VMFailed  = "failed" // stopped, and not as was meant
)

// MachineRequest is the body of POST /v1/vms.
type MachineRequest struct {
	Definition Definition `json:"definition"`
	// UserData is cloud-init's, SSHKeys are for its default user.
	UserData string   `json:"user_data,omitempty"`
	SSHKeys  []string `json:"ssh_keys,omitempty"`
	// BootOrder names disks and drives, what is booted first first.
	BootOrder []string `json:"boot_order,omitempty"`
	Start     bool     `json:"start,omitempty"`
}

// MachineChange is the body of PATCH /v1/vms/{vm}; what is nil stays.
type MachineChange struct {
	Memory             *Size     `json:"memory,omitempty"`
	CPUs               *int      `json:"cpus,omitempty"`
	Flavour            *string   `json:"flavour,omitempty"`
	Machine            *string   `json:"machine,omitempty"`
	Firmware           *string   `json:"firmware,omitempty"`
	Boot               *string   `json:"boot,omitempty"`
	DetachAfterInstall *bool     `json:"detach_after_install,omitempty"`
	Autostart          *bool     `json:"autostart,omitempty"`
	VNC                *bool     `json:"vnc,omitempty"`
	Serial             *bool     `json:"serial,omitempty"`
	GuestAgent         *bool     `json:"guest_agent,omitempty"`
	AddDisks           []Disk    `json:"add_disks,omitempty"`
	ResizeDisks        []Disk    `json:"resize_disks,omitempty"` // Name and Size
	RemoveDisks        []string  `json:"remove_disks,omitempty"`
	AddCDROMs          []CDROM   `json:"add_cdroms,omitempty"`
	RemoveCDROMs       []string  `json:"remove_cdroms,omitempty"`
	BootOrder          []string  `json:"boot_order,omitempty"` // names of drives and disks, first first
	Networks           []Network `json:"networks,omitempty"`
}

// StopRequest is the body of POST /v1/vms/{vm}/stop.
type StopRequest struct {
	Wait      string `json:"wait,omitempty"`       // a Go duration; "" is the configured one
	ThenForce bool   `json:"then_force,omitempty"` // end it when the guest hasn't, by then
}

// CaptureRequest is the body of POST /v1/vms/{vm}/capture.
type CaptureRequest struct {
	Name     string `json:"name"`
	Pool     string `json:"pool,omitempty"`
	Disk     string `json:"disk,omitempty"` // "": the first
	Compress bool   `json:"compress,omitempty"`
	// Shutdown asks a running machine to power off first; Wait is for how long.
	Shutdown bool   `json:"shutdown,omitempty"`
	Wait     string `json:"wait,omitempty"`
}

// StopResult is how a stop went.
type StopResult struct {
	VM     string        `json:"vm"`
	Forced bool          `json:"forced"`
	Took   time.Duration `json:"took"`
}

// OnlyWhenStopped reports whether the change is of more than what the machine doesn't
// notice: its autostart.
func (c MachineChange) OnlyWhenStopped() bool {
	autostart := c.Autostart
	c.Autostart = nil
	return autostart == nil || !reflect.DeepEqual(c, MachineChange{})
}

// MachineCreated is the answer to POST /v1/vms.
type MachineCreated struct {
	VM       VMStatus `json:"vm"`
	Warnings []string `json:"warnings,omitempty"` // of its start
}

// MachineStarted is the answer to POST /v1/vms/{vm}/start.
type MachineStarted struct {
	VM       string   `json:"vm"`
	PID      int      `json:"pid"`
	Warnings []string `json:"warnings,omitempty"` // what it has to do without
}
