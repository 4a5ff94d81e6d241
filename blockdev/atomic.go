package blockdev

import (
	"context"
	"errors"
	"fmt"

	"github.com/trayd/trayd/qmp"
)

// Atomic changes discs with the one command blockdev-change-medium. QEMU opens
// the new image before it touches the tray, so there is no moment at which the
// death of the caller leaves the drive empty.
type Atomic struct {
	tray
	force bool // change-medium takes "force"
}

// NewAtomic returns an Atomic.
func NewAtomic(m Monitor, o Options) *Atomic {
	return &Atomic{tray: newTray(m, o), force: o.Features.ChangeMediumForce}
}

// Name is "atomic".
func (a *Atomic) Name() string { return "atomic" }

// changeMediumArgs leaves read-only-mode out: the node's own read-only option, which
// the file name carries, comes before it, and QEMU takes 0.1 ms to read the words.
type changeMediumArgs struct {
	ID       string `json:"id"`
	Filename string `json:"filename"`
	Force    bool   `json:"force,omitempty"`
}

// Swap tries the single command first. It is only when QEMU refuses that anybody
// has to find out why: the door, or the disc.
func (a *Atomic) Swap(ctx context.Context, drive string, disc Disc, force bool) error {
	if force && !a.force {
		return a.forceOpen(ctx, drive, disc)
	}
	refusal := a.change(ctx, drive, disc, force)
	if refusal == nil {
		a.report(StepSwapped)
		return nil
	}
	return a.refused(ctx, drive, disc, force, refusal)
}

// refused finds out why QEMU has refused a change.
func (a *Atomic) refused(ctx context.Context, drive string, disc Disc, force bool, refusal error) error {
	var qemus *qmp.Error
	if !errors.As(refusal, &qemus) {
		return refusal
	}
	s, err := Observe(ctx, a.m, drive)
	if err != nil {
		a.report(StepEjectAsked) // maybe
		return errors.Join(refusal, err)
	}
	if s.Node() == disc.Node {
		return nil // the same operation again: it is in
	}
	held := s.Locked && !s.TrayOpen && !force
	if held {
		a.report(StepEjectAsked)
	}
	// QEMU opens the image before it looks at the door. If it opens now, then the door was
	// what it refused, and the guest has been asked.
	if err := a.tryOpen(ctx, disc); err != nil {
		return err
	}
	if held {
		return ErrLocked
	}
	a.report(StepEjectAsked)
	return &LetGoError{refusal}
}

// forceOpen is Swap by force for QEMU before 7.1, whose change-medium takes no
// "force": the tray is opened by force first, after the disc has proved to open.
func (a *Atomic) forceOpen(ctx context.Context, drive string, disc Disc) error {
	s, err := Observe(ctx, a.m, drive)
	if err != nil {
		return err
	}
	if s.Node() == disc.Node {
		return nil
	}
	opened := false
	if s.Locked && !s.TrayOpen {
		if err := a.tryOpen(ctx, disc); err != nil {
			return err
		}
		if err := a.open(ctx, drive, true); err != nil {
			return err
		}
		opened = true
	}
	err = a.change(ctx, drive, disc, false)
	switch {
	case err == nil:
		a.report(StepSwapped)
		return nil
	case opened:
		a.report(StepEjectAsked) // maybe: the disc opens, so the guest has closed the tray again, and locked it
		return a.undone(ctx, drive, err)
	}
	return a.refused(ctx, drive, disc, false, err) // the guest may have locked the door since
}

func (a *Atomic) change(ctx context.Context, drive string, disc Disc, force bool) error {
	return a.m.Execute(ctx, "blockdev-change-medium", changeMediumArgs{
		ID: drive, Filename: disc.fileName(), Force: force,
	}, nil)
}

// tryOpen has QEMU open the disc and close it again, with the tray untouched.
func (a *Atomic) tryOpen(ctx context.Context, disc Disc) error {
	probe := disc
	probe.Node = disc.Node + TrySuffix
	if err := a.m.Execute(ctx, "blockdev-add", probe.options(), nil); err != nil {
		return fmt.Errorf("QEMU can't open the disc: %w", err)
	}
	return a.discard(ctx, probe.Node)
}

// Eject opens, removes and closes: there is no single command that also closes.
func (a *Atomic) Eject(ctx context.Context, drive string, force bool) error {
	return a.eject(ctx, drive, force)
}
