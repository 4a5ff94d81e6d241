package agent

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/trayd/trayd/blockdev"
	"github.com/trayd/trayd/qmp"
)

// carryOut does one step of a plan. An error ends the round; the next one begins
// with a new observation.
func (d *drive) carryOut(ctx context.Context, s *session, obs Observation, st Step) error {
	if w, ok := st.(Write); ok {
		return d.writeOutcome(ctx, obs, w)
	}
	if r, ok := st.(Release); ok {
		_ = d.release(ctx, r.Volume) // noted, and tried again: it holds nothing up
		return nil
	}
	if s == nil {
		return fmt.Errorf("%T needs QEMU, which is not there", st)
	}
	var err error
	switch st := st.(type) {
	case CloseTray:
		err = blockdev.CloseTray(ctx, s.conn, d.id())
	case OpenTray:
		err = blockdev.OpenTray(ctx, s.conn, d.id())
	case RemoveMedium:
		err = blockdev.RemoveMedium(ctx, s.conn, d.id())
	case InsertNode:
		err = blockdev.InsertNode(ctx, s.conn, d.id(), st.Node)
	case DeleteNode:
		err = s.deleteNode(ctx, st.Node, d.name)
	case TakeBack:
		err = takeBack(ctx, s, st.FDSet)
	case Restore:
		err = d.restore(ctx, s, st)
	}
	if err != nil {
		return err
	}
	d.vm.a.failPoint("settle-" + stepName(st))
	return nil
}

// stepName names a step for fail points: the type's name in lower case.
func stepName(st Step) string {
	switch st.(type) {
	case CloseTray:
		return "close-tray"
	case OpenTray:
		return "open-tray"
	case RemoveMedium:
		return "remove-medium"
	case InsertNode:
		return "insert-node"
	case DeleteNode:
		return "delete-node"
	case TakeBack:
		return "take-back"
	case Restore:
		return "restore"
	}
	return "write"
}

// writeOutcome makes a planned record durable and says what it means. The record
// of a machine that is no more goes altogether.
func (d *drive) writeOutcome(ctx context.Context, obs Observation, w Write) error {
	rec := w.Record
	rec.Loaded = d.vm.a.complete(ctx, rec.Loaded)
	if err := d.conclude(&rec, obs); err != nil {
		return fmt.Errorf("write the outcome to the state file: %w", err)
	}
	d.vm.a.failPoint("outcome-written")
	if obs.VM == Present && rec.Change == nil && d.vm.a.machines.own(rec.VM) {
		d.vm.a.machines.followDrive(rec.VM, rec.Drive, rec)
	}
	if w.Event != "" {
		e := Event{Type: w.Event, VM: rec.VM, Drive: rec.Drive, Detail: w.Detail}
		if rec.Last != nil {
			e.Operation = rec.Last.Operation
		}
		d.vm.a.publish(e)
	}
	return nil
}

// conclude makes a planned record durable, then current.
func (d *drive) conclude(rec *Record, obs Observation) (err error) {
	d.pen.Lock()
	defer d.pen.Unlock()
	// A release may have ended since it was planned.
	now := d.record()
	rec.Releasing = now.Releasing
	rec.letGo(&now, obs.Now)
	if obs.VM == Gone && rec.empty() {
		err = d.vm.a.journal.Delete(recordKey(rec.VM, rec.Drive))
	} else {
		err = d.vm.a.write(*rec, true)
	}
	if err == nil {
		d.setRecord(*rec)
	}
	return err
}

// takeBack ends a loan; one that QEMU doesn't know any more is over.
func takeBack(ctx context.Context, s *session, fdset int) error {
	err := blockdev.TakeBack(ctx, s.conn, fdset)
	var refused *qmp.Error
	if errors.As(err, &refused) {
		return nil
	}
	return err
}

// restore opens the old disc's file again and puts it back. The file was in the
// drive before, so no root is asked about.
func (d *drive) restore(ctx context.Context, s *session, st Restore) error {
	f, err := d.reopen(ctx, st.Path)
	if err != nil {
		return fmt.Errorf("bring the old disc back: %w", err)
	}
	defer f.Close()
	disc, err := blockdev.Lend(ctx, s.conn, f, st.Node)
	if err != nil {
		return fmt.Errorf("bring the old disc back: %w", err)
	}
	disc.Size = st.Capacity
	c, err := s.changer(ctx, nil)
	if err == nil {
		err = c.Swap(ctx, d.id(), disc, true)
	}
	if e := takeBack(ctx, s, disc.FDSet); err == nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("bring the old disc back: %w", err)
	}
	return nil
}

// reopen opens the old disc again: one on a volume by the volume's name, since QEMU
// doesn't hold it any more and another may have the device's number by now.
func (d *drive) reopen(ctx context.Context, path string) (*os.File, error) {
	in := d.record().Loaded
	if in == nil || in.Medium.Volume == nil || in.Medium.Path != path {
		return os.Open(path)
	}
	a := d.vm.a
	v, err := a.volumes.storage.Volume(*in.Medium.Volume)
	if err != nil {
		return nil, err
	}
	unlock, err := a.volumes.lock(ctx, v.Ref())
	if err != nil {
		return nil, err
	}
	defer unlock()
	// One that is active is the one that the disc was read from, also where the
	// configuration has been changed since.
	if st, err := v.State(ctx); err != nil || !st.Active {
		if _, err := a.activate(ctx, v); err != nil {
			return nil, err
		}
	}
	return v.Open(ctx, in.Medium.Inside)
}
