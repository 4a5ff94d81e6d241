package blockdev

import (
	"context"
	"errors"
	"fmt"

	"github.com/trayd/trayd/qmp"
)

// Stepwise changes discs with the explicit commands, for a QEMU without
// blockdev-change-medium. Its node exists before the tray moves and outlives the
// connection; a caller that dies between the steps finds it again by its name.
type Stepwise struct {
	tray
}

// NewStepwise returns a Stepwise.
func NewStepwise(m Monitor, o Options) *Stepwise {
	return &Stepwise{tray: newTray(m, o)}
}

// Name is "stepwise".
func (w *Stepwise) Name() string { return "stepwise" }

// Swap adds the new node (QEMU opens the disc), then opens, removes, inserts and
// closes. When the insertion fails after the removal, the error says that the
// drive is empty: the caller knows which disc belongs in it.
func (w *Stepwise) Swap(ctx context.Context, drive string, disc Disc, force bool) error {
	s, err := Observe(ctx, w.m, drive)
	if err != nil {
		return err
	}
	if s.Node() == disc.Node {
		if s.TrayOpen {
			return w.close(ctx, drive)
		}
		return nil
	}
	if err := w.add(ctx, disc); err != nil {
		return err
	}
	// From here on the node must not be left behind by a failure, except when
	// the guest is being waited for: the next attempt uses it again.
	if err := w.open(ctx, drive, force); err != nil {
		if errors.Is(err, ErrLocked) || errors.Is(err, qmp.ErrUnanswered) {
			return err
		}
		return errors.Join(err, w.discard(ctx, disc.Node))
	}
	if s.Medium != nil {
		if err := w.remove(ctx, drive); err != nil {
			err = w.undone(ctx, drive, err)
			if errors.Is(err, qmp.ErrUnanswered) {
				return err
			}
			return errors.Join(err, w.discard(ctx, disc.Node))
		}
	}
	if err := InsertNode(ctx, w.m, drive, disc.Node); err != nil {
		return fmt.Errorf("%w (the drive is empty, its tray open)", err)
	}
	w.report(StepMediumInserted)
	if err := w.close(ctx, drive); err != nil {
		return err
	}
	if s.Medium != nil {
		return w.forget(ctx, s.Medium.Node)
	}
	return nil
}

// add makes the node, unless an earlier attempt of the same operation did.
func (w *Stepwise) add(ctx context.Context, disc Disc) error {
	err := w.m.Execute(ctx, "blockdev-add", disc.options(), nil)
	var refused *qmp.Error
	if errors.As(err, &refused) {
		nodes, qerr := Nodes(ctx, w.m, disc.Node)
		if qerr != nil {
			return errors.Join(err, qerr)
		}
		for _, n := range nodes {
			if n == disc.Node {
				return nil
			}
		}
	}
	if err != nil {
		return fmt.Errorf("QEMU can't open the disc: %w", err)
	}
	w.report(StepNodeAdded)
	return nil
}

// Eject opens, removes and closes.
func (w *Stepwise) Eject(ctx context.Context, drive string, force bool) error {
	return w.eject(ctx, drive, force)
}
