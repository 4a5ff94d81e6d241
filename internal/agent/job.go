package agent

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/trayd/trayd/internal/library"
	"github.com/trayd/trayd/internal/wire"
)

// Task is what may be asked for by its id: a change of disc, or a job.
type Task interface {
	Status() *OperationStatus
	// Ended is closed when the task can be answered for.
	Ended() <-chan struct{}
	// over reports whether it may be forgotten.
	over() bool
}

// Ended is that of Task.
func (o *Operation) Ended() <-chan struct{} { return o.done }

func (o *Operation) over() bool { return o.ended() }

// Job is an operation that is no change of disc: a machine's start or stop, an image's way
// into its pool. Its fields don't change once it has begun.
type Job struct {
	id, verb, vm string
	image        string // image:POOL/NAME
	by           string
	since        time.Time
	look         func() (Phase, *wire.ImageProgress) // how far it is; nil: nothing more is known
	only         bool                                // not begun while there is another of its image
	done         chan struct{}

	mu    sync.Mutex // guards below
	ended time.Time
	err   error
}

// Ended is that of Task.
func (j *Job) Ended() <-chan struct{} { return j.done }

func (j *Job) over() bool {
	select {
	case <-j.done:
		return true
	default:
		return false
	}
}

// Status is that of Task.
func (j *Job) Status() *OperationStatus {
	s := &OperationStatus{ID: j.id, VM: j.vm, Image: j.image, Verb: j.verb, By: j.by, Since: j.since, Phase: wire.Running}
	if j.look != nil {
		s.Phase, s.Progress = j.look()
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.ended.IsZero() {
		return s
	}
	s.Phase, s.Result, s.Progress, s.Ended = Ended, Done, nil, j.ended
	if j.err != nil {
		s.Result, s.Error, s.Code, s.Next = Failed, j.err.Error(), CodeOf(j.err), nextOf(j.err, "")
		if s.Code == CancelledCode {
			s.Result = Cancelled
		}
	}
	return s
}

func (j *Job) end(err error) {
	j.mu.Lock()
	j.ended, j.err = time.Now(), err
	j.mu.Unlock()
	close(j.done)
}

// beginJob makes a job known to those who ask.
func (a *Agent) beginJob(j *Job, by Caller) (*Job, error) {
	j.id, j.by, j.since, j.done = randomName(10), by.Name, time.Now(), make(chan struct{})
	if err := a.remember(j.id, j); err != nil {
		return j, err
	}
	if j.image != "" {
		a.publish(Event{Type: EventImageStarted, VM: j.vm, Operation: j.id, Detail: j.image + ": " + j.verb})
	}
	return j, nil
}

// announce tells that a machine's start or stop really begins: it is neither refused, nor has
// it nothing to do.
func (a *Agent) announce(ctx context.Context, kind, vm string) {
	e := Event{Type: kind, VM: vm}
	if j, ok := ctx.Value(jobKey{}).(*Job); ok {
		e.Operation, e.Detail = j.id, "asked for by "+j.by
	}
	a.publish(e)
}

// duringImage carries out f as a job on an image.
func (a *Agent) duringImage(ctx context.Context, verb string, i library.Image, by Caller, f func(context.Context) error) error {
	look := func() (Phase, *wire.ImageProgress) {
		if now, err := a.images.Image(i.Pool, i.Name); err == nil && now.Progress != nil {
			return phaseOf(now.State), now.Progress
		}
		return wire.Running, nil
	}
	j, err := a.beginJob(&Job{verb: verb, image: i.String(), look: look}, by)
	if err != nil {
		return err
	}
	err = f(ctx)
	j.end(err)
	return err
}

type jobKey struct{}

// during carries out f as a job on a machine, unless it is part of one already.
func (a *Agent) during(ctx context.Context, verb, vm string, by Caller, f func(context.Context) error) error {
	if ctx.Value(jobKey{}) != nil {
		return f(ctx)
	}
	j, err := a.beginJob(&Job{verb: verb, vm: vm}, by)
	if err != nil {
		return err
	}
	err = f(context.WithValue(ctx, jobKey{}, j))
	j.end(err)
	return err
}

// InBackground carries out f as a job that goes on without its caller, until trayd stops.
func (a *Agent) InBackground(verb, vm string, by Caller, f func(context.Context) error) (*Job, error) {
	j, err := a.beginJob(&Job{verb: verb, vm: vm}, by)
	if err != nil {
		return nil, err
	}
	if !a.startUnlessStopping(func() { j.end(f(context.WithValue(a.ctx, jobKey{}, j))) }) {
		err := stoppingError()
		j.end(err)
		return nil, err
	}
	return j, nil
}

func stoppingError() error { return newError(Stopping, "try again when it runs", "trayd is stopping") }

// imageJob has an image's way into its pool known as a job, which ends with it. One that is
// known already stays the only one.
func (a *Agent) imageJob(verb, vm string, i library.Image, by Caller) {
	if i.State == wire.ImageReady || i.State == wire.ImageFailed {
		return
	}
	look := func() (Phase, *wire.ImageProgress) {
		now, err := a.images.Image(i.Pool, i.Name)
		if err != nil {
			return wire.Running, nil
		}
		return phaseOf(now.State), now.Progress
	}
	j, err := a.beginJob(&Job{verb: verb, vm: vm, image: i.String(), look: look, only: true}, by)
	if err != nil {
		return // trayd stops, or it is known
	}
	started := a.startUnlessStopping(func() {
		now, err := a.images.Wait(a.ctx, i.Pool, i.Name)
		switch {
		case a.ctx.Err() != nil:
			err = newError(Stopping, "trayd goes on with it when it runs again", "trayd is stopping")
		case err != nil:
			err = newError(CancelledCode, "nothing is left to do", "%s is not there any more", i)
		case now.Failure != nil:
			err = newError(now.Failure.Code, now.Failure.Remedy, "%s", now.Failure.Cause)
		}
		j.end(err)
	})
	if !started {
		j.end(stoppingError())
	}
}

// phaseOf is the phase of an operation whose image is in a state. One that has ended is about
// to.
func phaseOf(s wire.ImageState) Phase {
	switch s {
	case wire.ImageAllocated, wire.ImageDownloading, wire.ImageVerifying:
		return Phase(s)
	}
	return wire.Running
}

// resumedJobs has what goes on with after a start known as jobs.
func (a *Agent) resumedJobs() {
	for _, i := range a.images.Images() {
		if a.images.UnderWay(i.Pool, i.Name) {
			a.imageJob("add", "", i, Caller{Name: "trayd"})
		}
	}
}

// errKnown is of a job that is under way already.
var errKnown = errors.New("this is under way already")

// hasJob reports whether there is a job of an image under way; a.mu is held.
func (a *Agent) hasJob(image string) bool {
	for _, t := range a.ops {
		if j, ok := t.(*Job); ok && j.image == image && !j.over() {
			return true
		}
	}
	return false
}

// remember keeps a task for those who ask by id.
func (a *Agent) remember(id string, t Task) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stopping {
		return stoppingError()
	}
	if j, ok := t.(*Job); ok && j.only && a.hasJob(j.image) {
		return errKnown
	}
	a.ops[id] = t
	a.opsOrder = append(a.opsOrder, id)
	if excess := len(a.opsOrder) - keptOperations; excess > 0 {
		a.opsOrder = slices.DeleteFunc(a.opsOrder, func(id string) bool {
			if excess == 0 || !a.ops[id].over() { // never forget one that runs
				return false
			}
			excess--
			delete(a.ops, id)
			return true
		})
	}
	return nil
}

// Operation returns an operation by its id.
func (a *Agent) Operation(id string) (Task, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	t, ok := a.ops[id]
	return t, ok
}

// Operations lists the operations that are known, the newest first.
func (a *Agent) Operations(running bool) []*OperationStatus {
	a.mu.Lock()
	tasks := make([]Task, 0, len(a.opsOrder))
	for _, id := range slices.Backward(a.opsOrder) {
		if t := a.ops[id]; !running || !t.over() {
			tasks = append(tasks, t)
		}
	}
	a.mu.Unlock()
	all := make([]*OperationStatus, len(tasks))
	for i, t := range tasks {
		all[i] = t.Status()
	}
	return all
}

// Force makes the operation of a drive that waits for its guest take the disc.
func (a *Agent) Force(vmName, driveName string, by Caller) (*Operation, error) {
	t := a.trace(by, "force", "vm", vmName, "drive", driveName)
	o, err := a.waiting(vmName, driveName, func(p Phase) bool { return p == Waiting })
	if err != nil {
		t.end(err)
		return nil, err
	}
	o.hurry()
	t.end(nil, "operation", o.ID)
	return o, nil
}
