package machine

import (
	"fmt"
	"path/filepath"
	"strconv"

	"github.com/trayd/trayd/internal/machine/launch"
	"github.com/trayd/trayd/internal/wire"
)

// DiskFile is the file of a disk in its machine's directory.
func DiskFile(k wire.Disk) string { return k.Name + "." + k.Format }

// bus gives out the places of a machine's buses, and makes the controllers.
type bus struct {
	b      *builder
	sata   int
	ide    int
	hasHBA map[string]bool
}

func (u *bus) controller(id, device string) {
	if u.hasHBA == nil {
		u.hasHBA = make(map[string]bool)
	}
	if !u.hasHBA[id] {
		u.hasHBA[id] = true
		u.b.device("%s,id=%s", device, id)
	}
}

// place is the bus= of the next device on a kind of bus.
func (u *bus) place(kind string) string {
	switch kind {
	case wire.BusSATA:
		port := u.sata
		u.sata++
		if u.b.d.Machine == wire.MachineQ35 { // its own controller's ports are ide.0 to ide.5
			return "bus=ide." + strconv.Itoa(port)
		}
		u.controller("ahci", "ahci")
		return "bus=ahci." + strconv.Itoa(port)
	case wire.BusIDE: // pc only: two channels of two
		unit := u.ide
		u.ide++
		return fmt.Sprintf("bus=ide.%d,unit=%d", unit/2, unit%2)
	case wire.BusSCSI:
		u.controller("scsi", "virtio-scsi-pci")
		return "bus=scsi.0"
	}
	return ""
}

// buses are shared by disks and drives: disks come first.
func (b *builder) buses() *bus {
	if b.shared == nil {
		b.shared = &bus{b: b}
	}
	return b.shared
}

func (b *builder) disks() {
	for _, k := range b.d.Disks {
		node := map[string]any{
			"driver": k.Format, "node-name": k.Name, "discard": "unmap",
			"file": map[string]any{"driver": "file", "filename": b.file(filepath.Join(b.dir, DiskFile(k)), launch.ReadWrite), "discard": "unmap"},
		}
		if k.Format == wire.FormatQCOW2 {
			node["backing"] = b.base(k)
		}
		b.blockdev(node)
		b.device("%s,drive=%s,id=%s%s", b.disk(k), k.Name, k.Name, b.bootIndex(k.Name))
	}
}

// base is what a disk stands on: given here in full, so that QEMU never looks at the name
// that the disk's own header has. nil: it stands alone.
func (b *builder) base(k wire.Disk) any {
	if !k.Linked {
		return nil
	}
	file := map[string]any{"driver": "file", "filename": b.file(k.Base, launch.Read), "read-only": true}
	base := map[string]any{"driver": k.BaseFormat, "node-name": k.Name + "-base", "read-only": true, "file": file}
	if k.BaseFormat == wire.FormatQCOW2 {
		base["backing"] = nil
	}
	return base
}

func (b *builder) disk(k wire.Disk) string {
	switch k.Bus {
	case wire.BusVirtio:
		return "virtio-blk-pci"
	case wire.BusSCSI:
		return "scsi-hd," + b.buses().place(k.Bus)
	}
	return "ide-hd," + b.buses().place(k.Bus)
}

// drives are made empty: trayd puts the discs in.
func (b *builder) drives() {
	for _, c := range b.d.CDROMs {
		index := b.bootIndex(c.Name)
		switch c.Bus {
		case wire.BusSATA, wire.BusIDE:
			b.device("ide-cd,%s,id=%s%s", b.buses().place(c.Bus), c.Name, index)
		case wire.BusSCSI:
			b.device("scsi-cd,%s,id=%s%s", b.buses().place(c.Bus), c.Name, index)
		case wire.BusUSB: // usb-storage can't be empty; usb-bot with a drive on it can
			b.device("usb-bot,bus=usb.0,id=%s-usb", c.Name)
			b.device("scsi-cd,bus=%s-usb.0,lun=0,id=%s%s", c.Name, c.Name, index)
		}
	}
}

func (b *builder) bootIndex(name string) string {
	if i, ok := b.order[name]; ok {
		return ",bootindex=" + strconv.Itoa(i)
	}
	return ""
}
