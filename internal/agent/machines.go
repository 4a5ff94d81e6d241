package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/trayd/trayd/internal/library"
	"github.com/trayd/trayd/internal/machine"
	"github.com/trayd/trayd/internal/machine/launch"
	"github.com/trayd/trayd/internal/machine/seed"
)

// MachineOptions are what machines of trayd's own need.
type MachineOptions struct {
	Store    machine.Store
	RunDir   string // a directory for each machine's sockets is in it
	QEMU     string // a path, or a name in PATH
	QemuImg  string
	Accel    string // auto, kvm or tcg
	Flavours []machine.Flavour
	StopWait time.Duration // for a guest that was asked to power off
	Runner   Runner
}

// Runner has the processes of machines.
type Runner interface {
	// Start returns once QEMU is about to run. What goes wrong later is State's to tell.
	Start(ctx context.Context, name string) error
	// Kill ends a machine at once, and returns when its process is no more.
	Kill(ctx context.Context, name string) error
	State(ctx context.Context, name string) (launch.State, error)
	// Tidy removes the sockets of a machine that has ended. Those of one that runs stay, or of
	// one whose last thread has still to go: the error matches launch.ErrRunning.
	Tidy(ctx context.Context, name string) error
	// Name is launch.RunSystemd or launch.RunProcess.
	Name() string
}

// machines are those of trayd's own.
type machines struct {
	a *Agent

	mu    sync.Mutex
	turns map[string]*turn       // what is being done to a machine, by its name; guarded by mu
	watch map[string]*installing // by machine; guarded by mu
	// failed is why a machine's last run ended badly, where trayd knows more than the runner.
	failed map[string]string // guarded by mu
	// off are the machines whose guest has powered off in their last run: what became of QEMU
	// after that (5.2 crashes at some of its ends) is no failure of the machine.
	off      map[string]bool // guarded by mu
	consoles consoles
	// edits is held while a definition of a machine that runs is read, changed and written.
	edits     sync.Mutex
	tidyLimit time.Duration
}

func newMachines(a *Agent) *machines {
	return &machines{a: a, turns: make(map[string]*turn), watch: make(map[string]*installing), failed: make(map[string]string), off: make(map[string]bool), tidyLimit: tidyLimit}
}

func (m *machines) options() MachineOptions { return m.a.opts().Machines }

func (m *machines) store() machine.Store { return m.options().Store }

// own reports whether a VM is a machine of trayd's own.
func (m *machines) own(name string) bool { return m.options().Runner != nil && m.store().Has(name) }

// isOthers reports whether somebody else runs a VM of that name. One that has ended, of trayd's
// own even, may be known for a while.
func (m *machines) isOthers(name string) bool {
	v, err := m.a.lookUpVM(name)
	return err == nil && !v.hidden() && !m.own(name)
}

// forgetRun is for a guest that is about to begin: what an earlier one did says nothing of it.
func (m *machines) forgetRun(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.watch, name)
}

// setFailed notes how a machine's run ended, "" for well.
func (m *machines) setFailed(name, why string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.off, name)
	delete(m.failed, name)
	if why != "" {
		m.failed[name] = why
	}
}

// setOff notes that the guest has powered off.
func (m *machines) setOff(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.failed, name)
	m.off[name] = true
}

// whyFailed is how a machine's last run ended: by its runner's word, or by what was seen.
func (m *machines) whyFailed(name string, st launch.State) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.off[name] {
		return ""
	}
	if why := m.failed[name]; why != "" && !st.Failed {
		return why
	}
	if !st.Failed {
		return ""
	}
	return cmp.Or(st.Why, "it ended badly")
}

// load reads the definition of a machine of trayd's own.
func (m *machines) load(name string) (*machine.Definition, error) {
	if m.options().Runner == nil {
		return nil, newError(VMForeign, "see machines in trayd.toml", "trayd runs no machines here")
	}
	err := fmt.Errorf("%w: %s", machine.ErrNoMachine, name)
	var d *machine.Definition
	if machine.CheckName(name) == nil { // others' machines may have names that ours can't
		d, err = m.store().Load(name)
	}
	if err == nil {
		return d, nil
	}
	if !errors.Is(err, machine.ErrNoMachine) {
		return nil, machineError(name, err)
	}
	if m.isOthers(name) {
		return nil, &Error{Code: VMForeign, VM: name, Err: err, Detail: fmt.Sprintf("VM %s isn't run by trayd, only attached to: somebody else starts and stops it", name),
			Next: "do it where it was started; trayd changes its discs, and shows its screen"}
	}
	names, _ := m.store().Names()
	next := "there are none: `trayctl vm create NAME --iso image:NAME`"
	if len(names) > 0 {
		next = "machines: " + strings.Join(names, ", ")
	}
	return nil, &Error{Code: NoSuchVM, VM: name, Err: err, Detail: "no VM " + name, Next: next}
}

