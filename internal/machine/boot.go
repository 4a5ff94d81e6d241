package machine

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/trayd/trayd/internal/wire"
)

// bootOrder gives each device that may be booted its index: those with a boot_order of
// their own first, then disks and CD drives as Boot has it, each in the order in which the
// definition names them. QEMU wants the indices to differ.
func bootOrder(d *Definition) map[string]int {
	type device struct {
		name  string
		order int
	}
	var disks, drives []device
	for _, k := range d.Disks {
		disks = append(disks, device{k.Name, k.BootOrder})
	}
	for _, c := range d.CDROMs {
		if !c.Seed { // nothing boots from it
			drives = append(drives, device{c.Name, c.BootOrder})
		}
	}
	all := append(disks, drives...)
	if d.Boot != wire.BootDisk {
		all = append(drives, disks...)
	}
	slices.SortStableFunc(all, func(a, b device) int {
		switch {
		case a.order == 0 && b.order == 0:
			return 0
		case a.order == 0:
			return 1
		case b.order == 0:
			return -1
		}
		return cmp.Compare(a.order, b.order)
	})
	order := make(map[string]int, len(all))
	for i, dev := range all {
		order[dev.name] = i + 1
	}
	return order
}

// BootOrder is the names of the devices in the order in which they are booted.
func BootOrder(d *Definition) []string {
	order := bootOrder(d)
	names := make([]string, 0, len(order))
	for name := range order {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Compare(order[a], order[b]) })
	return names
}

// Installed is a definition that boots its disks before all discs: whoever gave a drive a
// boot_order of its own meant the installation. d stays as it is.
func Installed(d *Definition) *Definition {
	next := *d
	next.Boot = wire.BootDisk
	next.CDROMs = slices.Clone(d.CDROMs)
	for i := range next.CDROMs {
		next.CDROMs[i].BootOrder = 0
	}
	return &next
}

// BootDisc is the drive with the disc that is booted before all others; "" for none.
func BootDisc(d *Definition) string {
	for _, name := range BootOrder(d) {
		if slices.ContainsFunc(d.CDROMs, func(c wire.CDROM) bool { return c.Name == name && c.Medium != "" }) {
			return name
		}
	}
	return ""
}

// InDrive is what is known of the disc that a drive has, or would have.
type InDrive struct {
	Medium string // "" for an empty drive
	// Boot is what boots from it; nil where it isn't known.
	Boot *wire.ImageBoot
	Err  string // why it can't be had
}

// WhyNotBooted says what keeps a machine from booting from what its owner may expect, in the
// order in which the firmware tries. drives are by name; written says which disks a guest
// has written to.
func WhyNotBooted(d *Definition, drives map[string]InDrive, written map[string]bool) []string {
	var notes []string
	note := func(format string, args ...any) { notes = append(notes, fmt.Sprintf(format, args...)) }
	firmware := map[string]string{wire.FirmwareBIOS: "BIOS", wire.FirmwareUEFI: "UEFI"}[d.Firmware]
	order := BootOrder(d)
	if len(order) == 0 {
		note("there is nothing to boot from: add a CD drive with a disc, or a disk (`trayctl vm set %s --add-cdrom image:NAME`)", d.Name)
	}
	boots := ""
	for _, name := range order {
		if boots != "" {
			break
		}
		if in, isDrive := drives[name]; isDrive {
			switch {
			case in.Err != "":
				note("drive %s: its disc can't be had: %s", name, in.Err)
			case in.Medium == "":
				note("drive %s is empty: `trayctl insert %s/%s MEDIUM`", name, d.Name, name)
			case in.Boot != nil && !bootsOn(in.Boot, d.Firmware):
				note("drive %s: %s doesn't boot on %s%s", name, in.Medium, firmware, other(in.Boot, d))
			default:
				boots = name
			}
			continue
		}
		if !written[name] {
			note("disk %s is blank: nothing has been installed on it", name)
			continue
		}
		boots = name
	}
	if boots == "" && len(order) > 0 {
		note("so there is nothing that boots; the firmware tries %s", strings.Join(order, ", then "))
	}
	if _, isDrive := drives[boots]; boots != "" && !isDrive {
		for _, c := range d.CDROMs {
			if in := drives[c.Name]; in.Medium != "" && !c.Seed && in.Err == "" {
				note("disk %s is booted before %s in drive %s: `trayctl vm set %s --boot cdrom` is for the disc", boots, in.Medium, c.Name, d.Name)
			}
		}
	}
	return notes
}

func bootsOn(b *wire.ImageBoot, firmware string) bool {
	if firmware == wire.FirmwareUEFI {
		return b.UEFIx64
	}
	return b.BIOS
}

// other names the firmware that a disc does boot on.
func other(b *wire.ImageBoot, d *Definition) string {
	switch {
	case d.Firmware == wire.FirmwareBIOS && b.UEFIx64:
		return fmt.Sprintf(", but on UEFI: `trayctl vm set %s --firmware uefi` while it is stopped", d.Name)
	case d.Firmware == wire.FirmwareUEFI && b.BIOS:
		return fmt.Sprintf(", but on BIOS: `trayctl vm set %s --firmware bios` while it is stopped", d.Name)
	case b.UEFIarm64:
		return ", but on ARM machines only"
	}
	return ": it isn't bootable at all"
}
