package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/trayd/trayd/internal/machine"
	"github.com/trayd/trayd/internal/wire"
)

// heldDisc is a disc that is ready to be put into the drive of a machine that is about to
// be started.
type heldDisc struct {
	cd wire.CDROM
	o  *Operation
	t  *task
}

// holdDiscs finds and opens the discs of a definition, and has their volumes activated.
func (m *machines) holdDiscs(ctx context.Context, d *machine.Definition, by Caller) (discs []*heldDisc, warnings []string, err error) {
	for _, c := range d.CDROMs {
		if c.Medium == "" {
			continue
		}
		h, e := m.hold(ctx, d.Name, c, by)
		if e == nil {
			discs = append(discs, h)
			continue
		}
		if c.Optional {
			warnings = append(warnings, fmt.Sprintf("drive %s/%s is left empty, as its disc is optional: %v", d.Name, c.Name, e))
			continue
		}
		for _, h := range discs {
			h.drop(e)
		}
		var known *Error
		if errors.As(e, &known) {
			named := *known
			named.VM, named.Drive = d.Name, c.Name
			named.Detail = fmt.Sprintf("VM %s isn't started: the disc of drive %s can't be had: %s", d.Name, c.Name, known.Detail)
			e = &named
		}
		return nil, nil, e
	}
	return discs, warnings, nil
}

// seedMedium is what a definition calls cloud-init's disc.
const seedMedium = "seed"

// hold takes a drive's turn, and does all of an insert that needs no QEMU.
func (m *machines) hold(ctx context.Context, name string, c wire.CDROM, by Caller) (*heldDisc, error) {
	a := m.a
	v := a.vm(name)
	d := v.drive(c.Name)
	o := &Operation{
		ID: randomName(10), VM: name, Drive: c.Name, Verb: Insert, Medium: c.Medium, By: by.Name,
		Since: time.Now(), drive: d, opts: a.opts(), req: Request{By: by},
		done: make(chan struct{}), cancel: make(chan struct{}), force: make(chan struct{}), phase: Starting,
	}
	d.mu.Lock()
	if other := d.op; other != nil {
		d.mu.Unlock()
		return nil, other.busy()
	}
	d.op = o
	d.mu.Unlock()
	select {
	case d.turn <- struct{}{}:
	case <-ctx.Done():
		o.free()
		return nil, newError(Stopping, "try again when it runs", "trayd is stopping")
	}
	if err := a.remember(o.ID, o); err != nil {
		o.leave()
		d.giveUpTurn()
		return nil, err
	}
	h := &heldDisc{cd: c, o: o}
	if err := h.open(ctx, m); err != nil {
		h.drop(err)
		return nil, err
	}
	return h, nil
}

func (h *heldDisc) open(ctx context.Context, m *machines) error {
	a, d := m.a, h.o.drive
	d.letGoHeld() // of a start whose end could not be written
	if rec := d.record(); rec.Change != nil || rec.Loaded != nil {
		d.settle(ctx, nil, nil) // of a process that has ended
		if rec = d.record(); rec.Change != nil || rec.Loaded != nil {
			return h.o.error(DriveBusy, "see `trayctl drives "+h.o.VM+"`", "drive %s/%s is not settled: a QEMU that had it may still be there", h.o.VM, h.o.Drive)
		}
	}
	disc := make(chan opened)
	gaveUp := make(chan struct{})
	defer close(gaveUp)
	go func() {
		src, err := m.openDisc(h.o.VM, h.cd)
		select {
		case disc <- opened{src, err}:
		case <-gaveUp:
			if src.file != nil {
				src.file.Close()
			}
		}
	}()
	got := h.o.await(ctx, disc)
	if got.err != nil {
		return got.err
	}
	h.t = &task{file: got.file, volume: got.volume, place: got.place}
	h.t.change = Change{ID: h.o.ID, Verb: Insert, Kind: Loading, By: h.o.By, Since: time.Now().UTC(), Target: got.medium, Node: a.mark + h.o.ID}
	if got.volume == nil {
		return nil
	}
	return h.o.turnOn(ctx, nil, a.self(), h.t)
}

