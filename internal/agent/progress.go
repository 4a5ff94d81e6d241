package agent

import (
	"context"
	"time"
)

// Progress is where an operation is. Outcome and Err are set once it has ended, or
// once its outcome has become unknown.
type Progress struct {
	Phase    Phase
	Deadline time.Time // of the wait for the guest
	Outcome  *Outcome
	Err      error
}

// Wait returns when the operation can be answered, or ctx ends. The operation goes
// on in either case.
func (o *Operation) Wait(ctx context.Context) (Progress, error) {
	select {
	case <-o.done:
		return o.Progress(), nil
	case <-ctx.Done():
		return o.Progress(), ctx.Err()
	}
}

// Progress is where the operation is now.
func (o *Operation) Progress() Progress {
	o.mu.Lock()
	defer o.mu.Unlock()
	return Progress{Phase: o.phase, Deadline: o.deadline, Outcome: o.outcome, Err: o.err}
}

// Phase is where the operation is now.
func (o *Operation) Phase() Phase { return o.Progress().Phase }

func (o *Operation) setPhase(p Phase) {
	defer o.drive.vm.a.changes.Add(1)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.phase = p
}

func (o *Operation) setWaiting(deadline time.Time) {
	defer o.drive.vm.a.changes.Add(1)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.phase, o.deadline = Waiting, deadline
}

// ended reports whether the operation has left its drive.
func (o *Operation) ended() bool { return o.Phase() == Ended }
