package blockdev

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/trayd/trayd/qmp"
)

// Step names a moment in a change at which QEMU's state has just become another.
// They are reported in this order; each is a point at which the caller may die,
// and its recovery must cope.
type Step string

// The steps. Which of them occur depends on the Changer and on the guest.
const (
	StepNodeAdded      Step = "node-added"      // a node exists outside the drive (Stepwise)
	StepEjectAsked     Step = "eject-asked"     // the guest has been asked to let go, or may have been
	StepTrayOpen       Step = "tray-open"       // the tray is open, the old disc in it
	StepMediumRemoved  Step = "medium-removed"  // the tray is open and empty
	StepMediumInserted Step = "medium-inserted" // the new disc lies in the open tray (Stepwise)
	StepTrayClosed     Step = "tray-closed"     // the tray is closed, empty or with the new disc
	StepSwapped        Step = "swapped"         // one command did it all (Atomic)
)

// Changer puts discs into a drive and takes them out. Its methods are attempts:
// they never wait for a guest. All of them may be repeated: doing what is done
// already is a success.
//
// An error that matches qmp.ErrUnanswered means that nobody knows: ask Observe.
// After any other error the drive is as it was before, unless the error says
// that it isn't. After a *NodeInUseError all is done but one thing: that node, the old
// disc's, is left. A node of the disc's name, or that name and TrySuffix, may be left
// outside the drive after an error, also for a next attempt to use: whoever gives up
// deletes both (DeleteNode).
type Changer interface {
	// Name is "atomic" or "stepwise".
	Name() string
	// Swap puts disc into the drive, replacing what is in it. Without force it
	// fails with ErrLocked when the guest holds the door, and with a *LetGoError when it
	// did until a moment ago; by force with either when the guest is quick.
	Swap(ctx context.Context, drive string, disc Disc, force bool) error
	// Eject empties the drive and closes the tray. Without force it fails with
	// ErrLocked when the guest holds the door.
	Eject(ctx context.Context, drive string, force bool) error
}

// TrySuffix ends the name of the node by which Atomic tries whether QEMU can open a
// disc. It lives for two commands.
const TrySuffix = "-try"

// Features is what a running QEMU offers, found out by query-qmp-schema.
type Features struct {
	ChangeMedium      bool // blockdev-change-medium exists (QEMU 2.5 and later)
	ChangeMediumForce bool // and takes "force" (7.1 and later)
}

// Probe asks QEMU once for what it offers; the answer holds for the connection.
func Probe(ctx context.Context, c *qmp.Conn) (Features, error) {
	schema, err := c.QuerySchema(ctx)
	if err != nil {
		return Features{}, fmt.Errorf("ask QEMU for its commands: %w", err)
	}
	return Features{
		ChangeMedium:      schema.HasCommand("blockdev-change-medium"),
		ChangeMediumForce: schema.HasArg("blockdev-change-medium", "force"),
	}, nil
}

// Options is what a Changer needs to know.
type Options struct {
	Features Features
	// Own is the prefix of the caller's node names. Nodes with another name are
	// somebody else's and are never deleted. Empty: nothing is ever deleted.
	Own string
	// Report is called at every Step, from the calling goroutine; nil for none.
	Report func(Step)
}

// Choose returns the best Changer that a QEMU with these features allows.
func Choose(m Monitor, o Options) Changer {
	if o.Features.ChangeMedium {
		return NewAtomic(m, o)
	}
	return NewStepwise(m, o)
}

// tray holds what both changers do the same way.
type tray struct {
	m      Monitor
	own    string
	report func(Step)
}

func newTray(m Monitor, o Options) tray {
	if o.Report == nil {
		o.Report = func(Step) {}
	}
	return tray{m: m, own: o.Own, report: o.Report}
}

// forget deletes a node that has left its drive, if it is the caller's own. Its
// *NodeInUseError is that of Changer.
func (t tray) forget(ctx context.Context, node string) error {
	if t.own == "" || !strings.HasPrefix(node, t.own) {
		return nil
	}
	return DeleteNode(ctx, t.m, node)
}

type driveArgs struct {
	ID    string `json:"id"`
	Force *bool  `json:"force,omitempty"`
}

// open opens the tray. QEMU answers success to an open-tray that it only passed
// on to the guest as a request, so the truth is asked for afterwards.
func (t tray) open(ctx context.Context, drive string, force bool) error {
	if err := t.m.Execute(ctx, "blockdev-open-tray", driveArgs{ID: drive, Force: &force}, nil); err != nil {
		return fmt.Errorf("open the tray: %w", err)
	}
	s, err := Observe(ctx, t.m, drive)
	if err != nil {
		t.report(StepEjectAsked) // maybe
		return fmt.Errorf("see whether the tray is open: %w", err)
	}
	if !s.TrayOpen {
		t.report(StepEjectAsked)
		return ErrLocked
	}
	t.report(StepTrayOpen)
	return nil
}

