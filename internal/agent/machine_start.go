package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/trayd/trayd/blockdev"
	"github.com/trayd/trayd/internal/machine"
	"github.com/trayd/trayd/internal/machine/launch"
	"github.com/trayd/trayd/internal/wire"
)

const (
	// attachLimit is how long a QEMU that was started may take until it answers: with a
	// loaded disk it may take seconds to be read.
	attachLimit = 30 * time.Second
	// attachPoll is between looks for its socket, and failPoll between questions whether it
	// has ended instead.
	attachPoll = time.Millisecond
	// supervisorLimit is how long a start waits for others to connect.
	supervisorLimit = 2 * time.Second
	failPoll        = 50 * time.Millisecond
	// endsWithin is how long a process that is being killed may take to be gone.
	endsWithin = time.Second
)

// Started is a machine that was started.
type Started = wire.MachineStarted

// StartVM starts a machine of trayd's own. The discs of its definition are found, opened,
// their volumes activated, before QEMU is started, and are in before the guest's first
// instruction; where one can't be had that isn't optional, nothing is started. A machine
// that runs already is a success that changes nothing.
func (a *Agent) StartVM(ctx context.Context, name string, by Caller) (began Started, err error) {
	err = a.during(ctx, "start", name, by, func(ctx context.Context) (err error) {
		began, err = a.startVM(ctx, name, by)
		return err
	})
	return began, err
}

func (a *Agent) startVM(ctx context.Context, name string, by Caller) (began Started, err error) {
	t := a.trace(by, "start", "vm", name)
	defer func() { t.end(err) }()
	done, err := a.machines.turn(name, "started")
	if err != nil {
		return Started{}, err
	}
	defer done()
	// A start goes on when its client has gone.
	began, err = a.machines.start(context.WithoutCancel(ctx), name, by)
	if err != nil && a.machines.own(name) {
		a.publish(Event{Type: EventVMFailed, VM: name, Detail: err.Error()})
	}
	return began, err
}

