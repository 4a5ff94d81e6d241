package volume

import (
	"context"
	"time"
)

// leaveAfter is how long a caller whose context has ended still waits: work that can be
// stopped has put everything back by then.
const leaveAfter = 2 * time.Second

// do runs work that may hang in the kernel (a disk that is gone, a server that doesn't
// answer), and doesn't hang with it. When ctx ends and the work doesn't, do returns and
// leaves it behind; if it succeeds after all, undo is called. Until then nobody else
// does anything about this volume.
func (h *Host) do(ctx context.Context, ref Ref, work func(context.Context) error, undo func()) error {
	if err := ctx.Err(); err != nil {
		return late(ref, err)
	}
	turn := h.turn(ref)
	select {
	case turn <- struct{}{}:
	case <-ctx.Done():
		return late(ref, ctx.Err())
	}
	done, left := make(chan error), make(chan struct{})
	go func() {
		defer func() { <-turn }()
		var err error
		if ref.Kind == LVM {
			err = h.alone(ctx, ref)
		}
		if err == nil {
			err = work(ctx)
		}
		select {
		case done <- err:
		case <-left:
			if err == nil && undo != nil {
				undo()
			}
		}
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	timer := time.NewTimer(leaveAfter)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		close(left)
		return late(ref, ctx.Err())
	}
}

// turn is held by whoever does something about a volume.
func (h *Host) turn(ref Ref) chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.turns[ref]
	if t == nil {
		t = make(chan struct{}, 1)
		h.turns[ref] = t
	}
	return t
}

func late(ref Ref, err error) error {
	return &Error{
		Ref: ref, Reason: Failed, Err: err,
		Detail: "turning it on or off didn't end within its time: " + err.Error(),
		Next:   "see whether the disk or the server that it lies on answers, then try again",
	}
}
