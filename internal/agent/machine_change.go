package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/trayd/trayd/internal/disk"
	"github.com/trayd/trayd/internal/machine"
	"github.com/trayd/trayd/internal/wire"
)

// ChangeVM edits the definition of a machine that is stopped.
func (a *Agent) ChangeVM(ctx context.Context, name string, c wire.MachineChange, by Caller) (VMStatus, error) {
	if err := a.changeVM(ctx, name, c, by); err != nil {
		return VMStatus{}, err
	}
	return a.VM(ctx, name)
}

func (a *Agent) changeVM(ctx context.Context, name string, c wire.MachineChange, by Caller) (err error) {
	verb := "set"
	if !c.OnlyWhenStopped() {
		verb = "set autostart"
	}
	t := a.trace(by, verb, "vm", name)
	defer func() { t.end(err) }()
	done, err := a.machines.turn(name, "changed")
	if err != nil {
		return err
	}
	defer done()
	return a.machines.change(ctx, name, c)
}

func (m *machines) change(ctx context.Context, name string, c wire.MachineChange) error {
	if _, err := m.load(name); err != nil {
		return err
	}
	if !c.OnlyWhenStopped() { // autostart alone
		return machineError(name, m.tryEdit(name, func(d *machine.Definition) { d.Autostart = *c.Autostart }))
	}
	if err := m.stopped(ctx, name, "changed"); err != nil {
		return err
	}
	old, err := m.load(name) // it may have been another while it ran
	if err != nil {
		return err
	}
	o := m.options()
	d, err := machine.Change(old, c, o.Flavours)
	if err != nil {
		return machineError(name, err)
	}
	if err := m.checkMedia(&machine.Definition{CDROMs: c.AddCDROMs}); err != nil {
		return err
	}
	return machineError(name, m.remake(ctx, old, d))
}

// remake makes the files that a changed definition needs, then the definition, and removes
// last what nobody needs any more: a death in between leaves a machine that works, and what
// is of no use then goes at the next start of trayd.
func (m *machines) remake(ctx context.Context, old, d *machine.Definition) (err error) {
	store := m.store()
	if moved := slices.Concat(without(d.Disks, old.Disks), without(old.Disks, d.Disks)); len(moved) > 0 {
		if err := store.Changing(d.Name, moved); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, store.Settle(d.Name)) }()
	}
	if err := m.makeFiles(ctx, old, d); err != nil {
		return err
	}
	m.a.failPoint("machine-remade")
	if err := store.Save(d); err != nil {
		return err
	}
	m.a.failPoint("machine-saved")
	return nil
}

// without are the disks that the others, by their names, don't have.
func without(disks, others []wire.Disk) []wire.Disk {
	return slices.DeleteFunc(slices.Clone(disks), func(k wire.Disk) bool { return diskOf(others, k.Name) != nil })
}

func diskOf(disks []wire.Disk, name string) *wire.Disk {
	if i := slices.IndexFunc(disks, func(k wire.Disk) bool { return k.Name == name }); i >= 0 {
		return &disks[i]
	}
	return nil
}

// makeFiles makes new disks, grows those that are to be larger, and makes UEFI's variables.
func (m *machines) makeFiles(ctx context.Context, old, d *machine.Definition) error {
	o := m.options()
	dir := o.Store.Path(d.Name)
	img := machine.Images{Tool: disk.Tool(o.QemuImg)}
	for _, k := range d.Disks {
		file := filepath.Join(dir, machine.DiskFile(k))
		was := diskOf(old.Disks, k.Name)
		switch {
		case was == nil:
			if err := os.RemoveAll(file); err != nil { // of somebody's whose definition had it once
				return err
			}
			if err := m.makeDisk(ctx, dir, k, nil); err != nil {
				return err
			}
		case k.Size > was.Size:
			if err := machine.CheckSpace(dir, int64(k.Size-was.Size)); err != nil {
				return err
			}
			if err := disk.Beneath(file, baseOf(k)); err != nil {
				return &Error{Code: DiskRefused, VM: d.Name, Err: err, Detail: fmt.Sprintf("disk %s of VM %s can't grow: %v", k.Name, d.Name, err), Next: "start the machine, and look into it"}
			}
			if err := errors.Join(img.Grow(ctx, file, k.Size), machine.Sync(file)); err != nil {
				return err
			}
		}
	}
	vars := filepath.Join(dir, machine.VarsFile)
	if _, err := os.Stat(vars); d.Firmware != wire.FirmwareUEFI || !os.IsNotExist(err) {
		return nil
	}
	h, err := machine.FindHost(o.QEMU, o.Accel)
	if err != nil {
		return err
	}
	fw, err := h.UEFI(d.Machine)
	if err != nil {
		return err
	}
	return machine.NewVars(fw, vars)
}