func (m *machines) start(ctx context.Context, name string, by Caller) (Started, error) {
	d, err := m.load(name)
	if err != nil {
		return Started{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(m.a.ctx, cancel)()
	st, err := m.running(ctx, name)
	if err != nil {
		return Started{}, err
	}
	if st.Running {
		began, err := m.resume(ctx, d, st, by)
		if !errors.Is(err, errEnded) && (CodeOf(err) != Unreachable || !m.endsNow(ctx, name)) {
			return began, err
		}
	}
	if err := m.seeEnd(ctx, name); err != nil {
		return Started{}, err
	}
	if d, err = m.load(name); err != nil {
		return Started{}, err
	}
	m.forgetRun(name)
	if err := m.forgetSeed(d); err != nil {
		return Started{}, machineError(name, err)
	}
	if err := m.preflight(d); err != nil {
		return Started{}, machineError(name, err)
	}
	m.a.announce(ctx, EventVMStarting, name)
	discs, warnings, err := m.holdDiscs(ctx, d, by)
	if err != nil {
		return Started{}, err
	}
	m.setFailed(d.Name, "")
	m.a.failPoint("vm-prepared")
	began, err := m.launch(ctx, d, discs)
	began.Warnings = append(warnings, began.Warnings...)
	return began, err
}

// endsNow reports whether a machine that ran a moment ago, and whose QEMU didn't answer, ends
// just now: the monitor of a process that dies goes before the process does.
func (m *machines) endsNow(ctx context.Context, name string) bool {
	for end := time.Now().Add(endsWithin); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(failPoll) {
		if st, err := m.running(ctx, name); err == nil && !st.Running {
			return true
		}
	}
	return false
}

// preflight does everything that can fail without touching anything.
func (m *machines) preflight(d *machine.Definition) error {
	c, err := m.command(d)
	if err != nil {
		return err
	}
	for _, f := range c.Files {
		if f.Mode == launch.Append {
			continue
		}
		if st, err := os.Stat(f.Path); err != nil {
			return &Error{Code: StartFailed, VM: d.Name, Err: err, Detail: fmt.Sprintf("VM %s: a file that it needs can't be had: %v", d.Name, err), Next: nextForFile(d, f.Path)}
		} else if !st.Mode().IsRegular() && st.Mode().Type() != os.ModeDevice {
			return &Error{Code: StartFailed, VM: d.Name, Detail: fmt.Sprintf("VM %s: %s is neither a file nor a block device", d.Name, f.Path), Next: nextForFile(d, f.Path)}
		}
	}
	return nil
}

func nextForFile(d *machine.Definition, path string) string {
	for _, k := range d.Disks {
		if k.Linked && k.Base == path {
			return "it is what disk " + k.Name + " stands on (" + k.Image + "): bring it back, or remove the machine"
		}
	}
	return "bring it back, or `trayctl vm rm " + d.Name + "`"
}

// command is QEMU's for a machine.
func (m *machines) command(d *machine.Definition) (*launch.Command, error) {
	o := m.options()
	h, err := machine.FindHost(o.QEMU, o.Accel)
	if err != nil {
		return nil, err
	}
	return machine.Build(d, h, o.Store.Path(d.Name), filepath.Join(o.RunDir, d.Name))
}

// launch starts QEMU, puts the discs in, and lets the guest run.
func (m *machines) launch(ctx context.Context, d *machine.Definition, discs []*heldDisc) (began Started, err error) {
	began.VM = d.Name
	held := discs
	defer func() {
		for _, h := range held {
			h.drop(err)
		}
	}()
	o := m.options()
	if err := o.Runner.Start(ctx, d.Name); err != nil {
		return began, &Error{Code: StartFailed, VM: d.Name, Err: err, Detail: fmt.Sprintf("VM %s can't be started: %s", d.Name, whyNotStarted(d.Name, err)), Next: nextOf(err, "`trayctl vm set "+d.Name+"` changes its definition, `trayctl vm show "+d.Name+"` shows it")}
	}
	m.a.failPoint("vm-launched")
	s, release, err := m.attach(ctx, d.Name)
	if err != nil {
		m.kill(d.Name)
		return began, err
	}
	defer release()
	began.PID = s.process.PID
	m.a.failPoint("vm-attached")
	held = nil // from here on each ends by itself
	began.Warnings, err = m.loadAll(ctx, s, discs)
	if err == nil {
		err = m.run(ctx, s, d)
	}
	if err != nil {
		return began, m.giveUp(d.Name, s, err)
	}
	return began, nil
}

// whyNotStarted is why a launch failed, without what says once more that it did.
func whyNotStarted(name string, err error) string {
	var e *launch.StartError
	if !errors.As(err, &e) {
		return err.Error()
	}
	return strings.TrimPrefix(e.Why, "machine "+name+" can't be started: ")
}

// giveUp ends a machine that is not to run.
func (m *machines) giveUp(name string, s *session, cause error) error {
	m.kill(name)
	m.neverRan(name, s.process)
	return &Error{Code: StartFailed, VM: name, Err: cause, Detail: fmt.Sprintf("VM %s is ended before it ran: %v", name, cause), Next: nextOf(cause, "try again")}
}

func nextOf(err error, otherwise string) string {
	var e *Error
	if errors.As(err, &e) && e.Next != "" {
		return e.Next
	}
	var n interface{ Next() string }
	if errors.As(err, &n) && n.Next() != "" {
		return n.Next()
	}
	return otherwise
}

// errEnded is of a QEMU that ended before it answered.
var errEnded = errors.New("ended")

// attach waits until a QEMU that was started answers, or has ended instead: errEnded.
func (m *machines) attach(ctx context.Context, name string) (*session, func(), error) {
	ctx, cancel := context.WithTimeout(ctx, attachLimit)
	defer cancel()
	defer context.AfterFunc(m.a.ctx, cancel)()
	path := filepath.Join(m.options().RunDir, name, machine.MonitorSocket)
	began := time.Now()
	asked := began
	for {
		if st, err := os.Lstat(path); err == nil && st.Mode()&os.ModeSocket != 0 {
			v := m.a.vm(name)
			v.launch(path)
			// Its supervisor connects, so that the session doesn't end with this. It may sleep,
			// since QEMU didn't listen yet, or be busy with the end of an earlier QEMU.
			v.kickNow()
			if v.connected() || time.Since(began) > supervisorLimit {
				if s, release, err := v.connect(ctx); err == nil { // when it is settled
					return s, release, nil
				}
			}
		}
		if time.Since(asked) > failPoll {
			asked = time.Now()
			if st, err := m.running(ctx, name); err == nil && !st.Running {
				why := strings.TrimSpace(st.Why)
				if why == "" {
					why = "it ended before it answered"
				}
				return nil, nil, &Error{Code: StartFailed, VM: name, Err: errEnded, Detail: fmt.Sprintf("QEMU of VM %s didn't start: %s", name, why),
					Next: "QEMU's words say what it lacks; `trayctl vm set " + name + "` changes the definition"}
			}
		}
		select {
		case <-ctx.Done():
			if m.a.ctx.Err() != nil {
				return nil, nil, &Error{Code: Stopping, VM: name, Detail: "trayd is stopping, and isn't connected to VM " + name, Next: "try again when it runs"}
			}
			return nil, nil, &Error{Code: StartFailed, VM: name, Detail: fmt.Sprintf("QEMU of VM %s didn't answer within %s", name, attachLimit), Next: "see its journal: `trayctl vm show " + name + "`"}
		case <-time.After(attachPoll):
		}
	}
}

// run lets a machine run whose discs are in. That it does is durable first: from then on its
// definition follows what is in its drives.
func (m *machines) run(ctx context.Context, s *session, d *machine.Definition) error {
	m.a.failPoint("vm-loaded")
	if err := m.noteRun(d.Name, s.process); err != nil {
		return newError(StateRefused, "free space in state_dir, or see `trayctl state check`", "that it runs can't be written to the state file: %w", err)
	}
	if err := m.followInstall(ctx, s, d); err != nil {
		return err
	}
	m.known(d.Name, func(i *installing) { i.followed = s })
	ctx, cancel := s.command(ctx)
	defer cancel()
	return m.cont(ctx, s, d)
}

// cont lets a machine run, or run on.
func (m *machines) cont(ctx context.Context, s *session, d *machine.Definition) error {
	if err := s.conn.Execute(ctx, "cont", nil, nil); err != nil {
		return &Error{Code: StartFailed, VM: d.Name, Err: err, Detail: fmt.Sprintf("QEMU doesn't let VM %s run: %v", d.Name, err), Next: "try again"}
	}
	m.a.failPoint("vm-continued")
	m.a.publish(Event{Type: EventVMStarted, VM: d.Name, Detail: fmt.Sprintf("runs (pid %d)", s.process.PID)})
	return nil
}

// kill ends a machine that must not run.
func (m *machines) kill(name string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(m.a.ctx), killLimit)
	defer cancel()
	if err := m.options().Runner.Kill(ctx, name); err != nil {
		m.a.log.Error("a machine that was not to run can't be ended", "vm", name, "error", err)
	}
}

// resume goes on with a start that was cut off, or that somebody else began
// (`systemctl start`): QEMU is there, and the guest hasn't run yet.
func (m *machines) resume(ctx context.Context, d *machine.Definition, st launch.State, by Caller) (Started, error) {
	began := Started{VM: d.Name, PID: st.PID}
	s, release, err := m.attach(ctx, d.Name)
	if err != nil {
		return began, err
	}
	defer release()
	began.PID = s.process.PID
	bounded, cancel := s.command(ctx)
	defer cancel()
	status, err := s.conn.QueryStatus(bounded)
	switch {
	case err != nil:
		return began, &Error{Code: Unreachable, VM: d.Name, Err: err, Detail: "QEMU of VM " + d.Name + " doesn't answer", Next: "is it stopped, or its storage stalled?"}
	case status.Status == paused || status.Status == ioError:
		return began, m.cont(bounded, s, d)
	case status.Status != prelaunch:
		return began, nil // it runs already
	}
	m.a.announce(ctx, EventVMStarting, d.Name)
	m.setFailed(d.Name, "")
	m.forgetRun(d.Name)
	var discs []*heldDisc
	empty := *d
	empty.CDROMs = nil
	for _, c := range d.CDROMs { // one may be in already
		var is bool
		if is, err = m.isEmpty(ctx, s, c.Name); err != nil {
			break
		}
		if is {
			empty.CDROMs = append(empty.CDROMs, c)
		}
	}
	if err == nil {
		discs, began.Warnings, err = m.holdDiscs(ctx, &empty, by)
	}
	if err == nil {
		var more []string
		more, err = m.loadAll(ctx, s, discs)
		began.Warnings = append(began.Warnings, more...)
	}
	if err == nil {
		err = m.run(ctx, s, d)
	}
	if err != nil {
		return began, m.giveUp(d.Name, s, err)
	}
	return began, nil
}

// QEMU's words (RunState) for a machine whose guest has not run yet, one that somebody has
// paused, and one that is paused since its disk could not be written: the host's is full.
const (
	prelaunch = "prelaunch"
	paused    = "paused"
	ioError   = "io-error"
)

func (m *machines) isEmpty(ctx context.Context, s *session, drive string) (bool, error) {
	if err := s.know(ctx); err != nil {
		return false, err
	}
	d := s.vm.drive(drive)
	d.settleNow(ctx, s) // what a start that was cut off has left
	bounded, cancel := s.command(ctx)
	defer cancel()
	st, err := blockdev.Observe(bounded, s.conn, d.id())
	return st.Medium == nil, err
}
