package agent

import (
	"context"
	"sync"
	"time"

	"github.com/trayd/trayd/blockdev"
)

// VMStatus is what may be seen of a machine.
type VMStatus struct {
	Name     string        `json:"name"`
	State    string        `json:"state"` // QEMU's word (running, paused, …), or "unreachable"
	QEMU     string        `json:"qemu,omitempty"`
	PID      int           `json:"pid,omitempty"`
	Socket   string        `json:"socket,omitempty"`
	Reason   string        `json:"reason,omitempty"` // why it is unreachable
	Next     string        `json:"next,omitempty"`   // what to do about it
	Drives   []DriveStatus `json:"drives"`
	Answered bool          `json:"answered"` // QEMU confirmed what is said here, now
}

// The states of a drive beside Loading and Ejecting.
const (
	StateEmpty   = "empty"
	StateLoaded  = "loaded"
	StateUnknown = "unknown"   // QEMU doesn't answer, and nothing was under way
	StateOpen    = "unsettled" // QEMU doesn't answer, and something was under way
)

// DriveStatus is what may be seen of a drive. Tray, lock and medium are what QEMU
// says now; when it doesn't answer they are left out.
type DriveStatus struct {
	VM         string           `json:"vm"`
	Name       string           `json:"name"`
	Aliases    []string         `json:"aliases,omitempty"`
	Bus        blockdev.Bus     `json:"bus"`
	Model      string           `json:"model"`
	Changeable bool             `json:"changeable"`
	Reason     string           `json:"reason,omitempty"` // why it can't be changed, or isn't settled
	State      string           `json:"state"`
	Tray       string           `json:"tray,omitempty"` // open, closed
	Locked     bool             `json:"locked"`
	Medium     *MediumStatus    `json:"medium,omitempty"`
	Operation  *OperationStatus `json:"operation,omitempty"`
	Last       *Outcome         `json:"last,omitempty"`
	// Releasing is what earlier discs have left and what can't be released yet, and why.
	Releasing []string `json:"releasing,omitempty"`
}

// MediumStatus is the disc in a drive.
type MediumStatus struct {
	Name     string     `json:"name"`
	Path     string     `json:"path,omitempty"`
	VolumeID string     `json:"volume_id,omitempty"`
	Size     int64      `json:"size"` // bytes
	ReadOnly bool       `json:"read_only"`
	Node     string     `json:"node"`
	Ours     bool       `json:"ours"` // trayd put it in
	Since    *time.Time `json:"since,omitempty"`
}

// OperationStatus is an operation, running or ended.
type OperationStatus struct {
	ID       string     `json:"id"`
	VM       string     `json:"vm"`
	Drive    string     `json:"drive"`
	Verb     string     `json:"verb"`
	Medium   string     `json:"medium,omitempty"`
	By       string     `json:"by"`
	Since    time.Time  `json:"since"`
	Phase    Phase      `json:"phase"`
	Deadline *time.Time `json:"deadline,omitempty"` // of the wait for the guest
	Result   Result     `json:"result,omitempty"`
	Reason   string     `json:"reason,omitempty"`
	// Error and Code are set when the operation failed or its outcome is unknown.
	Error string `json:"error,omitempty"`
	Code  Code   `json:"code,omitempty"`
}

// Status is the operation for others to see.
func (o *Operation) Status() *OperationStatus {
	p := o.Progress()
	s := &OperationStatus{
		ID: o.ID, VM: o.VM, Drive: o.Drive, Verb: o.Verb, Medium: o.Medium, By: o.By, Since: o.Since, Phase: p.Phase,
	}
	if p.Phase == Waiting {
		s.Deadline = &p.Deadline
	}
	if p.Outcome != nil {
		s.Result, s.Reason = p.Outcome.Result, p.Outcome.Reason
	}
	if p.Err != nil {
		s.Error, s.Code = p.Err.Error(), CodeOf(p.Err)
	}
	return s
}

// statusTimeout is how long a look at one machine may take. A machine that is slow
// for longer is shown as unreachable; the others are shown all the same.
const statusTimeout = time.Second

// VMs shows every machine, as QEMU says now. All are asked at once.
func (a *Agent) VMs(ctx context.Context) []VMStatus {
	vms := a.list()
	all := make([]VMStatus, len(vms))
	var wg sync.WaitGroup
	for i, v := range vms {
		wg.Go(func() { all[i] = v.status(ctx) })
	}
	wg.Wait()
	return all
}

