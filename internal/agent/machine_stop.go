package agent

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/trayd/trayd/internal/machine"
	"github.com/trayd/trayd/internal/wire"
)

const (
	// killLimit is how long a killed process may take to be gone: the kernel needs
	// milliseconds, unless a disk doesn't answer.
	killLimit = 10 * time.Second
	// askPowerAgain is between requests to power off: a guest that is still in its firmware
	// or its kernel's start doesn't hear the first one.
	askPowerAgain = 10 * time.Second
)

// StopVM asks a machine's guest to power off (ACPI), and waits until it has; wait is the
// configured time when nil. A guest that runs on is ended when force is set, and is
// the error GuestRunsOn else. A machine that doesn't run is a success that changes nothing.
func (a *Agent) StopVM(ctx context.Context, name string, wait *time.Duration, force bool, by Caller) (res wire.StopResult, err error) {
	err = a.during(ctx, "stop", name, by, func(ctx context.Context) (err error) {
		res, err = a.stopVM(ctx, name, wait, force, by)
		return err
	})
	return res, err
}

func (a *Agent) stopVM(ctx context.Context, name string, wait *time.Duration, force bool, by Caller) (res wire.StopResult, err error) {
	t := a.trace(by, "stop", "vm", name)
	defer func() { t.end(err) }()
	done, err := a.machines.turn(name, "stopped")
	if err != nil {
		return wire.StopResult{}, err
	}
	defer done()
	if res, err = a.machines.stop(ctx, name, wait, force); err != nil && a.machines.own(name) {
		a.publish(Event{Type: EventVMRunsOn, VM: name, Detail: err.Error()})
	}
	return res, err
}

func (m *machines) stop(ctx context.Context, name string, wait *time.Duration, force bool) (wire.StopResult, error) {
	began := time.Now()
	res := wire.StopResult{VM: name}
	if _, err := m.load(name); err != nil && CodeOf(err) != VMInvalid { // one with a damaged definition can be stopped
		return res, err
	}
	st, err := m.running(ctx, name)
	if err != nil || !st.Running {
		return res, err
	}
	limit := m.options().StopWait
	if wait != nil {
		limit = *wait
	}
	if limit < 0 {
		return res, newError(BadRequest, "use a duration such as 2m", "a negative time to wait: %s", limit)
	}
	m.a.announce(ctx, EventVMStopping, name)
	bounded, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	defer context.AfterFunc(m.a.ctx, cancel)()
	why := m.powerOff(bounded, name)
	res.Took = time.Since(began)
	if st, err := m.running(ctx, name); err != nil {
		return res, err
	} else if !st.Running {
		return res, m.settleEnd(ctx, name)
	}
	switch {
	case m.a.ctx.Err() != nil:
		return res, &Error{Code: Stopping, VM: name, Detail: "trayd is stopping; VM " + name + " has been asked to power off, and may do so", Next: "see `trayctl vms` when trayd runs again"}
	case ctx.Err() != nil:
		return res, &Error{Code: CancelledCode, VM: name, Detail: "nobody waits any more for VM " + name + " to power off; it has been asked to", Next: "see `trayctl vms`"}
	case !force:
		if why == "" {
			why = "it has been asked to power off, and hasn't"
		}
		return res, &Error{Code: GuestRunsOn, VM: name, Detail: fmt.Sprintf("VM %s still runs after %s: %s", name, res.Took.Round(100*time.Millisecond), why),
			Next: fmt.Sprintf("look at its screen (`trayctl vm screenshot %s`), wait longer (--wait), or end it: `trayctl vm kill %s`", name, name)}
	}
	res.Forced = true
	err = m.end(ctx, name)
	res.Took = time.Since(began)
	return res, err
}

// powerOff asks the guest to power off until the machine has ended or ctx does. It says why
// the guest can't.
func (m *machines) powerOff(ctx context.Context, name string) (why string) {
	v := m.a.vm(name)
	s, release, err := v.acquire(ctx)
	if err != nil {
		if path := filepath.Join(m.options().RunDir, name, machine.MonitorSocket); v.launch(path) || v.socket() == path {
			s, release, err = v.connect(ctx)
		}
	}
	if err != nil {
		return err.Error()
	}
	defer release()
	ended := s.conn.Done()
	for {
		bounded, cancel := s.command(ctx)
		status, err := s.conn.QueryStatus(bounded)
		if err == nil && !status.Running {
			why = "it is " + status.Status + ", so that its guest can't power off"
		} else {
			why = ""
		}
		if err == nil {
			err = s.conn.Execute(bounded, "system_powerdown", nil, nil)
			m.a.failPoint("vm-asked-to-stop")
		}
		cancel()
		if err != nil && ctx.Err() == nil && s.conn.Err() == nil {
			return "QEMU doesn't answer: " + err.Error()
		}
		again := time.NewTimer(askPowerAgain)
		select {
		case <-ended:
			again.Stop()
			m.awaitGone(ctx, name, s.process)
			return ""
		case <-ctx.Done():
			again.Stop()
			return why
		case <-again.C:
		}
	}
}

