package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/trayd/trayd/blockdev/volume"
)

// turnOnAgain activates the volume of the disc that is in, should it be off: a mount of
// trayd's goes with the mount namespace that its service manager gave it. The guest reads
// on all the same; it is for whoever has to open the disc again.
func (d *drive) turnOnAgain(ctx context.Context) {
	a, in := d.vm.a, d.record().Loaded
	if in == nil || in.Medium.Volume == nil || in.Medium.Foreign {
		return
	}
	ref := *in.Medium.Volume
	ctx, cancel := context.WithTimeout(ctx, activateLimit)
	defer cancel()
	unlock, err := a.volumes.lock(ctx, ref)
	if err != nil {
		return // the next connect tries again
	}
	defer unlock()
	v, err := a.volumes.storage.Volume(ref)
	if err != nil {
		return
	}
	rec := d.record() // it may have been let go of meanwhile
	if st, err := v.State(ctx); err != nil || st.Active || !rec.usesVolume(ref) {
		return
	}
	if _, err := a.activate(ctx, v); err != nil {
		a.log.Warn("a volume that a drive uses is off and can't be turned on again", "vm", d.vm.name, "drive", d.name, "volume", ref.String(), "error", err)
	}
}

// release releases a volume of the drive's queue, unless a record uses it, and takes
// it off the queue. It doesn't need the drive's turn.
func (d *drive) release(ctx context.Context, ref volume.Ref) error {
	a := d.vm.a
	ctx, cancel := context.WithTimeout(ctx, releaseLimit)
	defer cancel()
	// Whoever else uses it has it to release: that needs no turn, and the turn may be that
	// of one who reads from a disk that doesn't answer.
	others := a.usedBy(ref)
	if len(others) == 0 {
		unlock, err := a.volumes.lock(ctx, ref)
		if err != nil {
			return d.releaseFailed(ref, fmt.Errorf("volume %s is being turned on or off: %w", ref, err))
		}
		defer unlock()
		others = a.usedBy(ref)
	}
	rec := d.record()
	at := slices.IndexFunc(rec.Releasing, func(q Releasing) bool { return q.Volume == ref })
	if at < 0 {
		return nil // done meanwhile, or used again
	}
	event := Event{Type: EventReleased, VM: d.vm.name, Drive: d.name, Detail: fmt.Sprintf("volume %s is inactive", ref)}
	if len(others) > 0 {
		event.Detail = fmt.Sprintf("volume %s stays active: %s uses it", ref, strings.Join(others, ", "))
	} else {
		if err := a.deactivate(ctx, ref, rec.Releasing[at].DeviceUUID); err != nil {
			return d.releaseFailed(ref, err)
		}
	}
	a.failPoint("volume-released")
	err := d.amend(true, func(rec *Record) {
		rec.Releasing = slices.DeleteFunc(slices.Clone(rec.Releasing), func(q Releasing) bool { return q.Volume == ref })
		if len(rec.Releasing) == 0 {
			rec.Releasing = nil
		}
	})
	if err != nil {
		return d.releaseFailed(ref, fmt.Errorf("volume %s is released, but that can't be written to the state file: %w", ref, err))
	}
	a.volumes.released(ref)
	a.publish(event)
	return nil
}

func (d *drive) releaseFailed(ref volume.Ref, err error) error {
	var busy *volume.BusyError
	if errors.As(err, &busy) && slices.ContainsFunc(busy.Holders, func(h volume.Holder) bool { return h.PID != 0 && h.PID == d.record().Process.PID }) {
		err = fmt.Errorf("%w: the machine's own QEMU, which keeps a disc that was taken out as long as the machine is paused (QEMU before 10)", err)
	}
	if first := d.vm.a.volumes.failed(ref, err); first {
		d.vm.a.publish(Event{Type: EventReleaseWaits, VM: d.vm.name, Drive: d.name, Detail: err.Error()})
	}
	return err
}

// retryLater has what is queued for release tried again when it is due. d.mu is held.
func (d *drive) retryLater() {
	if len(d.rec.Releasing) == 0 {
		return
	}
	due := d.vm.a.volumes.next(d.rec.Releasing)
	if d.releaseTimer != nil {
		d.releaseTimer.Stop()
	}
	a := d.vm.a
	d.releaseTimer = time.AfterFunc(time.Until(due), func() { a.startUnlessStopping(func() { d.retryReleases(a.ctx) }) })
}

// retryReleases releases what the record has queued and is worth a try, without asking
// QEMU, and whoever works on the drive.
func (d *drive) retryReleases(ctx context.Context) {
	if !d.retrying.TryLock() {
		return // somebody does, and sees to what follows
	}
	for _, q := range d.record().Releasing {
		if d.vm.a.volumes.due(q.Volume) {
			_ = d.release(ctx, q.Volume) // noted, and tried again
		}
	}
	d.retrying.Unlock()
	d.mu.Lock()
	d.retryLater()
	d.mu.Unlock()
	d.vm.releasedAll(d)
}

// releasesDue reports whether one of the queued releases is worth a try.
func (d *drive) releasesDue(rec Record) bool {
	return slices.ContainsFunc(rec.Releasing, func(q Releasing) bool { return d.vm.a.volumes.due(q.Volume) })
}

// releasedAll lets go of a machine that has ended and whose last volume was released.
func (v *vm) releasedAll(d *drive) {
	if v.hasEnded() {
		d.dropRecord()
		v.a.forget(v)
	}
}