// openDisc opens a disc of a definition. The seed is in the machine's own directory, and
// nowhere that anybody could name.
func (m *machines) openDisc(name string, c wire.CDROM) (source, error) {
	if !c.Seed {
		return m.a.openMedium(c.Medium, m.a.opts(), true)
	}
	f, err := os.Open(m.store().Path(name, machine.SeedFile))
	if err != nil {
		return source{}, mediumError(seedMedium, err)
	}
	med, err := inspect(f, seedMedium, f.Name(), 0, true, &m.a.prober)
	if err != nil {
		f.Close()
		return source{}, err
	}
	return source{file: f, medium: med}, nil
}

// self is trayd's own process: a record of a machine that is being started is of that, so
// that what it holds is let go when trayd dies.
func (a *Agent) self() Process { return lookUp(os.Getpid(), a.boot) }

// drop gives up a disc that was held.
func (h *heldDisc) drop(cause error) {
	d := h.o.drive
	if h.t != nil {
		h.t.close()
	}
	if rec := d.record(); rec.Change != nil && rec.Change.ID == h.o.ID {
		d.letGoHeld()
	}
	h.o.leave()
	d.giveUpTurn()
	h.o.answer(nil, cause)
	d.retryReleases(d.vm.a.ctx)
}

// letGoHeld takes the record of a disc that was held back, and of no other. The caller has
// the drive's turn.
func (d *drive) letGoHeld() {
	if rec := d.record(); rec.Change == nil || rec.Process != d.vm.a.self() {
		return
	}
	err := d.amend(true, func(rec *Record) {
		before := *rec
		rec.Change = nil
		rec.letGo(&before, time.Now().UTC())
	})
	if err != nil {
		d.settled(err) // the next start tries again
	}
}

// loadAll puts the discs into the drives, all at once. The error is of one that the machine
// can't do without; the others are warnings.
func (m *machines) loadAll(ctx context.Context, s *session, discs []*heldDisc) (warnings []string, err error) {
	if len(discs) > 0 {
		err = s.know(ctx)
	}
	failed := make([]error, len(discs))
	var work sync.WaitGroup
	for i, h := range discs {
		work.Go(func() { failed[i] = h.load(ctx, s, err) })
	}
	work.Wait()
	for i, e := range failed {
		switch {
		case e == nil:
		case discs[i].cd.Optional:
			warnings = append(warnings, fmt.Sprintf("drive %s/%s is left empty, as its disc is optional: %v", s.vm.name, discs[i].cd.Name, e))
		default:
			err = errors.Join(err, e)
		}
	}
	return warnings, err
}

// load puts a held disc into its drive, as an insert does.
func (h *heldDisc) load(ctx context.Context, s *session, known error) error {
	o, d := h.o, h.o.drive
	outcome, err := (*Outcome)(nil), known
	if err == nil {
		outcome, err = h.change(ctx, s)
	}
	if err != nil && outcome == nil {
		h.drop(err)
		return err
	}
	o.leave()
	d.giveUpTurn()
	o.answer(outcome, err)
	return err
}

func (h *heldDisc) change(ctx context.Context, s *session) (*Outcome, error) {
	o, t, d := h.o, h.t, h.o.drive
	defer t.close()
	if !s.has(d) {
		return nil, o.error(NoSuchDrive, "see `trayctl drives "+o.VM+"`", "QEMU of VM %s has no CD drive %s", o.VM, o.Drive)
	}
	t.id = d.id()
	before, err := o.look(ctx, s, t.id)
	if err != nil {
		return nil, o.cannotLook(s, err)
	}
	if before.Medium != nil {
		return nil, o.error(DriveOccupied, "see `trayctl drives "+o.VM+"`", "drive %s/%s is not empty", o.VM, o.Drive)
	}
	t.before = before
	t.change.From = Before{TrayOpen: before.TrayOpen}
	bounded, cancel := s.command(ctx)
	defer cancel()
	changer, err := s.changer(bounded, nil)
	if err != nil {
		return nil, o.error(Unreachable, "try again", "QEMU of %s can't be asked for its commands: %w", o.VM, err)
	}
	t.change.Stepwise = changer.Name() == "stepwise"
	if err := o.intend(s.process, t); err != nil {
		return nil, err
	}
	return o.carryThrough(ctx, s, t, nil)
}
