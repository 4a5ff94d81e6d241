package agent

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/trayd/trayd/internal/disk"
	"github.com/trayd/trayd/internal/machine"
	"github.com/trayd/trayd/internal/machine/seed"
	"github.com/trayd/trayd/internal/wire"
)

// CreateVM makes a machine: its disks, its UEFI variables, cloud-init's disc, and last its
// definition. A failure or a death leaves nothing of it.
func (a *Agent) CreateVM(ctx context.Context, r wire.MachineRequest, by Caller) (VMStatus, []string, error) {
	d := r.Definition
	if err := a.createVM(ctx, &d, r, by); err != nil {
		return VMStatus{}, nil, err
	}
	a.publish(Event{Type: EventVMCreated, VM: d.Name, Detail: fmt.Sprintf("%d processors, %s of memory", d.CPUs, d.Memory)})
	var warnings []string
	if r.Start {
		began, err := a.StartVM(ctx, d.Name, by)
		if err != nil {
			return VMStatus{}, nil, made(d.Name, err)
		}
		warnings = began.Warnings
	}
	st, err := a.VM(ctx, d.Name)
	return st, warnings, err
}

func (a *Agent) createVM(ctx context.Context, d *machine.Definition, r wire.MachineRequest, by Caller) (err error) {
	t := a.trace(by, "create", "vm", d.Name)
	defer func() { t.end(err) }()
	done, err := a.machines.turn(d.Name, "made")
	if err != nil {
		return err
	}
	defer done()
	return a.machines.create(ctx, d, r)
}

// made says of a failed start that the machine is there.
func made(name string, err error) error {
	var e *Error
	if !errors.As(err, &e) {
		return err
	}
	named := *e
	named.Detail = "VM " + name + " is made, but not started: " + e.Detail
	return &named
}