// machineError gives an error of package machine a code of ours; nil stays nil.
func machineError(name string, err error) error {
	var known *Error
	if err == nil || errors.As(err, &known) {
		return err
	}
	var next interface{ Next() string }
	what := ""
	if errors.As(err, &next) {
		what = next.Next()
	}
	e := &Error{Code: Unreadable, VM: name, Err: err, Detail: err.Error(), Next: what}
	var invalid *machine.InvalidError
	var space *machine.SpaceError
	var noQEMU *machine.NoQEMUError
	var noFirmware *machine.NoFirmwareError
	var unusable *seed.Error
	switch {
	case errors.As(err, &invalid):
		e.Code = VMInvalid
	case errors.As(err, &space):
		e.Code = NoSpace
	case errors.As(err, &noQEMU), errors.As(err, &noFirmware):
		e.Code = HostLacks
	case errors.As(err, &unusable):
		e.Code = BadRequest
	case errors.Is(err, machine.ErrExists):
		e.Code, e.Next = VMExists, "choose another name, or remove it: `trayctl vm rm "+name+"`"
	case errors.Is(err, machine.ErrNoMachine):
		e.Code, e.Next = NoSuchVM, "see `trayctl vm ls`"
	}
	if e.Next == "" {
		e.Next = "see the journal of trayd"
	}
	return e
}

// running reports whether a machine's process runs, by its runner's word.
func (m *machines) running(ctx context.Context, name string) (launch.State, error) {
	st, err := m.options().Runner.State(ctx, name)
	if err != nil {
		return st, &Error{Code: Unreachable, VM: name, Err: err, Detail: fmt.Sprintf("whether VM %s runs can't be found out: %v", name, err), Next: "try again; `systemctl status` and trayd's journal say more"}
	}
	return st, nil
}

// stopped refuses a machine that runs. Its definition is to be read after it.
func (m *machines) stopped(ctx context.Context, name, verb string) error {
	st, err := m.running(ctx, name)
	if err == nil && !st.Running {
		return m.seeEnd(ctx, name)
	}
	if err == nil {
		return &Error{Code: VMRunning, VM: name, Detail: fmt.Sprintf("VM %s runs (pid %d): it can't be %s now", name, st.PID, verb), Next: "`trayctl vm stop " + name + "` first"}
	}
	return err
}

// sockets are the monitor sockets of the machines of trayd's own, by machine.
func (m *machines) sockets() map[string]string {
	o := m.options()
	if o.Runner == nil {
		return nil
	}
	paths, _ := filepath.Glob(filepath.Join(o.RunDir, "*", machine.MonitorSocket)) // the pattern is right
	all := make(map[string]string, len(paths))
	for _, path := range paths {
		all[filepath.Base(filepath.Dir(path))] = path
	}
	return all
}

// seeEnd waits until all is learnt from the end of a machine that doesn't run any more: what
// it boots next, and that its volumes are let go of. Its definition isn't to be read before.
func (m *machines) seeEnd(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, killLimit)
	defer cancel()
	for {
		var r run
		if ok, err := m.a.journal.Get(runPrefix+name, &r); err != nil || !ok {
			return nil
		}
		m.a.mu.Lock()
		v := m.a.vms[name]
		m.a.mu.Unlock()
		if v == nil {
			m.ended(name, r.Process, endUnseen)
			return nil
		}
		v.lookForEnd()
		select {
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
			if v.hasEnded() { // all that can be is learnt
				m.neverRan(name, r.Process)
				return nil
			}
			return &Error{Code: VMBusy, VM: name, Detail: fmt.Sprintf("VM %s has just ended, and what it had is still being let go of", name), Next: "try again; `trayctl volumes` and `trayctl drives` show what it waits for"}
		}
	}
}

// usersOf are the machines that have what lies at a place in their definition: a disc of a
// drive, or the base of a linked disk.
func (m *machines) usersOf(p library.Place) []library.User {
	if m.options().Runner == nil {
		return nil
	}
	names, _ := m.store().Names()
	var users []library.User
	for _, name := range names {
		d, err := m.store().Load(name)
		if err != nil {
			// It doesn't start, but somebody may mend it: what it stands on has to be there then.
			if p.Path != "" && m.store().Mentions(name, p.Path) {
				users = append(users, library.User{Machine: name})
			}
			continue
		}
		for _, k := range d.Disks {
			if k.Linked && p.Path != "" && k.Base == p.Path {
				users = append(users, library.User{Machine: name, Medium: k.Image})
			}
		}
		for _, c := range d.CDROMs {
			if means(c.Medium, p) {
				users = append(users, library.User{Drive: name + "/" + c.Name, Medium: c.Medium})
			}
		}
	}
	return users
}

// means reports whether a medium's name means the image at a place, by whichever of its names.
func means(medium string, p library.Place) bool {
	if p.Image == "" || !strings.HasPrefix(medium, "image:") {
		return p.Path != "" && medium == p.Path
	}
	_, name, _ := strings.Cut(p.Image, "/")
	return medium == p.Image || medium == "image:"+name
}
