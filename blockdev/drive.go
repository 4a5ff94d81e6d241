package blockdev

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/trayd/trayd/qmp"
)

// Bus is the bus that a drive hangs on, as the guest sees it.
type Bus string

// The buses that carry CD drives. BusVirtio carries disks only: a disc there is
// listed so that its owner learns why it can't be changed.
const (
	BusSATA    Bus = "sata"
	BusIDE     Bus = "ide"
	BusSCSI    Bus = "scsi"
	BusUSB     Bus = "usb"
	BusVirtio  Bus = "virtio"
	BusUnknown Bus = "unknown"
)

// Drive is what does not change about a CD drive while its QEMU process lives.
type Drive struct {
	// ID is what QEMU's commands take as "id": the -device id, or a QOM path
	// such as /machine/unattached/device[18]. A QOM path holds for one QEMU
	// process only; its index differs between versions.
	ID string
	// Name is the name for people: the -device id, else the legacy backend name
	// (ide1-cd0), else the id of the device that the drive belongs to, else ID.
	Name string
	// Aliases are the other names that mean this drive.
	Aliases []string
	Bus     Bus
	// Model is QEMU's device type: ide-cd, scsi-cd, …
	Model string
	// Fixed says why the disc can't be changed while the machine runs, and what
	// to do instead; empty when it can be changed.
	Fixed string
}

// Is reports whether name means this drive.
func (d Drive) Is(name string) bool {
	if name == d.Name || name == d.ID {
		return true
	}
	for _, a := range d.Aliases {
		if name == a {
			return true
		}
	}
	return false
}

// Identify finds out by QOM what the backend that s shows is. It reports false
// for whatever is no CD drive: hard disks, floppies, backends without a device.
func Identify(ctx context.Context, m Monitor, s State) (Drive, bool, error) {
	if s.ID == "" {
		return Drive{}, false, nil
	}
	path := s.ID
	if !strings.HasPrefix(path, "/") {
		path = "/machine/peripheral/" + path
	}
	model, err := qomString(ctx, m, path, "type")
	if err != nil {
		return Drive{}, false, fmt.Errorf("device type of drive %s: %w", s.ID, err)
	}
	d := Drive{ID: s.ID, Model: model, Bus: BusUnknown}
	switch {
	case model == "ide-cd" || model == "scsi-cd":
		if d.Bus, err = busOf(ctx, m, path); err != nil {
			return Drive{}, false, err
		}
	case model == "virtio-blk-device" || model == "virtio-blk-pci":
		if !looksLikeDisc(s) {
			return Drive{}, false, nil
		}
		d.Bus = BusVirtio
		d.Fixed = "attached as a virtio disk, which has no tray: give the machine a CD drive (-device ide-cd or scsi-cd) at its next start"
	case (model == "scsi-block" || model == "scsi-generic") && s.Medium != nil && s.Medium.Driver == "host_cdrom":
		d.Bus = BusSCSI
		d.Fixed = "a physical drive passed through to the guest: change the disc in the hardware"
	default:
		return Drive{}, false, nil
	}
	if d.Fixed == "" {
		d.Fixed = fixedReason(s)
	}
	d.Name, d.Aliases = names(s)
	return d, true, nil
}

// Recall is what Identify said of the drive that s shows, when its model and bus are known from
// then. It asks nothing. They hold for as long as the drive hasn't been unplugged.
func Recall(s State, model string, bus Bus) Drive {
	d := Drive{ID: s.ID, Model: model, Bus: bus, Fixed: fixedReason(s)}
	d.Name, d.Aliases = names(s)
	return d
}

// fixedReason says why a real CD drive can't be changed live.
func fixedReason(s State) string {
	switch {
	case !s.Removable:
		return "QEMU says that its medium is not removable: change it in the machine's definition and restart the machine"
	case s.Medium != nil && (s.Medium.Driver == "host_cdrom" || s.Medium.Driver == "host_device" && strings.HasPrefix(s.Medium.File, "/dev/sr")):
		return "a physical drive of the host (" + s.Medium.File + "): change the disc in the hardware"
	}
	return ""
}

// looksLikeDisc tells an ISO on a virtio disk (a common mistake) from a disk.
func looksLikeDisc(s State) bool {
	return s.Medium != nil && s.Medium.ReadOnly && strings.HasSuffix(strings.ToLower(s.Medium.File), ".iso")
}

// NameOf is the name that Identify will give the drive that s shows, if it is one.
func NameOf(s State) string {
	if s.ID == "" {
		return ""
	}
	name, _ := names(s)
	return name
}

// names derives the drive's name and its aliases from what query-block shows.
func names(s State) (name string, aliases []string) {
	var all []string
	add := func(n string) {
		if n == "" {
			return
		}
		for _, have := range all {
			if have == n {
				return
			}
		}
		all = append(all, n)
	}
	if !strings.HasPrefix(s.ID, "/") {
		add(s.ID)
	}
	// The id of a USB stick whose CD is a child device: the user gave that id.
	if rest, ok := strings.CutPrefix(s.ID, "/machine/peripheral/"); ok {
		id, _, _ := strings.Cut(rest, "/")
		add(id)
	}
	add(s.Device)
	add(s.ID)
	return all[0], all[1:]
}

// busOf follows the parent bus to its controller: an ide-cd under an AHCI
// controller is SATA, under PIIX it is IDE.
func busOf(ctx context.Context, m Monitor, path string) (Bus, error) {
	bus, err := qomString(ctx, m, path, "parent_bus")
	if err != nil {
		return BusUnknown, fmt.Errorf("bus of drive %s: %w", path, err)
	}
	controller, _, ok := cutLast(bus, "/")
	if !ok {
		return BusUnknown, nil
	}
	kind, err := qomString(ctx, m, controller, "type")
	if err != nil {
		return BusUnknown, fmt.Errorf("controller of drive %s: %w", path, err)
	}
	switch {
	case strings.Contains(kind, "ahci"):
		return BusSATA, nil
	case strings.Contains(kind, "ide"):
		return BusIDE, nil
	case strings.HasPrefix(kind, "usb-"):
		return BusUSB, nil
	case kind != "":
		return BusSCSI, nil // virtio-scsi-device, lsi53c895a, megasas, pvscsi, …
	}
	return BusUnknown, nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// qomString reads a string property; a property that doesn't exist is "".
func qomString(ctx context.Context, m Monitor, path, property string) (string, error) {
	var v any
	err := m.Execute(ctx, "qom-get", map[string]string{"path": path, "property": property}, &v)
	var refused *qmp.Error
	if errors.As(err, &refused) && refused.Class == qmp.ClassGeneric {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	s, _ := v.(string)
	return s, nil
}