// VM shows one machine.
func (a *Agent) VM(ctx context.Context, name string) (VMStatus, error) {
	v, err := a.lookUpVM(name)
	if err != nil {
		return VMStatus{}, err
	}
	return v.status(ctx), nil
}

// Drive shows one drive, named by any of its names, or the only one.
func (a *Agent) Drive(ctx context.Context, vmName, name string) (DriveStatus, error) {
	v, err := a.lookUpVM(vmName)
	if err != nil {
		return DriveStatus{}, err
	}
	d, err := v.findDrive(ctx, name)
	if err != nil {
		return DriveStatus{}, err
	}
	for _, s := range v.status(ctx).Drives {
		if s.Name == d.name {
			return s, nil
		}
	}
	return d.status(nil), nil
}

func (v *vm) status(ctx context.Context) VMStatus {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	v.mu.Lock()
	out := VMStatus{Name: v.name, Socket: v.path, PID: v.process.PID, State: "unreachable", Drives: []DriveStatus{}}
	v.mu.Unlock()
	states, err := v.ask(ctx, &out)
	if err != nil {
		out.State, out.Reason, out.Next = "unreachable", err.Error(), "see `trayctl events`; trayd goes on trying"
		if e, ok := err.(*Error); ok {
			out.Next = e.Next
		}
		for _, d := range v.knownDrives() {
			s := d.status(nil)
			if s.Reason == "" {
				s.Reason = out.Reason
			}
			out.Drives = append(out.Drives, s)
		}
		return out
	}
	out.Answered = true
	for _, d := range v.allDrives() {
		if st, ok := states[d]; ok {
			out.Drives = append(out.Drives, d.status(&st))
		}
	}
	return out
}

// ask asks QEMU for everything that status shows.
func (v *vm) ask(ctx context.Context, out *VMStatus) (map[*drive]blockdev.State, error) {
	s, release, err := v.acquire(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	out.QEMU, out.PID = s.conn.Version().String(), s.process.PID
	silent := &Error{Code: Unreachable, VM: v.name, Detail: "QEMU of VM " + v.name + " doesn't answer",
		Next: "is it stopped, or its storage stalled? trayd goes on asking"}
	if s.conn.Unanswered() > 0 {
		return nil, silent // it owes an answer already: don't pile up questions
	}
	run, err := s.conn.QueryStatus(ctx)
	if err != nil {
		silent.Err = err
		return nil, silent
	}
	out.State = run.Status
	states, err := s.observeAll(ctx)
	if err != nil {
		silent.Err = err
		return nil, silent
	}
	return states, nil
}

// status shows the drive; st is what QEMU says, nil when it says nothing.
func (d *drive) status(st *blockdev.State) DriveStatus {
	d.mu.Lock()
	rec, info, op, unsettled := d.rec, d.info, d.op, d.unsettled
	d.mu.Unlock()
	out := DriveStatus{
		VM: d.vm.name, Name: d.name, Aliases: info.Aliases, Bus: info.Bus, Model: info.Model,
		Changeable: info.Fixed == "", Reason: info.Fixed, Last: rec.Last,
	}
	if unsettled != "" {
		out.Reason = unsettled
	}
	if op != nil {
		out.Operation = op.Status()
	}
	out.State = d.state(rec, st, unsettled)
	out.Releasing = d.releasing(rec)
	if st == nil {
		return out
	}
	out.Tray, out.Locked = "closed", st.Locked
	if st.TrayOpen {
		out.Tray = "open"
	}
	if m := st.Medium; m != nil {
		out.Medium = &MediumStatus{Name: m.File, Size: m.Size, ReadOnly: m.ReadOnly, Node: m.Node}
		if in := rec.Loaded; in != nil && in.Node == m.Node {
			out.Medium.Name, out.Medium.Path, out.Medium.VolumeID = in.Medium.Name, in.Medium.Path, in.Medium.VolumeID
			out.Medium.Ours, out.Medium.Since = true, &in.Since
		}
	}
	return out
}

func (d *drive) state(rec Record, st *blockdev.State, unsettled string) string {
	switch {
	case rec.Change != nil && (st == nil || unsettled != ""):
		return StateOpen
	case rec.Change != nil:
		return string(rec.Change.Kind)
	case st == nil:
		return StateUnknown
	case st.Medium == nil:
		return StateEmpty
	}
	return StateLoaded
}