// awaitGone waits until a process whose monitor has been closed is no more.
func (m *machines) awaitGone(ctx context.Context, name string, p Process) {
	p.await(ctx, m.a.boot)
	for ctx.Err() == nil { // the runner learns of it a moment later
		if st, err := m.running(ctx, name); err != nil || !st.Running {
			return
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// settleEnd waits until what a machine had in its drives has been let go of.
func (m *machines) settleEnd(ctx context.Context, name string) error {
	limit, cancel := context.WithTimeout(ctx, killLimit)
	defer cancel()
	for limit.Err() == nil {
		m.a.mu.Lock()
		v := m.a.vms[name]
		m.a.mu.Unlock()
		if v == nil || v.hasEnded() {
			_ = m.seeEnd(limit, name)
			return nil
		}
		v.lookForEnd()
		select {
		case <-time.After(2 * time.Millisecond):
		case <-limit.Done():
		}
	}
	return nil // it goes on by itself; `trayctl volumes` shows what is left
}

// KillVM ends a machine at once, as a power failure does. It doesn't wait for what else is
// done to the machine.
func (a *Agent) KillVM(ctx context.Context, name string, by Caller) error {
	t := a.trace(by, "kill", "vm", name)
	_, err := a.machines.load(name)
	if CodeOf(err) == VMInvalid {
		err = nil
	}
	if err == nil {
		err = a.machines.end(ctx, name)
	}
	t.end(err)
	return err
}

// end ends a machine at once. One that doesn't run is a success.
func (m *machines) end(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killLimit)
	defer cancel()
	if st, err := m.running(ctx, name); err != nil || !st.Running {
		return err
	}
	m.setKilled(name)
	if err := m.options().Runner.Kill(ctx, name); err != nil {
		return &Error{Code: Unreachable, VM: name, Err: err, Detail: fmt.Sprintf("VM %s can't be ended: %v", name, err), Next: "a process that waits for a disk ends when that answers: `ps -o stat,wchan`"}
	}
	return m.settleEnd(ctx, name)
}

// ResetVM is the machine's reset button. A machine that is being installed boots from its
// disc again.
func (a *Agent) ResetVM(ctx context.Context, name string, by Caller) error {
	t := a.trace(by, "reset", "vm", name)
	err := a.machines.reset(ctx, name)
	t.end(err)
	return err
}

func (m *machines) reset(ctx context.Context, name string) error {
	d, err := m.load(name)
	if err != nil {
		return err
	}
	st, err := m.running(ctx, name)
	if err != nil {
		return err
	}
	if !st.Running {
		return &Error{Code: VMNotRunning, VM: name, Detail: "VM " + name + " doesn't run", Next: "`trayctl vm start " + name + "`"}
	}
	s, release, err := m.attach(ctx, name)
	if err != nil {
		return err
	}
	defer release()
	if d.Boot == wire.BootCDROMOnce {
		if _, err := m.learn(ctx, s); err != nil { // right after trayd's start: it may be installed by now
			return &Error{Code: Unreachable, VM: name, Err: err, Detail: fmt.Sprintf("VM %s isn't reset, since whether it is installed can't be found out: %v", name, err),
				Next: "is QEMU stopped, or its storage stalled? `trayctl vm kill " + name + "` ends it"}
		}
	}
	s.vm.turning.Lock()
	defer s.vm.turning.Unlock()
	d, err = m.load(name) // again: the guest may have ended its installation meanwhile
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx) // the order and the reset belong together
	// Also when the reset fails: the next write has the order turned round again.
	defer m.rearm(ctx, s, d)()
	bounded, cancel := s.command(ctx)
	defer cancel()
	if err := s.conn.Execute(bounded, "system_reset", nil, nil); err != nil {
		return &Error{Code: Unreachable, VM: name, Err: err, Detail: fmt.Sprintf("VM %s can't be reset: %v", name, err), Next: "`trayctl vm kill " + name + "` ends it"}
	}
	return nil
}