func (m *machines) create(ctx context.Context, d *machine.Definition, r wire.MachineRequest) error {
	o := m.options()
	if o.Runner == nil {
		return newError(VMForeign, "see machines in trayd.toml", "trayd runs no machines here")
	}
	if err := machine.CheckName(d.Name); err != nil {
		return machineError(d.Name, err)
	}
	if o.Store.Has(d.Name) {
		return machineError(d.Name, fmt.Errorf("%w: %s", machine.ErrExists, d.Name))
	}
	if m.isOthers(d.Name) {
		return &Error{Code: VMExists, VM: d.Name, Detail: fmt.Sprintf("there is a VM %s already, which trayd is attached to and doesn't run", d.Name), Next: "choose another name"}
	}
	if len(d.Networks) == 0 { // so that it just works
		d.Networks = []wire.Network{{Type: wire.NetworkUser}}
	}
	d.Networks = slices.DeleteFunc(slices.Clone(d.Networks), func(n wire.Network) bool { return n.Type == wire.NetworkNone })
	seeded := r.UserData != "" || len(r.SSHKeys) > 0
	if seeded {
		if slices.ContainsFunc(d.CDROMs, func(c wire.CDROM) bool { return c.Seed }) {
			return newError(BadRequest, "leave the seed drive out: it is made", "a seed drive in the definition")
		}
		d.CDROMs = append(d.CDROMs, wire.CDROM{Name: seedMedium, Seed: true, Medium: seedMedium})
	}
	if slices.ContainsFunc(d.CDROMs, func(c wire.CDROM) bool { return c.Seed }) && !seeded {
		return newError(BadRequest, "use --user-data or --ssh-key", "a seed drive without what goes onto its disc")
	}
	if err := m.seed(d, r).Check(); err != nil {
		return machineError(d.Name, err)
	}
	bases, giveBack, err := m.lendBases(d)
	if err != nil {
		return err
	}
	defer giveBack()
	for i, k := range d.Disks {
		if k.Image == "" && k.Size == 0 {
			d.Disks[i].Size = machine.DefaultDisk
			for _, f := range o.Flavours {
				if f.Name == d.Flavour && f.Disk > 0 {
					d.Disks[i].Size = f.Disk
				}
			}
		}
	}
	if err := errors.Join(machine.Complete(d, o.Flavours), machine.Reorder(d, r.BootOrder)); err != nil {
		return machineError(d.Name, err)
	}
	if err := machine.Check(d); err != nil {
		return machineError(d.Name, err)
	}
	if err := m.checkMedia(d); err != nil {
		return err
	}
	h, err := machine.FindHost(o.QEMU, o.Accel)
	if err != nil {
		return machineError(d.Name, err)
	}
	// A second machine needs the room that the first one has reserved to be there, too; the
	// sum of one machine's disks is what can be known.
	var need int64
	for i, k := range d.Disks {
		if k.Image == "" || !k.Linked && bases[i] != nil {
			need += int64(k.Size)
		}
	}
	if err := machine.CheckSpace(o.Store.Dir, need); err != nil {
		return machineError(d.Name, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(m.a.ctx, cancel)()
	err = o.Store.Create(d, func(dir string) error { return m.fill(ctx, h, d, bases, r, dir) }, func(step string) { m.a.failPoint("machine-" + step) })
	if err != nil {
		return machineError(d.Name, err)
	}
	return nil
}

// seed is what a new machine learns at its first boot.
func (m *machines) seed(d *machine.Definition, r wire.MachineRequest) seed.Seed {
	return seed.Seed{InstanceID: d.UUID, Hostname: d.Name, UserData: r.UserData, SSHKeys: r.SSHKeys}
}

// fill makes the files of a machine.
func (m *machines) fill(ctx context.Context, h *machine.Host, d *machine.Definition, bases []*lent, r wire.MachineRequest, dir string) error {
	for i, k := range d.Disks {
		if err := m.makeDisk(ctx, dir, k, bases[i]); err != nil {
			return err
		}
	}
	if d.Firmware == wire.FirmwareUEFI {
		fw, err := h.UEFI(d.Machine)
		if err != nil {
			return err
		}
		if err := machine.NewVars(fw, filepath.Join(dir, machine.VarsFile)); err != nil {
			return err
		}
	}
	if r.UserData != "" || len(r.SSHKeys) > 0 {
		return seed.Write(filepath.Join(dir, machine.SeedFile), m.seed(d, r))
	}
	return nil
}

func (m *machines) makeDisk(ctx context.Context, dir string, k wire.Disk, base *lent) error {
	img := machine.Images{Tool: disk.Tool(m.options().QemuImg)}
	file := filepath.Join(dir, machine.DiskFile(k))
	switch {
	case base == nil:
		if err := img.Blank(ctx, dir, k); err != nil {
			return err
		}
	case k.Linked:
		return img.Link(dir, k)
	default:
		if err := m.copyDisk(ctx, file, base); err != nil {
			return err
		}
		if int64(k.Size) > base.size {
			if err := img.Grow(ctx, file, k.Size); err != nil {
				return err
			}
		}
	}
	return machine.Sync(file)
}

// lendBases finds the images that disks are made from, and keeps them from being removed
// until the definition speaks of them. A disk without a size gets its image's.
func (m *machines) lendBases(d *machine.Definition) (bases []*lent, giveBack func(), err error) {
	bases = make([]*lent, len(d.Disks))
	giveBack = func() {
		for _, b := range bases {
			if b != nil {
				b.done()
			}
		}
	}
	for i := range d.Disks {
		k := &d.Disks[i]
		k.Base, k.BaseFormat = "", "" // the image's to say, and nobody else's
		if k.Image == "" {
			continue
		}
		b, err := m.lend(k.Image)
		if err != nil {
			giveBack()
			return nil, nil, err
		}
		bases[i] = b
		k.Image = b.image
		if k.Size == 0 {
			k.Size = wire.Size(b.size)
		}
		if int64(k.Size) < b.size {
			giveBack()
			return nil, nil, newError(BadRequest, fmt.Sprintf("use --disk %s or more, or leave it out", wire.Size(b.size)), "a disk of %s can't be made from %s, which has %s", k.Size, k.Image, wire.Size(b.size))
		}
		if k.Linked {
			k.Base, k.BaseFormat = b.path, b.format
		}
	}
	return bases, giveBack, nil
}

// checkMedia refuses discs that can't be had now, or are none.
func (m *machines) checkMedia(d *machine.Definition) error {
	for _, c := range d.CDROMs {
		if c.Medium == "" || c.Seed || c.Optional {
			continue
		}
		src, err := m.a.openMedium(c.Medium, m.a.opts(), true)
		if err != nil {
			return err
		}
		if src.file != nil {
			src.file.Close()
		}
	}
	return nil
}
