package agent

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/trayd/trayd/blockdev"
	"github.com/trayd/trayd/qmp"
)

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
		s.Error, s.Code, s.Next = p.Err.Error(), CodeOf(p.Err), nextOf(p.Err, "")
	}
	return s
}

// statusTimeout is how long a look at one machine may take. A machine that is slow
// for longer is shown as unreachable; the others are shown all the same.
const statusTimeout = time.Second

// unhurried is how many machines are looked at at once when nobody waits: a hundred at once
// would keep a processor from all others for 30 ms.
const unhurried = 2

// VMs shows every machine, as QEMU says now. All are asked at once.
func (a *Agent) VMs(ctx context.Context) []VMStatus {
	hurry := make(chan struct{})
	close(hurry)
	return a.VMsUnhurried(ctx, hurry)
}

// VMsUnhurried is VMs for somebody who can wait: few machines are asked at once until hurry is
// closed.
func (a *Agent) VMsUnhurried(ctx context.Context, hurry <-chan struct{}) []VMStatus {
	vms := a.list()
	all := make([]VMStatus, len(vms))
	turns := make(chan struct{}, unhurried)
	var wg sync.WaitGroup
	for i, v := range vms {
		select {
		case <-hurry:
			wg.Go(func() { all[i] = v.status() })
		case turns <- struct{}{}:
			wg.Go(func() { all[i] = v.status(); <-turns })
		}
	}
	wg.Wait()
	for i := range all {
		all[i].Own = a.machines.own(all[i].Name)
	}
	all = append(all, a.machines.stoppedVMs(ctx, all)...)
	slices.SortFunc(all, func(x, y VMStatus) int { return strings.Compare(x.Name, y.Name) })
	return all
}

// VM shows one machine.
func (a *Agent) VM(ctx context.Context, name string) (VMStatus, error) {
	var out VMStatus
	if a.machines.isStopped(name) {
		out = a.machines.stoppedVM(ctx, name)
	} else {
		v, err := a.lookUpVM(name)
		if err != nil {
			return VMStatus{}, err
		}
		out = v.status()
	}
	a.machines.show(ctx, &out)
	return out, nil
}

// Drive shows one drive, named by any of its names, or the only one.
func (a *Agent) Drive(ctx context.Context, vmName, name string) (DriveStatus, error) {
	if a.machines.isStopped(vmName) {
		return a.machines.stoppedDrive(ctx, vmName, name)
	}
	v, err := a.lookUpVM(vmName)
	if err != nil {
		return DriveStatus{}, err
	}
	d, err := v.findDrive(ctx, name)
	if err != nil {
		return DriveStatus{}, err
	}
	for _, s := range v.status().Drives {
		if s.Name == d.name {
			return s, nil
		}
	}
	return d.status(nil), nil
}

// status shows the machine. Those who ask at the same time are answered by one look.
func (v *vm) status() VMStatus {
	out := v.looks.Do(v.statusNow)
	out.Drives = slices.Clone(out.Drives)
	return out
}

func (v *vm) statusNow() VMStatus {
	ctx, cancel := context.WithTimeout(v.a.ctx, statusTimeout)
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
	status, err := s.conn.Send(ctx, "query-status", nil, nil) // both at once: QEMU is woken once
	if err != nil {
		silent.Err = err
		return nil, silent
	}
	states, err := s.observeAll(ctx)
	var run qmp.Status
	if e := status.Wait(ctx, &run); err == nil {
		err = e
	}
	if err != nil {
		silent.Err = err
		return nil, silent
	}
	out.State = run.Status
	return states, nil
}

// status shows the drive; st is what QEMU says, nil when it says nothing.
func (d *drive) status(st *blockdev.State) DriveStatus {
	d.mu.Lock()
	rec, info, op, unsettled := d.rec, d.info, d.op, d.unsettled
	d.mu.Unlock()
	out := DriveStatus{
		VM: d.vm.name, Name: d.name, Aliases: info.Aliases, Bus: string(info.Bus), Model: info.Model,
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
