package machine

import (
	"fmt"
	"slices"
	"strings"

	"github.com/trayd/trayd/internal/wire"
)

// Change is a definition with what a request changes. d stays as it is.
func Change(d *Definition, c wire.MachineChange, flavours []Flavour) (*Definition, error) {
	next := *d
	next.Disks, next.CDROMs, next.Networks = slices.Clone(d.Disks), slices.Clone(d.CDROMs), slices.Clone(d.Networks)
	if c.Flavour != nil {
		next.Flavour = *c.Flavour
		if *c.Flavour != "" {
			next.Memory, next.CPUs = 0, 0 // the flavour's, unless they are given too
		}
	}
	take(&next.Memory, c.Memory)
	take(&next.CPUs, c.CPUs)
	take(&next.Machine, c.Machine)
	take(&next.Firmware, c.Firmware)
	take(&next.Boot, c.Boot)
	take(&next.DetachAfterInstall, c.DetachAfterInstall)
	take(&next.Autostart, c.Autostart)
	take(&next.VNC, c.VNC)
	take(&next.Serial, c.Serial)
	take(&next.GuestAgent, c.GuestAgent)
	if err := devices(&next, c); err != nil {
		return nil, err
	}
	if c.Networks != nil {
		next.Networks = slices.DeleteFunc(slices.Clone(c.Networks), func(n wire.Network) bool { return n.Type == wire.NetworkNone })
	}
	if err := Complete(&next, flavours); err != nil {
		return nil, err
	}
	if err := Reorder(&next, c.BootOrder); err != nil {
		return nil, err
	}
	return &next, Check(&next)
}

func take[T any](field *T, value *T) {
	if value != nil {
		*field = *value
	}
}

func refuse(d *Definition, key, next, format string, args ...any) error {
	return &InvalidError{d.Name, []Problem{{key, fmt.Sprintf(format, args...), next}}}
}

// devices removes, then adds, then grows.
func devices(d *Definition, c wire.MachineChange) error {
	for _, name := range c.RemoveDisks {
		n := len(d.Disks)
		d.Disks = slices.DeleteFunc(d.Disks, func(k wire.Disk) bool { return k.Name == name })
		if len(d.Disks) == n {
			return refuse(d, "disk", "see `trayctl vm show "+d.Name+"`", "there is no disk %s", name)
		}
	}
	for _, name := range c.RemoveCDROMs {
		n := len(d.CDROMs)
		d.CDROMs = slices.DeleteFunc(d.CDROMs, func(k wire.CDROM) bool { return k.Name == name })
		if len(d.CDROMs) == n {
			return refuse(d, "cdrom", "see `trayctl vm show "+d.Name+"`", "there is no CD drive %s", name)
		}
	}
	for _, k := range c.AddDisks {
		if k.Image != "" {
			return refuse(d, "disk", "make a machine from the image: `trayctl vm create NAME --image "+k.Image+"`", "a disk from an image can't be added to a machine")
		}
		if slices.Contains(c.RemoveDisks, k.Name) {
			return refuse(d, "disk", "give it another name, or change the machine twice", "disk %s is being removed: a new one can't have its name yet", k.Name)
		}
		set(&k.Size, DefaultDisk)
		set(&k.Name, unused("disk", d, c.RemoveDisks...)) // what is in those files goes, and isn't the new disk's
		d.Disks = append(d.Disks, k)
	}
	for _, k := range c.AddCDROMs {
		if k.Seed {
			return refuse(d, "cdrom", "use --user-data with `trayctl vm create`", "a seed drive can't be added later")
		}
		d.CDROMs = append(d.CDROMs, k)
	}
	for _, r := range c.ResizeDisks {
		i := slices.IndexFunc(d.Disks, func(k wire.Disk) bool { return k.Name == r.Name })
		switch {
		case i < 0:
			return refuse(d, "disk", "see `trayctl vm show "+d.Name+"`", "there is no disk %s", r.Name)
		case r.Size < d.Disks[i].Size:
			return refuse(d, "disk", "a disk can only grow: what lies at its end would be lost", "disk %s has %s, and can't become %s", r.Name, d.Disks[i].Size, r.Size)
		}
		d.Disks[i].Size = r.Size
	}
	return nil
}

// Reorder numbers the devices as they are named. nil leaves them as they are.
func Reorder(d *Definition, names []string) error {
	if names == nil {
		return nil
	}
	number := make(map[string]int)
	for i, name := range names {
		if !has(d, name) {
			return refuse(d, "boot_order", "disks and drives: "+strings.Join(BootOrder(d), ", "), "there is no disk or drive %s", name)
		}
		if number[name] != 0 {
			return refuse(d, "boot_order", "name each once", "%s is there twice", name)
		}
		number[name] = i + 1
	}
	for i := range d.Disks {
		d.Disks[i].BootOrder = number[d.Disks[i].Name]
	}
	for i := range d.CDROMs {
		d.CDROMs[i].BootOrder = number[d.CDROMs[i].Name]
	}
	return nil
}
