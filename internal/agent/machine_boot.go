package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/trayd/trayd/internal/disk"
	"github.com/trayd/trayd/internal/machine"
	"github.com/trayd/trayd/internal/wire"
	"github.com/trayd/trayd/qmp"
)

// What a machine that is being installed boots from is decided by what the guest does, never
// by a clock. As soon as it writes to a disk (QEMU tells at the first write), the running
// machine's boot order is turned round, disks first, so that its next reset boots what was
// installed, whoever is there to see it. The definition follows at the guest's reset or
// power-off, or when the guest ejects the disc: a machine that is killed in the middle of an
// installation begins anew with its disc.

// installing is what is known of a running machine beyond its definition.
type installing struct {
	written bool // the guest has written to a disk
	killed  bool // it was ended on request
	off     bool // the guest has powered off
	// missed is set when the guest had written to a disk, and may have done anything since,
	// while nobody looked.
	missed bool
	// followed is the session by which trayd hears of all that the guest does, knowing what it
	// has done before; nil for none.
	followed *session
	misses   int // how often it has ceased to be followed
}

func (m *machines) known(name string, f func(*installing)) installing {
	m.mu.Lock()
	defer m.mu.Unlock()
	i := m.watch[name]
	if i == nil {
		i = &installing{}
		m.watch[name] = i
	}
	f(i)
	return *i
}

func (m *machines) setKilled(name string) { m.known(name, func(i *installing) { i.killed = true }) }

// anyWrite is an offset that every write goes beyond: 0 means none (block-set-write-threshold).
const anyWrite = 1

// followInstall has QEMU tell when the guest first writes to a disk.
func (m *machines) followInstall(ctx context.Context, s *session, d *machine.Definition) error {
	if d.Boot != wire.BootCDROMOnce {
		return nil
	}
	ctx, cancel := s.command(ctx)
	defer cancel()
	for _, k := range d.Disks {
		if err := s.conn.Execute(ctx, "block-set-write-threshold", map[string]any{"node-name": k.Name, "write-threshold": anyWrite}, nil); err != nil {
			return fmt.Errorf("QEMU can't be asked to tell of the first write to disk %s: %w", k.Name, err)
		}
	}
	return nil
}

// event is told of QEMU's events about a machine.
func (m *machines) event(s *session, e qmp.Event) {
	if !m.own(s.vm.name) {
		return
	}
	var data struct {
		Guest  bool   `json:"guest"`
		Reason string `json:"reason"`
	}
	_ = json.Unmarshal(e.Data, &data) // an event without them has neither
	switch e.Name {
	case "BLOCK_WRITE_THRESHOLD":
		m.known(s.vm.name, func(i *installing) { i.written = true }) // at once: a reset may follow
		m.a.start(func() { m.wroteDisk(s.vm) })
	case "RESET":
		if data.Guest {
			m.a.start(func() { m.guestReset(s.vm) })
		}
	case "SHUTDOWN":
		if data.Guest && data.Reason != "guest-panic" {
			written := m.writtenByNow(s)
			m.known(s.vm.name, func(i *installing) { i.off, i.written = true, i.written || written })
		} else {
			m.setKilled(s.vm.name)
		}
	}
}

// writtenByNow is for a disk's first write whose event came with the machine's end.
func (m *machines) writtenByNow(s *session) bool {
	d, err := m.store().Load(s.vm.name)
	if err != nil || d.Boot != wire.BootCDROMOnce {
		return false
	}
	for _, k := range d.Disks {
		if w, err := disk.Written(m.store().Path(d.Name, machine.DiskFile(k))); err == nil && w {
			return true
		}
	}
	return false
}