// RemoveVM removes a machine that is stopped, with its disks. force ends it first.
func (a *Agent) RemoveVM(ctx context.Context, name string, force bool, by Caller) (err error) {
	t := a.trace(by, "rm", "vm", name)
	defer func() { t.end(err) }()
	done, err := a.machines.turn(name, "removed")
	if err != nil {
		return err
	}
	defer done()
	err = a.machines.remove(ctx, name, force)
	if err == nil {
		a.publish(Event{Type: EventVMRemoved, VM: name, Detail: "removed, with its disks"})
	}
	return err
}

func (m *machines) remove(ctx context.Context, name string, force bool) error {
	if _, err := m.load(name); err != nil && CodeOf(err) != VMInvalid {
		return err
	}
	err := m.stopped(ctx, name, "removed")
	if CodeOf(err) == VMRunning && force {
		err = m.end(ctx, name)
	}
	if err != nil {
		return err
	}
	m.setFailed(name, "")
	if err := m.options().Runner.Kill(ctx, name); err != nil { // nothing runs: how its last run ended is forgotten
		return &Error{Code: Unreachable, VM: name, Err: err, Detail: fmt.Sprintf("VM %s can't be removed: %v", name, err), Next: "try again"}
	}
	if err := m.options().Store.Remove(name, func(step string) { m.a.failPoint("machine-" + step) }); err != nil {
		return machineError(name, err)
	}
	m.a.scanSoon() // its name is free for others
	return nil
}

// changeStopped is a request for a drive of a machine of trayd's own that doesn't run. ours
// is false for all others.
func (a *Agent) changeStopped(req Request) (o *Operation, ours bool, err error) {
	switch {
	case req.Verb == Replace && req.Medium == "":
		req.Verb = Eject
	case req.Verb != Insert && req.Verb != Replace && req.Verb != Eject:
		return nil, false, nil
	}
	began := time.Now()
	out, drive, ours, err := a.machines.changeStopped(a.ctx, req)
	if err != nil || !ours {
		return nil, ours, err
	}
	o = &Operation{
		ID: out.Operation, VM: req.VM, Drive: drive, Verb: req.Verb, Medium: req.Medium, By: req.By.Name, Since: began,
		req: req, opts: a.opts(), done: make(chan struct{}), cancel: make(chan struct{}), force: make(chan struct{}), phase: Ended, outcome: out,
	}
	close(o.done)
	a.log.Info("done", "audit", true, "by", o.By, "verb", o.Verb, "vm", o.VM, "drive", o.Drive, "medium", o.Medium, "operation", o.ID, "result", out.Result, "reason", out.Reason,
		"took", time.Since(began).Round(time.Microsecond))
	return o, true, a.remember(o.ID, o)
}

