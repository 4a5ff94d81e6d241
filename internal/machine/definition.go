package machine

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/trayd/trayd/internal/wire"
)

// Definition is a machine's.
type Definition = wire.Definition

// The limits of a definition.
const (
	// maxName in bytes is a user's name's 31 (systemd.exec(5), User=) without "vm-": each
	// machine has a user of its own under systemd.
	maxName = 28
	// maxDevice is of a disk's or drive's name: a block node's has 31 bytes (QEMU's
	// block_int-common.h, node_name), and that of a linked disk's base is NAME-base.
	maxDevice = 31 - len("-base")
	minMemory = 16 << 20
	maxMemory = 64 << 40
	maxCPUs   = 288 // q35's, without an interrupt remapping IOMMU it is 255: QEMU says so
	minDisk   = 1 << 20
	maxDisk   = 64 << 40 // a qcow2 with clusters of 64 KiB and a table of 32 MiB goes to 2 EiB; ext4's files to 16 TiB
)

// What a machine has without a word.
const (
	defaultMemory = 1 << 30
	defaultCPUs   = 1
	// DefaultDisk is the size of a blank disk that is asked for without one, in bytes.
	DefaultDisk = 20 << 30
)

// Problem is one thing that is wrong in a definition.
type Problem struct {
	Key    string
	Detail string
	Next   string
}

// InvalidError is a definition that can't be.
type InvalidError struct {
	Machine  string
	Problems []Problem
}

func (e *InvalidError) Error() string {
	var words []string
	for _, p := range e.Problems {
		words = append(words, p.Key+": "+p.Detail)
	}
	name := e.Machine
	if name == "" {
		name = "a machine"
	}
	return fmt.Sprintf("the definition of %s is refused: %s", name, strings.Join(words, "; "))
}

// Next is what to do about the first problem.
func (e *InvalidError) Next() string {
	for _, p := range e.Problems {
		if p.Next != "" {
			return p.Next
		}
	}
	return "see `trayctl vm create --help`"
}

// CheckName refuses what can't be a machine's name.
func CheckName(name string) error {
	ok := name != "" && len(name) <= maxName
	for i, c := range []byte(name) {
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		ok = ok && (letter || i > 0 && strings.IndexByte("-_", c) >= 0)
	}
	if !ok {
		return &InvalidError{name, []Problem{{"name", fmt.Sprintf("%q can't be a machine's name", name),
			fmt.Sprintf("use at most %d letters, digits, '-' and '_', beginning with a letter or a digit", maxName)}}}
	}
	return nil
}

// Flavour is a named size.
type Flavour struct {
	Name   string
	Memory wire.Size
	CPUs   int
	Disk   wire.Size // of the first disk, where that is blank; 0: none
}

// Complete fills in what a definition doesn't say, so that it just boots: q35 with BIOS;
// discs on SATA, which installers of Windows see, disks and the network on virtio.
func Complete(d *Definition, flavours []Flavour) error {
	if d.Flavour != "" {
		f, err := flavourOf(d, flavours)
		if err != nil {
			return err
		}
		set(&d.Memory, f.Memory)
		set(&d.CPUs, f.CPUs)
	}
	set(&d.UUID, newUUID())
	set(&d.Memory, defaultMemory)
	set(&d.CPUs, defaultCPUs)
	set(&d.Machine, wire.MachineQ35)
	set(&d.Firmware, wire.FirmwareBIOS)
	withDisc := slices.ContainsFunc(d.CDROMs, func(c wire.CDROM) bool { return c.Medium != "" && !c.Seed })
	blank := slices.ContainsFunc(d.Disks, func(k wire.Disk) bool { return k.Image == "" })
	switch {
	case d.Boot != "":
	case withDisc && blank:
		d.Boot = wire.BootCDROMOnce
	case withDisc && len(d.Disks) == 0:
		d.Boot = wire.BootCDROM
	default:
		d.Boot = wire.BootDisk
	}
	for i := range d.Disks {
		k := &d.Disks[i]
		set(&k.Name, unused("disk", d))
		set(&k.Bus, wire.BusVirtio)
		set(&k.Format, wire.FormatQCOW2)
	}
	for i := range d.CDROMs {
		c := &d.CDROMs[i]
		set(&c.Name, unused("cd", d))
		set(&c.Bus, map[string]string{wire.MachinePC: wire.BusIDE}[d.Machine])
		set(&c.Bus, wire.BusSATA)
	}
	for i := range d.Networks {
		n := &d.Networks[i]
		if n.Type == "" {
			n.Type = wire.NetworkUser
		}
		set(&n.Model, "virtio")
		set(&n.MAC, newMAC())
	}
	return nil
}

