package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/trayd/trayd/blockdev"
	"github.com/trayd/trayd/blockdev/volume"
	"github.com/trayd/trayd/internal/library"
	"github.com/trayd/trayd/qmp"
)

// run takes the operation from request to outcome.
func (o *Operation) run() {
	a, d := o.drive.vm.a, o.drive
	ctx := a.ctx
	a.publish(Event{Type: EventStarted, VM: o.VM, Drive: o.Drive, Operation: o.ID, Detail: o.what()})
	turn := time.NewTimer(2 * (o.opts.Command + exitGrace))
	defer turn.Stop()
	select {
	case d.turn <- struct{}{}: // a settle at work ends soon
	case <-turn.C:
		o.leave()
		o.answer(nil, o.error(DriveBusy, "trayd goes on asking QEMU; try again when `trayctl drives` shows it settled",
			"drive %s/%s is being settled, and QEMU doesn't answer", o.VM, o.Drive))
		return
	case <-ctx.Done():
		o.leave()
		o.answer(nil, o.error(Stopping, "try again when it runs", "trayd is stopping"))
		return
	}
	s, release, err := d.vm.acquire(ctx)
	if err != nil {
		o.leave()
		d.giveUpTurn()
		o.answer(nil, err)
		return
	}
	defer release()
	last, err := o.perform(ctx, s)
	if CodeOf(err) == Unknown {
		o.setPhase(Unsettled)
		o.answer(nil, err)
		o.settleUnknown(ctx, s)
		o.leave()
		d.giveUpTurn()
		return
	}
	// The drive is free before the caller hears of it, so that its next request
	// isn't refused as busy. It is left before the turn is given up: an event in
	// between would else be left to an operation that looks no more.
	o.leave()
	d.giveUpTurn()
	o.answer(last, err)
}

// leave ends the operation's hold on its drive.
func (o *Operation) leave() {
	o.setPhase(Ended)
	o.free()
}

// perform is the whole change but for what follows an unknown outcome.
func (o *Operation) perform(ctx context.Context, s *session) (*Outcome, error) {
	d := o.drive
	t, err := o.prepare(ctx, s)
	if err != nil {
		return nil, err
	}
	defer t.close()
	if t.nothingToDo != "" {
		return &Outcome{Operation: o.ID, Verb: o.Verb, Medium: o.Medium, By: o.By, Result: Done, Reason: t.nothingToDo, At: time.Now().UTC()}, nil
	}
	if t.volume != nil {
		err = o.turnOn(ctx, s, s.process, t)
	} else {
		err = o.intend(s.process, t)
	}
	if d.record().Change == nil { // nothing was touched
		return nil, err
	}
	return o.carryThrough(ctx, s, t, err)
}

// carryThrough is what follows the intent: the change and its outcome. err is what has
// gone wrong since.
func (o *Operation) carryThrough(ctx context.Context, s *session, t *task, err error) (*Outcome, error) {
	d := o.drive
	if err == nil {
		err = o.stillThere(t)
	}
	if err == nil {
		o.setPhase(Changing)
		err = o.change(ctx, s, t)
	}
	t.close() // QEMU has its own; ours would keep the volume of a failed change busy
	last, err := o.conclude(ctx, s, t, err)
	if err == nil && t.place != nil {
		place := *t.place
		d.vm.a.startUnlessStopping(func() { d.vm.a.imageUsed(place) })
	}
	return last, err
}

// stillThere says whether an image is where it was found. It may have been removed since;
// from the intent on it isn't, as it has a user.
func (o *Operation) stillThere(t *task) error {
	if t.place == nil || t.place.Volume != nil { // an active volume isn't removed
		return nil
	}
	name, ok := strings.CutPrefix(t.change.Target.Name, "image:")
	if !ok {
		return nil
	}
	now, err := o.drive.vm.a.images.Find(name)
	switch {
	case err != nil:
		return o.about(imageError(t.change.Target.Name, err))
	case now.Path != t.place.Path:
		return o.error(ImageInUse, "try again", "image %s was added anew meanwhile", name)
	}
	return nil
}

