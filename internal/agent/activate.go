package agent

import (
	"context"
	"errors"
)

// turnOn makes the intent durable, activates the disc's volume, and opens and inspects
// the disc. Its own claim to the volume is durable before the volume is activated, and
// nobody turns the volume off in between. s is nil for a machine that is about to be
// started: then p is trayd itself, whose death ends the claim.
func (o *Operation) turnOn(ctx context.Context, s *session, p Process, t *task) (err error) {
	a, target := o.drive.vm.a, t.change.Target
	ctx, cancel := context.WithTimeout(ctx, activateLimit)
	defer cancel()
	o.setPhase(Activating)
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		select {
		case <-o.cancel:
			cancel()
		case <-ended:
		}
	}()
	defer func() {
		if o.stopped() && CodeOf(err) != StateRefused {
			err = o.cancelled()
		}
	}()
	unlock, err := a.volumes.lock(ctx, *target.Volume)
	if err != nil {
		return o.error(DriveBusy, "try again in a moment; `trayctl volumes` shows it", "volume %s is being turned on or off; nothing was touched", target.Volume)
	}
	defer unlock()
	var looked bool
	if target.Foreign, looked, err = a.claim(ctx, t.volume); err != nil {
		return o.about(volumeError(target.Name, err))
	}
	if err := o.intend(p, t); err != nil {
		return err
	}
	made, err := a.activate(ctx, t.volume)
	if uuid := a.volumes.deviceUUID(*target.Volume); uuid != "" && !target.Foreign {
		known := *target
		known.DeviceUUID = uuid
		target = &known // durable with the outcome, whatever that is
		o.drive.note(func(rec *Record) { rec.aim(target) })
	}
	if err != nil {
		return o.about(volumeError(target.Name, err))
	}
	a.failPoint("volume-activated")
	if looked && made == target.Foreign {
		// Somebody else has turned it on or off since the look.
		other := *target
		other.Foreign, other.DeviceUUID = !made, ""
		if made {
			other.DeviceUUID = a.volumes.deviceUUID(*other.Volume)
		}
		target = &other
		if err := o.drive.amend(true, func(rec *Record) { rec.aim(target) }); err != nil {
			return newError(StateRefused, "free space in state_dir, or see `trayctl state check`", "whose volume %s is can't be written to the state file: %w", target.Volume, err)
		}
	}
	if !looked && made && target.Foreign {
		if err := a.deactivate(ctx, *target.Volume, ""); err != nil {
			a.log.Warn("a volume that was turned on for nothing can't be turned off", "volume", target.Volume.String(), "error", err)
		}
		return o.error(NoSuchVolume, "eject the one that is in by this name first; `trayctl volumes` shows where",
			"volume %s is another now than the one that a drive has by this name: somebody has renamed that", target.Volume)
	}
	again := make(chan error, 1)
	go func() { // QEMU's time and the disk's are not added up
		if s == nil {
			again <- nil
			return
		}
		again <- o.lookAgain(ctx, s, t)
	}()
	var medium *Medium
	t.file, medium, err = a.inspectVolume(ctx, t.volume, target, !o.req.NoValidate)
	elsewhere := <-again
	switch {
	case err != nil:
		return o.about(err)
	case elsewhere != nil:
		return elsewhere
	}
	// Known from here on, and durable with the outcome.
	o.drive.note(func(rec *Record) { rec.aim(medium) })
	t.change.Target = medium
	return nil
}

// lookAgain looks at the drive once its volume is active: that may have taken seconds, and
// a disc that somebody else has put in meanwhile is not ours to replace. It asks QEMU: the
// event of a tray that has just moved may still be on its way.
func (o *Operation) lookAgain(ctx context.Context, s *session, t *task) error {
	st, err := o.look(ctx, s, t.id)
	if err != nil {
		return err
	}
	if st.Node() != t.before.Node() {
		return errors.New("what is in the drive was changed by somebody else while the volume was being activated")
	}
	t.before = st
	return nil
}