func flavourOf(d *Definition, flavours []Flavour) (Flavour, error) {
	var names []string
	for _, f := range flavours {
		if f.Name == d.Flavour {
			return f, nil
		}
		names = append(names, f.Name)
	}
	next := "flavours: " + strings.Join(names, ", ")
	if len(names) == 0 {
		next = "there are none: add a [[flavour]] to trayd.toml, or give --memory and --cpus"
	}
	return Flavour{}, &InvalidError{d.Name, []Problem{{"flavour", fmt.Sprintf("no flavour %q", d.Flavour), next}}}
}

func set[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// unused is the first of disk0, disk1, … that no device has, and none of those taken.
func unused(kind string, d *Definition, taken ...string) string {
	for i := 0; ; i++ {
		if name := fmt.Sprintf("%s%d", kind, i); !has(d, name) && !slices.Contains(taken, name) {
			return name
		}
	}
}

func has(d *Definition, name string) bool {
	return slices.ContainsFunc(d.Disks, func(k wire.Disk) bool { return k.Name == name }) ||
		slices.ContainsFunc(d.CDROMs, func(c wire.CDROM) bool { return c.Name == name })
}

// newUUID is a random one (RFC 9562, version 4).
func newUUID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails (crypto/rand)
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// newMAC is a random address with the prefix that QEMU's own have.
func newMAC() string {
	var b [3]byte
	rand.Read(b[:])
	return fmt.Sprintf("52:54:00:%02x:%02x:%02x", b[0], b[1], b[2])
}

// checker collects what is wrong in a definition.
type checker struct{ problems []Problem }

func (k *checker) refuse(key, next, format string, args ...any) {
	k.problems = append(k.problems, Problem{key, fmt.Sprintf(format, args...), next})
}

func (k *checker) word(key, word string, allowed ...string) {
	if !slices.Contains(allowed, word) {
		k.refuse(key, "use one of "+strings.Join(allowed, ", "), "%q is none of %s", word, strings.Join(allowed, ", "))
	}
}

func (k *checker) within(key string, n, least, most wire.Size) {
	if n < least || n > most {
		k.refuse(key, fmt.Sprintf("use %s to %s", least, most), "%s is not within %s and %s", n, least, most)
	}
}

// Check refuses a complete definition that can't be a machine. The error is an
// *InvalidError with all that is wrong.
func Check(d *Definition) error {
	if err := CheckName(d.Name); err != nil {
		return err
	}
	k := &checker{}
	k.within("memory", d.Memory, minMemory, maxMemory)
	if d.Memory%(1<<20) != 0 {
		k.refuse("memory", "use whole MiB", "%s is not a whole number of MiB", d.Memory)
	}
	if d.CPUs < 1 || d.CPUs > maxCPUs {
		k.refuse("cpus", fmt.Sprintf("use 1 to %d", maxCPUs), "%d processors", d.CPUs)
	}
	k.word("machine", d.Machine, wire.MachineQ35, wire.MachinePC)
	k.word("firmware", d.Firmware, wire.FirmwareBIOS, wire.FirmwareUEFI)
	k.word("boot", d.Boot, wire.BootDisk, wire.BootCDROM, wire.BootCDROMOnce)
	if b, err := hex.DecodeString(strings.ReplaceAll(d.UUID, "-", "")); err != nil || len(b) != 16 || len(d.UUID) != 36 {
		k.refuse("uuid", "leave it out, and one is made", "%q is not a UUID", d.UUID)
	}
	k.devices(d)
	for i, n := range d.Networks {
		k.network(fmt.Sprintf("network[%d]", i), n, d)
	}
	if len(k.problems) > 0 {
		return &InvalidError{d.Name, k.problems}
	}
	return nil
}

func (k *checker) devices(d *Definition) {
	seen, orders := make(map[string]bool), make(map[int]string)
	device := func(key, name string, order int) {
		k.deviceName(key+".name", name)
		if seen[name] {
			k.refuse(key+".name", "give each disk and drive a name of its own", "%q is there twice", name)
		}
		seen[name] = true
		if other := orders[order]; order != 0 && other != "" {
			k.refuse(key+".boot_order", "give each its own", "%s and %s have the same boot_order %d", other, name, order)
		}
		orders[order] = name
		if order < 0 || order > 1000 {
			k.refuse(key+".boot_order", "use 1 for what is booted first", "%d is not within 1 and 1000", order)
		}
	}
	for i, disk := range d.Disks {
		key := fmt.Sprintf("disk[%d]", i)
		device(key, disk.Name, disk.BootOrder)
		k.word(key+".bus", disk.Bus, wire.BusVirtio, wire.BusSATA, wire.BusIDE, wire.BusSCSI)
		k.word(key+".format", disk.Format, wire.FormatQCOW2)
		k.within(key+".size", disk.Size, minDisk, maxDisk)
		if disk.Size%512 != 0 {
			k.refuse(key+".size", "use whole MiB", "%s is not whole sectors of 512 bytes", disk.Size)
		}
		if disk.Linked && (disk.Image == "" || disk.Base == "") {
			k.refuse(key+".linked", "name the image", "a linked disk needs the image that it stands on")
		}
		if !disk.Linked && (disk.Base != "" || disk.BaseFormat != "") {
			k.refuse(key+".base", "leave it out", "a disk that isn't linked stands on nothing")
		}
	}
	seeds := 0
	for i, c := range d.CDROMs {
		key := fmt.Sprintf("cdrom[%d]", i)
		device(key, c.Name, c.BootOrder)
		k.word(key+".bus", c.Bus, wire.BusSATA, wire.BusIDE, wire.BusSCSI, wire.BusUSB)
		if strings.ContainsRune(c.Medium, 0) || len(c.Medium) > 4096 {
			k.refuse(key+".medium", "name a medium as `trayctl insert` takes it", "it has a zero byte or more than 4096 bytes")
		}
		if c.Seed {
			seeds++
		}
	}
	if seeds > 1 {
		k.refuse("cdrom", "one seed disc does", "more than one drive for cloud-init's disc")
	}
	k.places(d)
}

// places refuses more devices than their buses have places for.
func (k *checker) places(d *Definition) {
	use := make(map[string]int)
	for _, disk := range d.Disks {
		use[disk.Bus]++
	}
	for _, c := range d.CDROMs {
		use[c.Bus]++
	}
	if use[wire.BusIDE] > 0 && d.Machine == wire.MachineQ35 {
		k.refuse("machine", "use bus sata, or machine pc", "q35 has no IDE")
	}
	for _, l := range []struct {
		bus string
		max int
		why string
	}{
		{wire.BusIDE, 4, "pc has two channels of two"},
		{wire.BusSATA, 6, "its controller has six ports"},
		{wire.BusSCSI, 64, "trayd gives a machine one controller"},
		{wire.BusUSB, 4, "trayd gives a machine one controller"},
		{wire.BusVirtio, 16, "each takes a place on the PCI bus"},
	} {
		if n := use[l.bus]; n > l.max {
			k.refuse("disk, cdrom", fmt.Sprintf("use another bus for %d of them", n-l.max), "%d devices on bus %s, which has room for %d: %s", n, l.bus, l.max, l.why)
		}
	}
}

func (k *checker) deviceName(key, name string) {
	ok := name != "" && len(name) <= maxDevice
	for i, c := range []byte(name) {
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		ok = ok && (letter || i > 0 && ('0' <= c && c <= '9' || strings.IndexByte("-_.", c) >= 0))
	}
	if ok && slices.Contains(reserved, name) {
		k.refuse(key, "use another", "%q is a device that every machine has", name)
	} else if ok && (strings.HasSuffix(name, "-base") || strings.HasSuffix(name, "-usb")) {
		k.refuse(key, "use another", "%q may be what another device stands on", name)
	} else if !ok {
		k.refuse(key, fmt.Sprintf("use at most %d letters, digits, '-', '_' and '.', beginning with a letter", maxDevice), "%q can't be a device's name", name)
	}
}

// reserved are the ids of devices and nodes that Command makes besides disks and drives.
var reserved = []string{"usb", "tablet", "scsi", "ahci", "serial", "serial0", "video", "code", "vars", "agent", "channel", "rng", "qmp", "operator", "power"}

func (k *checker) network(key string, n wire.Network, d *Definition) {
	k.word(key+".type", n.Type, wire.NetworkUser, wire.NetworkBridge, wire.NetworkTap)
	k.word(key+".model", n.Model, "virtio", "e1000", "e1000e", "rtl8139")
	if mac, err := net.ParseMAC(n.MAC); err != nil || len(mac) != 6 || len(n.MAC) != len("52:54:00:00:00:00") { // QEMU knows no 5254.0000.0000
		k.refuse(key+".mac", "leave it out, and one is made", "%q is not a MAC address", n.MAC)
	} else if mac[0]&1 != 0 {
		k.refuse(key+".mac", "leave it out, and one is made", "%q is a group's address", n.MAC)
	}
	if n.Model == "e1000e" && d.Machine == wire.MachinePC {
		k.refuse(key+".model", "use e1000, or machine q35", "e1000e needs PCI Express")
	}
	wants := func(field, value string, wanted bool) {
		switch {
		case wanted && !interfaceName(value):
			k.refuse(key+"."+field, "name it as `ip link` shows it", "%q is not the name of a network interface", value)
		case !wanted && value != "":
			k.refuse(key+"."+field, "leave it out", "a network of type %s has none", n.Type)
		}
	}
	wants("bridge", n.Bridge, n.Type == wire.NetworkBridge)
	wants("tap", n.Tap, n.Type == wire.NetworkTap)
}

// interfaceName reports whether the kernel takes the name (dev_valid_name; IFNAMSIZ is 16
// with its zero).
func interfaceName(name string) bool {
	return name != "" && len(name) < 16 && name != "." && name != ".." && !strings.ContainsAny(name, "/: \t\n\v\f\r,=\x00")
}