// changeStopped puts a disc into the definition of a machine that doesn't run, or takes one
// out: it is in the drive from the next start on.
func (m *machines) changeStopped(ctx context.Context, req Request) (out *Outcome, drive string, ours bool, err error) {
	if m.options().Runner == nil || !m.own(req.VM) {
		return nil, "", false, nil
	}
	if st, err := m.running(ctx, req.VM); err != nil || st.Running {
		return nil, "", false, nil // QEMU's to do
	}
	done, err := m.turn(req.VM, "changed")
	if err != nil {
		return nil, "", true, err
	}
	defer done()
	if err := m.stopped(ctx, req.VM, "changed"); err != nil {
		return nil, "", true, err
	}
	d, err := m.load(req.VM)
	if err != nil {
		return nil, "", true, err
	}
	i, err := definedDrive(d, req.Drive)
	if err != nil {
		return nil, "", true, err
	}
	c := &d.CDROMs[i]
	out = &Outcome{Operation: randomName(10), Verb: req.Verb, Medium: req.Medium, By: req.By.Name, At: time.Now().UTC(), Result: Done, Reason: "the machine is stopped: its definition is changed"}
	if req.Verb == Eject {
		req.Medium = ""
	} else if req.Medium == "" {
		return nil, "", true, newError(BadRequest, "name a medium: a path, image:NAME, lvm:VG/LV", "no medium was named")
	} else if req.NoValidate {
		return nil, "", true, newError(BadRequest, "start the machine, then insert it", "a start puts in only what is a disc, so that VM %s can't have another while it is stopped", d.Name)
	} else if err := m.checkMedia(&machine.Definition{CDROMs: []wire.CDROM{{Medium: req.Medium}}}); err != nil {
		return nil, "", true, err
	}
	switch {
	case c.Seed:
		return nil, "", true, seedDrive(d.Name, c.Name)
	case req.Verb == Insert && c.Medium != "" && c.Medium != req.Medium:
		return nil, "", true, &Error{Code: DriveOccupied, VM: d.Name, Drive: c.Name, Detail: fmt.Sprintf("drive %s/%s is not empty: %s is in", d.Name, c.Name, c.Medium),
			Next: fmt.Sprintf("use `trayctl change %s/%s %s` to replace it", d.Name, c.Name, req.Medium)}
	case c.Medium == req.Medium:
		out.Reason = "nothing to do: the machine is stopped, and its definition says so already"
		return out, c.Name, true, nil
	}
	c.Medium = req.Medium
	if err := m.store().Save(d); err != nil {
		return nil, "", true, machineError(d.Name, err)
	}
	e := Event{Type: EventLoaded, VM: d.Name, Drive: c.Name, Operation: out.Operation, Detail: req.Medium + " is in the drive at the next start"}
	if req.Medium == "" {
		e.Type, e.Detail = EventEjected, "the drive is empty at the next start"
	}
	m.a.publish(e)
	return out, c.Name, true, nil
}

func seedDrive(vm, drive string) error {
	return &Error{Code: DriveFixed, VM: vm, Drive: drive, Detail: fmt.Sprintf("drive %s/%s is for cloud-init's disc alone", vm, drive), Next: "use another drive"}
}

// isSeed reports whether a drive is for cloud-init's disc: it goes with that.
func (m *machines) isSeed(vm, drive string) bool {
	if !m.own(vm) {
		return false
	}
	d, err := m.store().Load(vm)
	return err == nil && slices.ContainsFunc(d.CDROMs, func(c wire.CDROM) bool { return c.Name == drive && c.Seed })
}

// definedDrive finds a drive of a definition, or the only one.
func definedDrive(d *machine.Definition, name string) (int, error) {
	var names []string
	only, n := -1, 0
	for i, c := range d.CDROMs {
		if name != "" && c.Name == name {
			return i, nil
		}
		names = append(names, d.Name+"/"+c.Name)
		if !c.Seed {
			only, n = i, n+1
		}
	}
	switch {
	case len(names) == 0:
		return 0, &Error{Code: NoSuchDrive, VM: d.Name, Detail: "VM " + d.Name + " has no CD drive", Next: "`trayctl vm set " + d.Name + " --add-cdrom` gives it one while it is stopped"}
	case name == "" && n == 1:
		return only, nil
	case name == "":
		return 0, &Error{Code: AmbiguousDrive, VM: d.Name, Detail: fmt.Sprintf("VM %s has %d CD drives", d.Name, len(names)), Next: "name one: " + strings.Join(names, ", ")}
	}
	return 0, &Error{Code: NoSuchDrive, VM: d.Name, Drive: name, Detail: fmt.Sprintf("VM %s has no CD drive %s", d.Name, name), Next: "drives: " + strings.Join(names, ", ")}
}
