package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/trayd/trayd/blockdev"
	"github.com/trayd/trayd/qmp"
)

const (
	// defaultPollDoor is how often the lock is looked at while waiting: a guest that
	// only unmounts unlocks the door with no event.
	defaultPollDoor = 500 * time.Millisecond
	// askAgain is how often the guest is asked: an eject request is a single
	// event, and a guest that was busy with the disc has dropped the first.
	askAgain = 3 * time.Second
	// A reset, as of a machine that is just booting, closes a tray that was opened by force
	// before the disc is out: forceTries tries, forceAgain apart.
	forceTries = 5
	forceAgain = 100 * time.Millisecond
)

// attempts tries, and waits for the guest between the tries when it holds the door.
func (o *Operation) attempts(ctx context.Context, s *session, t *task, try func(context.Context, bool) error) error {
	deadline := time.Now().Add(o.limit())
	force := o.req.Force
	if holdsDoor(t.before) && !force && !o.asks(t.before) {
		if !o.req.ThenForce {
			return o.locked("and nobody waits for it (wait is 0s)")
		}
		force = true
	}
	for forced, letGo := 0, false; ; {
		bounded, cancel := s.command(ctx)
		err := try(bounded, force)
		cancel()
		var freed *blockdev.LetGoError
		switch {
		case errors.As(err, &freed) && !letGo:
			letGo = true
			if err := o.asked(); err != nil {
				return err
			}
			continue
		case errors.As(err, &freed):
			return freed.Refusal // it wasn't the door
		case !errors.Is(err, blockdev.ErrLocked):
			return err
		}
		letGo = false
		if err := o.asked(); err != nil {
			return err
		}
		if force {
			if forced++; forced == forceTries {
				return o.error(DriveLocked, "the machine resets its drives while it boots: try again when it has",
					"%s of %s/%s: the tray was opened by force %d times and was closed again each time; the drive is as it was", o.Verb, o.VM, o.Drive, forceTries)
			}
			select {
			case <-time.After(forceAgain):
				continue
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		err = o.waitForGuest(ctx, s, t, deadline)
		o.setPhase(Changing)
		switch {
		case err == nil:
		case errors.Is(err, errHurry), CodeOf(err) == DriveLocked && o.req.ThenForce:
			force = true
		default:
			return err
		}
	}
}

// limit is how long the guest may hold the door.
func (o *Operation) limit() time.Duration {
	if o.req.Wait != nil {
		return *o.req.Wait
	}
	return o.opts.Wait
}

func holdsDoor(st blockdev.State) bool { return st.Locked && !st.TrayOpen }

// asks reports whether the guest is going to be asked to eject. When nobody is going
// to wait for its answer it isn't asked either.
func (o *Operation) asks(before blockdev.State) bool {
	return holdsDoor(before) && !o.req.Force && o.limit() > 0
}

// asked makes it durable that the guest has been asked: its answer may come when nobody waits
// for it any more. The intent says so already where the door was seen to be locked. Where the
// guest has locked it since, a death before this write would have its answer taken for its own
// wish: to take every answer for a late one, after every death, would cost guests more.
func (o *Operation) asked() error {
	if c := o.drive.record().Change; c == nil || c.Asked {
		return nil
	}
	return o.drive.amend(true, func(rec *Record) { rec.setAsked(true) })
}

// noteAsked notes at the end of an attempt whether an answer of the guest's is to come; where QEMU
// didn't answer, one may. That goes with the outcome, but for an attempt that failed, whose
// outcome may be long in coming.
func (o *Operation) noteAsked(t *task, attempt error) {
	t.asked = t.asked || errors.Is(attempt, qmp.ErrUnanswered)
	if t.asked && attempt != nil {
		if err := o.asked(); err != nil {
			o.drive.vm.a.log.Warn("that the guest was asked to eject can't be written to the state file: should trayd die now, its answer counts as its own wish", "vm", o.VM, "drive", o.Drive, "error", err)
		}
	}
	o.drive.note(func(rec *Record) { rec.setAsked(t.asked) })
}

// waitForGuest returns nil when it is worth another try. It asks QEMU, since a
// guest that unlocks says nothing.
func (o *Operation) waitForGuest(ctx context.Context, s *session, t *task, deadline time.Time) error {
	o.setWaiting(deadline)
	left := time.Until(deadline)
	if left <= 0 {
		return o.locked("and did not let go in time")
	}
	over := time.NewTimer(left)
	defer over.Stop()
	poll := time.NewTicker(o.drive.vm.a.pollDoor)
	defer poll.Stop()
	asked := time.Now()
	for {
		st, err := o.look(ctx, s, t.id)
		if err != nil {
			return err
		}
		if st.Medium != nil && st.Node() != t.change.From.Node {
			// Not the disc that was to be replaced: theirs is not touched.
			return errors.New("somebody else put a disc in")
		}
		if st.TrayOpen {
			t.asked = false // it has answered
		}
		if !holdsDoor(st) || time.Since(asked) >= askAgain {
			return nil
		}
		if running, err := o.machineRuns(ctx, s); err != nil {
			return err
		} else if !running {
			return o.locked("and the machine is paused, so that the guest can't let go")
		}
		if !t.toldWaiting {
			t.toldWaiting = true
			o.drive.vm.a.publish(Event{Type: EventWaiting, VM: o.VM, Drive: o.Drive, Operation: o.ID,
				Detail: fmt.Sprintf("waiting for the guest to let go of the disc, for %s", time.Until(deadline).Round(time.Second))})
		}
		select {
		case <-over.C:
			return o.locked("and did not let go in time")
		case <-o.cancel:
			return o.cancelled()
		case <-o.force:
			return errHurry
		case <-ctx.Done():
			return ctx.Err()
		case <-s.conn.Done():
			return s.conn.Err()
		case <-o.drive.wake:
		case <-poll.C:
		}
	}
}

func (o *Operation) look(ctx context.Context, s *session, id string) (blockdev.State, error) {
	ctx, cancel := s.command(ctx)
	defer cancel()
	return blockdev.Observe(ctx, s.conn, id)
}

func (o *Operation) cancelled() error {
	return o.error(CancelledCode, "nothing is left to do", "%s of %s/%s was cancelled: %s; the drive is as it was", o.Verb, o.VM, o.Drive, o.stopReason())
}

func (o *Operation) machineRuns(ctx context.Context, s *session) (bool, error) {
	ctx, cancel := s.command(ctx)
	defer cancel()
	st, err := s.conn.QueryStatus(ctx)
	return st.Running, err
}

func (o *Operation) locked(how string) error {
	return o.error(DriveLocked,
		"unmount the disc in the guest and try again, wait longer with --wait 60s, or take it with --force",
		"%s of %s/%s: the guest holds the drive's door locked %s; the drive is as it was", o.Verb, o.VM, o.Drive, how)
}

// errHurry ends a wait for the guest: the disc is to be taken.
var errHurry = errors.New("the guest is waited for no longer")

// hurry ends the operation's wait for the guest, now or when it begins.
func (o *Operation) hurry() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.hurried {
		o.hurried = true
		close(o.force)
	}
}

// Cancel stops the operation of a drive that waits for its guest or for its volume.
func (a *Agent) Cancel(vmName, driveName, by string) (o *Operation, err error) {
	t := a.trace(Caller{Name: by}, "cancel", "vm", vmName, "drive", driveName)
	defer func() {
		if o != nil {
			t = trace{t.log.With("operation", o.ID), t.began}
		}
		t.end(err)
	}()
	o, err = a.waiting(vmName, driveName, func(p Phase) bool { return p == Waiting || p == Activating })
	if err != nil {
		return nil, err
	}
	o.stopWaiting("on request of " + by)
	return o, nil
}

// waiting is the operation of a drive that is in a phase in which somebody may end its wait.
func (a *Agent) waiting(vmName, driveName string, phase func(Phase) bool) (*Operation, error) {
	v, err := a.lookUpVM(vmName)
	if err != nil {
		return nil, err
	}
	d, err := v.findDrive(a.ctx, driveName)
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	o := d.op
	d.mu.Unlock()
	if o == nil || !phase(o.Phase()) {
		return nil, &Error{Code: NothingToStop, VM: vmName, Drive: d.name,
			Detail: fmt.Sprintf("nothing waits for the guest or for a volume on %s/%s", vmName, d.name), Next: "see `trayctl drives " + vmName + "`"}
	}
	return o, nil
}

// stopWaiting ends the operation's wait for the guest or for its volume, now or when it
// begins.
func (o *Operation) stopWaiting(why string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.why == "" {
		o.why = why
		close(o.cancel)
	}
}

// stopped reports whether somebody has stopped the operation's waiting.
func (o *Operation) stopped() bool {
	select {
	case <-o.cancel:
		return true
	default:
		return false
	}
}

func (o *Operation) stopReason() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.why
}