// intend makes durable what is about to be done.
func (o *Operation) intend(p Process, t *task) error {
	c, info := t.change, o.drive.known()
	err := o.drive.amend(false, func(rec *Record) {
		rec.Process, rec.Model, rec.Bus = p, info.Model, info.Bus
		rec.Asked, rec.Change = nil, &c
		rec.keep()
	})
	if err != nil {
		return newError(StateRefused, "free space in state_dir, or see `trayctl state check`; nothing was touched",
			"the change can't be written to the state file: %w", err)
	}
	if c.Target != nil && c.Target.Volume != nil {
		o.drive.vm.a.volumes.released(*c.Target.Volume) // nobody waits for that any more
	}
	o.drive.vm.a.failPoint("intent-written")
	return nil
}

// conclude settles the drive after the attempt and says what came of it.
func (o *Operation) conclude(ctx context.Context, s *session, t *task, attempt error) (*Outcome, error) {
	d := o.drive
	o.noteAsked(t, attempt)
	if errors.Is(attempt, qmp.ErrUnanswered) && s.conn.Err() == nil {
		return nil, o.unknown(attempt)
	}
	before := d.record()
	var inUse *blockdev.NodeInUseError
	if errors.As(attempt, &inUse) {
		d.vm.leaveNode(inUse.Node, d.name)
		attempt = nil // all else is done
	}
	settle, cancel := context.WithTimeout(ctx, o.opts.Command+exitGrace)
	defer cancel()
	var given *GivenUp
	if attempt != nil {
		given = &GivenUp{Result: Failed, Reason: attempt.Error()}
		if CodeOf(attempt) == CancelledCode {
			given.Result = Cancelled
		}
	}
	d.settle(settle, s, given)
	last := d.record().Last
	if d.record().Change != nil || last == nil || last.Operation != o.ID {
		d.mu.Lock()
		why := d.unsettled
		d.mu.Unlock()
		if o.confirmed(settle, s) {
			return nil, &Error{Code: Incomplete, VM: o.VM, Drive: o.Drive, Operation: o.ID,
				Detail: fmt.Sprintf("%s of %s/%s is done in the machine, but not settled: %s", o.Verb, o.VM, o.Drive, why),
				Next:   "nothing is lost: trayd goes on by itself; `trayctl drives` shows when it is settled"}
		}
		return nil, o.unknown(errors.New(why))
	}
	err := o.verdict(last, attempt)
	if left := o.left(before); err == nil && len(left) > 0 {
		err = o.error(Incomplete, "trayd goes on trying; `trayctl volumes` and `trayctl drives` show it until it is done. What holds it has to end: a program, an export, a block job",
			"%s of %s/%s is done in the machine; still to be cleaned up: %s", o.Verb, o.VM, o.Drive, strings.Join(left, "; "))
	}
	return last, err
}

// left says what the operation, whose record was before, left to be cleaned up.
func (o *Operation) left(before Record) []string {
	d := o.drive
	var words []string
	for _, q := range d.record().Releasing {
		if w := d.vm.a.volumes.why(q.Volume); w != nil && before.usesVolume(q.Volume) {
			words = append(words, w.Why)
		}
	}
	c := before.Change
	if c == nil {
		return words
	}
	ours := []string{c.From.Node, c.Node, c.Node + blockdev.TrySuffix, restoredNode(c)}
	nodes := slices.DeleteFunc(d.vm.leftover(d.name), func(n string) bool { return !slices.Contains(ours, n) })
	return append(words, whyLeft(nodes)...)
}

// confirmed reports whether QEMU shows what was asked for.
func (o *Operation) confirmed(ctx context.Context, s *session) bool {
	c := o.drive.record().Change
	st, err := blockdev.Observe(ctx, s.conn, o.drive.id())
	if err == nil {
		o.drive.saw(st)
	}
	return err == nil && c != nil && (c.Kind == Ejecting && st.Medium == nil || c.Kind == Loading && st.Node() == c.Node)
}

