package agent

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// Request is what somebody wants done to a drive.
type Request struct {
	VM, Drive string // Drive may be empty when the machine has one CD drive
	Verb      string
	Medium    string
	// Wait is how long a guest may hold the door; nil means the configured time.
	Wait *time.Duration
	// Force takes the disc at once, ThenForce when the guest's time is over.
	Force, ThenForce bool
	// NoValidate lets in what is no disc; for the privileged only.
	NoValidate bool
	By         Caller
}

// Caller is who asked.
type Caller struct {
	Name       string // for the audit line
	PID        int    // 0: not known
	Privileged bool
}

// Operation is a request on its way. Its exported fields never change.
type Operation struct {
	ID, VM, Drive string
	Verb, Medium  string
	By            string
	Since         time.Time

	drive  *drive
	req    Request
	opts   *Options
	done   chan struct{} // closed when the caller can be answered
	cancel chan struct{} // closed to stop waiting for the guest
	force  chan struct{} // closed to take the disc without waiting any longer

	mu       sync.Mutex // guards below
	phase    Phase
	deadline time.Time // of Waiting
	why      string    // why waiting was stopped
	hurried  bool      // force is closed
	outcome  *Outcome
	err      error
}

// Start checks a request and begins to carry it out. The error says why it wasn't
// begun; nothing was touched then. A begun operation goes on whatever becomes of
// the caller.
func (a *Agent) Start(req Request) (*Operation, error) {
	began := time.Now()
	o, ours, err := a.changeStopped(req)
	if !ours {
		o, err = a.begin(req)
	}
	if err != nil {
		a.log.Warn("refused", "audit", true, "by", req.By.Name, "verb", req.Verb, "vm", req.VM, "drive", req.Drive,
			"medium", req.Medium, "code", CodeOf(err), "error", err,
			"took", time.Since(began).Round(time.Microsecond))
		return nil, err
	}
	if !ours {
		a.start(o.run)
	}
	return o, nil
}

func (a *Agent) begin(req Request) (*Operation, error) {
	if req.Verb == Replace && req.Medium == "" {
		req.Verb = Eject // as in oVirt: a change to no disc
	}
	switch req.Verb {
	case Insert, Replace, Eject:
	default:
		return nil, newError(BadRequest, "use insert, change or eject", "no operation %q", req.Verb)
	}
	if req.NoValidate && req.Verb != Eject && !req.By.Privileged {
		return nil, newError(Forbidden, "ask root to insert it, or use an ISO 9660 or UDF image",
			"only root may insert a medium without validation")
	}
	if req.Wait != nil && *req.Wait < 0 {
		return nil, newError(BadRequest, "use a duration such as 10s", "a negative time to wait: %s", *req.Wait)
	}
	v, err := a.lookUpVM(req.VM)
	if err != nil {
		return nil, err
	}
	d, err := v.findDrive(a.ctx, req.Drive)
	if err != nil {
		return nil, err
	}
	if req.Verb != Eject && a.machines.isSeed(v.name, d.name) {
		return nil, seedDrive(v.name, d.name)
	}
	o := &Operation{
		ID: randomName(10), VM: v.name, Drive: d.name, Verb: req.Verb, Medium: req.Medium, By: req.By.Name,
		Since: time.Now(), drive: d, req: req, opts: a.opts(),
		done: make(chan struct{}), cancel: make(chan struct{}), force: make(chan struct{}), phase: Starting,
	}
	d.mu.Lock()
	if other := d.op; other != nil {
		d.mu.Unlock()
		return nil, other.busy()
	}
	d.op = o
	d.mu.Unlock()
	if err := a.remember(o.ID, o); err != nil {
		o.free()
		return nil, err
	}
	return o, nil
}

// what is the operation in words.
func (o *Operation) what() string { return strings.TrimSpace(o.Verb + " " + o.Medium) }

// busy is the answer to a second request for the drive.
func (o *Operation) busy() error {
	e := &Error{Code: DriveBusy, VM: o.VM, Drive: o.Drive, Operation: o.ID,
		Detail: fmt.Sprintf("drive %s/%s is busy: operation %s (%s) is under way", o.VM, o.Drive, o.ID, o.what()),
		Next:   fmt.Sprintf("wait for it; `trayctl drives %s/%s` shows it", o.VM, o.Drive)}
	switch o.Phase() {
	case Waiting:
		e.Next = fmt.Sprintf("wait for it, or stop its waiting with `trayctl cancel %s/%s`", o.VM, o.Drive)
	case Unsettled:
		e.Next = "QEMU hasn't answered yet: the drive settles by itself as soon as it does"
	}
	return e
}

// free lets others use the drive.
func (o *Operation) free() {
	defer o.drive.vm.a.changes.Add(1)
	o.drive.mu.Lock()
	defer o.drive.mu.Unlock()
	if o.drive.op == o {
		o.drive.op = nil
	}
}

// answer answers the caller.
func (o *Operation) answer(outcome *Outcome, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if e := (*Error)(nil); errors.As(err, &e) && e.Operation == "" {
		named := *e
		named.VM, named.Drive, named.Operation = o.VM, o.Drive, o.ID
		err = &named
	}
	o.outcome, o.err = outcome, err
	close(o.done)
	switch {
	case CodeOf(err) == Incomplete:
		o.drive.vm.a.publish(Event{Type: EventIncomplete, VM: o.VM, Drive: o.Drive, Operation: o.ID, Detail: err.Error()})
	case err != nil && CodeOf(err) != Unknown:
		o.drive.vm.a.publish(Event{Type: EventFailed, VM: o.VM, Drive: o.Drive, Operation: o.ID, Detail: err.Error()})
	case err == nil && outcome.Reason != "":
		o.drive.vm.a.publish(Event{Type: EventUnchanged, VM: o.VM, Drive: o.Drive, Operation: o.ID, Detail: outcome.Reason})
	}
	auditOperation(o, outcome, err)
}

// auditOperation leaves a line of every request: who, what, where, how it ended.
func auditOperation(o *Operation, outcome *Outcome, err error) {
	log := o.drive.vm.a.log.With("audit", true, "by", o.By, "verb", o.Verb, "vm", o.VM, "drive", o.Drive,
		"medium", o.Medium, "operation", o.ID, "took", time.Since(o.Since).Round(time.Microsecond))
	switch {
	case CodeOf(err) == Incomplete:
		log.Warn("done, not cleaned up", "code", Incomplete, "error", err)
		return
	case err != nil:
		log.Warn("failed", "code", CodeOf(err), "error", err)
		return
	}
	log.Info("done", "result", outcome.Result, "reason", outcome.Reason)
}