// wroteDisk turns the boot order of a running machine round, unless it was reset meanwhile.
func (m *machines) wroteDisk(v *vm) {
	v.turning.Lock()
	defer v.turning.Unlock()
	d, err := m.store().Load(v.name)
	if err != nil || d.Boot != wire.BootCDROMOnce || !m.known(v.name, func(*installing) {}).written {
		return
	}
	s, release := v.current()
	if s == nil {
		return
	}
	defer release()
	m.disksFirst(m.a.ctx, s, d)
}

// disksFirst has a running machine boot its disks from its next reset on. The caller holds the
// machine's turning.
func (m *machines) disksFirst(ctx context.Context, s *session, d *machine.Definition) {
	if err := m.order(ctx, s, machine.Installed(d)); err != nil && s.conn.Err() == nil {
		m.a.log.Warn("the boot order can't be turned round: the machine's next reset boots the disc again", "vm", d.Name, "error", err)
	}
}

// rearm has a machine that is being installed boot from its disc again, at the reset that
// follows. forget is for right after that. The caller holds the machine's turning.
func (m *machines) rearm(ctx context.Context, s *session, d *machine.Definition) (forget func()) {
	if d.Boot != wire.BootCDROMOnce {
		return func() {}
	}
	if m.known(d.Name, func(*installing) {}).missed {
		m.disksFirst(ctx, s, d) // it may be installed: an installer that begins again would destroy it
		m.installed(d.Name, true)
		return func() {}
	}
	warn := func(err error) {
		if err != nil && s.conn.Err() == nil {
			m.a.log.Warn("the machine may boot its disk, and not its disc", "vm", d.Name, "error", err)
		}
	}
	warn(m.order(ctx, s, d))
	return func() { // not before: a guest that is just writing would have the order turned round again
		m.known(d.Name, func(i *installing) { i.written = false })
		warn(m.followInstall(ctx, s, d))
	}
}

// orderStep is between the two ranges of indices: each may be used once at a time, so that
// an order that is turned round goes to the other range.
const orderStep = 1000

// order gives the devices of a running machine their boot indices. The firmware reads them
// at the next reset.
func (m *machines) order(ctx context.Context, s *session, d *machine.Definition) error {
	ctx, cancel := s.command(ctx)
	defer cancel()
	base := 0
	if d.Boot == wire.BootDisk {
		base = orderStep
	}
	for i, name := range machine.BootOrder(d) {
		path, want := "/machine/peripheral/"+name, base+i+1
		var now int
		if err := s.conn.Execute(ctx, "qom-get", map[string]any{"path": path, "property": "bootindex"}, &now); err != nil {
			return fmt.Errorf("boot index of %s: %w", name, err)
		}
		if now == want {
			continue
		}
		if err := s.conn.Execute(ctx, "qom-set", map[string]any{"path": path, "property": "bootindex", "value": want}, nil); err != nil {
			return fmt.Errorf("boot index of %s, %s: %w", name, strconv.Itoa(want), err)
		}
	}
	return nil
}

// guestReset is told that the guest has reset the machine: the first boot is over, and with
// a written disk the installation is.
func (m *machines) guestReset(v *vm) {
	d, err := m.store().Load(v.name)
	if err != nil {
		return
	}
	for _, c := range d.CDROMs {
		if c.Seed && c.Medium != "" {
			m.takeOut(v, c.Name, "the first boot has ended")
		}
	}
	v.turning.Lock() // a reset by its button reads the definition and turns the order by it
	defer v.turning.Unlock()
	m.installed(v.name, true)
}

// installed flips a machine whose disk has been written to.
func (m *machines) installed(name string, runs bool) {
	now := m.known(name, func(*installing) {})
	d, err := m.store().Load(name)
	if err != nil || d.Boot != wire.BootCDROMOnce || !now.written {
		return
	}
	disc := machine.BootDisc(d)
	detach := d.DetachAfterInstall && disc != ""
	m.edit(name, func(d *machine.Definition) {
		*d = *machine.Installed(d)
		for i := range d.CDROMs {
			if detach && !runs && d.CDROMs[i].Name == disc {
				d.CDROMs[i].Medium = ""
			}
		}
	})
	m.a.publish(Event{Type: EventVMInstalled, VM: name, Detail: "the guest has written its disk, and boots from that now"})
	if detach && runs {
		m.takeOut(m.a.vm(name), disc, "the installation has ended")
	}
}