// verdict is the error that belongs to an outcome; nil when it is as was asked.
func (o *Operation) verdict(last *Outcome, attempt error) error {
	switch last.Result {
	case Done:
		return nil
	case Overtaken:
		return o.error(OvertakenCode, "look at the drive, then decide", "%s of %s/%s was overtaken: %s", o.Verb, o.VM, o.Drive, last.Reason)
	case MachineEnd:
		return o.error(MachineEnded, "start the machine and try again", "%s of %s/%s: %s while the disc was being changed", o.Verb, o.VM, o.Drive, last.Reason)
	}
	var known *Error
	if errors.As(attempt, &known) {
		return known
	}
	return o.error(QEMURefused, "the drive is as it was; QEMU's words say what it needs",
		"%s of %s/%s failed: %w", o.Verb, o.VM, o.Drive, attempt)
}

func (o *Operation) error(code Code, next, format string, args ...any) *Error {
	e := newError(code, next, format, args...)
	e.VM, e.Drive, e.Operation = o.VM, o.Drive, o.ID
	return e
}

func (o *Operation) unknown(cause error) error {
	return o.error(Unknown, fmt.Sprintf("trayd goes on asking; `trayctl drives %s/%s` shows the outcome as soon as QEMU answers", o.VM, o.Drive),
		"outcome unknown: QEMU did not say what became of %s on %s/%s: %w", o.what(), o.VM, o.Drive, cause)
}

// settleUnknown waits for QEMU, as long as it takes: commands on one monitor are
// executed in their order, so its next answer comes after the one that is missing.
func (o *Operation) settleUnknown(ctx context.Context, s *session) {
	d := o.drive
	d.vm.a.publish(Event{Type: EventUnsettled, VM: o.VM, Drive: o.Drive, Operation: o.ID, Detail: "QEMU doesn't answer: the outcome is not known yet"})
	d.settlePatiently(ctx, s)
	if last := d.record().Last; last != nil && last.Operation == o.ID {
		o.mu.Lock()
		o.outcome, o.err = last, o.verdict(last, errors.New(last.Reason))
		o.mu.Unlock()
		d.vm.a.publish(Event{Type: EventSettled, VM: o.VM, Drive: o.Drive, Operation: o.ID, Detail: string(last.Result)})
	}
}

// task is a prepared change.
type task struct {
	change      Change
	file        *os.File       // the new disc; nil for an eject, and until its volume is active
	volume      volume.Volume  // that holds the new disc; nil for a plain file
	id          string         // QEMU's id of the drive
	place       *library.Place // of an image of the library
	before      blockdev.State
	nothingToDo string // why there is nothing to do
	toldWaiting bool   // EventWaiting has been published
	asked       bool   // the guest has been asked to eject, by an earlier operation maybe, and has not been seen to answer
}

// close closes the disc.
func (t *task) close() {
	if t.file != nil {
		t.file.Close()
		t.file = nil
	}
}

// change tries until the disc is changed, the guest's time is over, or it fails.
func (o *Operation) change(ctx context.Context, s *session, t *task) (err error) {
	a := o.drive.vm.a
	bounded, cancel := s.command(ctx)
	defer cancel()
	changer, err := s.changer(bounded, func(st blockdev.Step) {
		t.asked = t.asked || st == blockdev.StepEjectAsked
		a.failPoint(string(st))
	})
	if err != nil {
		return err
	}
	if t.change.Kind == Ejecting {
		return o.attempts(ctx, s, t, func(ctx context.Context, force bool) error {
			return changer.Eject(ctx, t.id, force)
		})
	}
	disc, err := blockdev.Lend(bounded, s.conn, t.file, t.change.Node)
	if err != nil {
		return err
	}
	disc.Size = t.change.Target.Capacity
	a.failPoint("descriptor-passed")
	err = o.attempts(ctx, s, t, func(ctx context.Context, force bool) error {
		return changer.Swap(ctx, t.id, disc, force)
	})
	if errors.Is(err, qmp.ErrUnanswered) {
		return err // the loan is found and ended when QEMU answers again
	}
	// The look that follows is answered after it: no need to wait for both.
	ending, cancel := s.command(ctx)
	defer cancel()
	if e := blockdev.SendBack(ending, s.conn, disc.FDSet); e != nil {
		return errors.Join(err, e)
	}
	a.failPoint("taken-back")
	return err
}