func (t tray) remove(ctx context.Context, drive string) error {
	if err := t.m.Execute(ctx, "blockdev-remove-medium", driveArgs{ID: drive}, nil); err != nil {
		return fmt.Errorf("remove the disc from the open tray: %w", err)
	}
	t.report(StepMediumRemoved)
	return nil
}

func (t tray) close(ctx context.Context, drive string) error {
	if err := t.m.Execute(ctx, "blockdev-close-tray", driveArgs{ID: drive}, nil); err != nil {
		return fmt.Errorf("close the tray: %w", err)
	}
	t.report(StepTrayClosed)
	return nil
}

// eject opens, removes and closes; before the removal every failure closes the
// tray again, with the disc in it.
func (t tray) eject(ctx context.Context, drive string, force bool) error {
	s, err := Observe(ctx, t.m, drive)
	if err != nil {
		return err
	}
	if s.Medium == nil {
		return t.close(ctx, drive)
	}
	if err := t.open(ctx, drive, force); err != nil {
		return err
	}
	if err := t.remove(ctx, drive); err != nil {
		return t.undone(ctx, drive, err)
	}
	left := t.forget(ctx, s.Medium.Node)
	var inUse *NodeInUseError
	if left != nil && !errors.As(left, &inUse) {
		return left
	}
	if err := t.close(ctx, drive); err != nil {
		return err
	}
	return left
}

// discard deletes a node of a failed or finished attempt. One that somebody else has
// begun to use meanwhile is found again by its name.
func (t tray) discard(ctx context.Context, node string) error {
	err := DeleteNode(ctx, t.m, node)
	var inUse *NodeInUseError
	if errors.As(err, &inUse) {
		return nil
	}
	return err
}

// undone closes a tray that a failed attempt opened, so that the old disc can be
// read again, and returns the attempt's error.
func (t tray) undone(ctx context.Context, drive string, cause error) error {
	if errors.Is(cause, qmp.ErrUnanswered) {
		return cause // nothing may follow a command whose outcome is not known
	}
	if err := t.close(ctx, drive); err != nil {
		return fmt.Errorf("%w (and the tray could not be closed again: %v)", cause, err)
	}
	return cause
}

// DeleteNode deletes a node that lies outside any drive. One that came with its medium
// has gone with it, which is a success; one that something else in QEMU uses stays,
// and the error is a *NodeInUseError.
func DeleteNode(ctx context.Context, m Monitor, node string) error {
	err := m.Execute(ctx, "blockdev-del", map[string]string{"node-name": node}, nil)
	var refused *qmp.Error
	if !errors.As(err, &refused) {
		return err
	}
	// QEMU refuses both alike, in words that differ between versions.
	there, err := Nodes(ctx, m, node)
	if err == nil && slices.Contains(there, node) {
		err = &NodeInUseError{Node: node}
	}
	return err
}

// NodeInUseError is a node that can't be deleted since something else in QEMU uses it:
// an export or a block job of another client.
type NodeInUseError struct{ Node string }

func (e *NodeInUseError) Error() string {
	return "node " + e.Node + " is in use by an export or a block job of another client"
}

// CloseTray closes a drive's tray; a closed one is a success.
func CloseTray(ctx context.Context, m Monitor, drive string) error {
	return newTray(m, Options{}).close(ctx, drive)
}

// OpenTray opens a drive's tray by force. It is meant for empty drives.
func OpenTray(ctx context.Context, m Monitor, drive string) error {
	return newTray(m, Options{}).open(ctx, drive, true)
}

// RemoveMedium takes the disc out of an open tray. It fails when the tray is
// closed, which makes it safe after a guest's own eject: a guest that closed the
// tray again in between keeps its disc.
func RemoveMedium(ctx context.Context, m Monitor, drive string) error {
	return newTray(m, Options{}).remove(ctx, drive)
}

// InsertNode puts an existing node into an open, empty tray.
func InsertNode(ctx context.Context, m Monitor, drive, node string) error {
	args := map[string]string{"id": drive, "node-name": node}
	if err := m.Execute(ctx, "blockdev-insert-medium", args, nil); err != nil {
		return fmt.Errorf("insert the disc into the open tray: %w", err)
	}
	return nil
}