// A reset, which is what ends an installation, closes a tray that is just being emptied: the
// eject is tried again.
const (
	takeOutTries = 5
	takeOutPause = 300 * time.Millisecond
)

// takeOut ejects a disc that is of no use any more.
func (m *machines) takeOut(v *vm, drive, why string) {
	var err error
	for range takeOutTries {
		if err = m.tryTakeOut(v, drive, why); err == nil {
			return
		}
		select {
		case <-time.After(takeOutPause):
		case <-m.a.ctx.Done():
			return
		}
	}
	m.a.log.Warn("a disc of no use any more can't be taken out", "vm", v.name, "drive", drive, "error", err)
}

func (m *machines) tryTakeOut(v *vm, drive, why string) error {
	o, err := m.a.Start(Request{VM: v.name, Drive: drive, Verb: Eject, Force: true, By: Caller{Name: "trayd, since " + why}})
	if err != nil {
		return err
	}
	p, err := o.Wait(m.a.ctx)
	if err != nil {
		return err
	}
	return p.Err
}

// edit changes a machine's definition where nobody waits for it.
func (m *machines) edit(name string, change func(*machine.Definition)) {
	if err := m.tryEdit(name, change); err != nil {
		m.a.log.Error("a machine's definition can't be changed", "vm", name, "error", err)
	}
}

func (m *machines) tryEdit(name string, change func(*machine.Definition)) error {
	m.edits.Lock()
	defer m.edits.Unlock()
	d, err := m.store().Load(name)
	if err != nil {
		return err
	}
	change(d)
	return m.store().Save(d)
}

// followDrive makes a definition say what is in a drive of the running machine: that is what
// its owner sees, and expects after the next start.
func (m *machines) followDrive(name, drive string, rec Record) {
	var r run
	if ok, err := m.a.journal.Get(runPrefix+name, &r); err != nil || !ok {
		return // it is being started: the discs are on their way in
	}
	medium := ""
	if rec.Loaded != nil {
		medium = rec.Loaded.Medium.Name
	}
	d, err := m.store().Load(name)
	if err != nil {
		return
	}
	i := slices.IndexFunc(d.CDROMs, func(c wire.CDROM) bool { return c.Name == drive })
	if i < 0 || d.CDROMs[i].Medium == medium {
		return
	}
	// The installer's own eject; that of a disc with drivers isn't.
	byGuest := rec.Last != nil && rec.Last.By == ByGuest && medium == "" && drive == machine.BootDisc(d)
	m.edit(name, func(d *machine.Definition) {
		i := slices.IndexFunc(d.CDROMs, func(c wire.CDROM) bool { return c.Name == drive })
		if i < 0 {
			return
		}
		if d.CDROMs[i].Seed && medium == "" {
			d.CDROMs = slices.Delete(d.CDROMs, i, i+1)
			return
		}
		d.CDROMs[i].Medium = medium
		if byGuest && d.Boot == wire.BootCDROMOnce {
			*d = *machine.Installed(d)
		}
	})
	if d.CDROMs[i].Seed && medium == "" {
		m.removeSeed(name)
	}
	if byGuest && d.Boot == wire.BootCDROMOnce {
		m.a.publish(Event{Type: EventVMInstalled, VM: name, Detail: "the guest has ejected its disc, and boots from its disk now"})
		if s, release := m.a.vm(name).current(); s != nil {
			if err := m.order(m.a.ctx, s, machine.Installed(d)); err != nil && s.conn.Err() == nil {
				m.a.log.Warn("the boot order can't be turned round", "vm", name, "error", err)
			}
			release()
		}
	}
}
