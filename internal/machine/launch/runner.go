package launch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"sync"
)

// Runner starts and ends machines' processes. Implementations are safe for concurrent
// use, and do one thing at a time with each machine.
//
// Both see and end a machine that the other has started, so that the way may be changed
// while machines run.
type Runner interface {
	// Start returns once the process has everything and becomes QEMU. The error says why
	// it has not come to that; it matches ErrRunning when the machine runs, and is a
	// StartError when the launcher said it. When ctx ends first the process is ended.
	Start(ctx context.Context, name string) error
	// Kill ends the process at once, and returns when it is gone. It is nil when nothing
	// runs.
	Kill(ctx context.Context, name string) error
	State(ctx context.Context, name string) (State, error)
	// Tidy removes the sockets of a process that is no more. Those of one that runs stay, or
	// of one of whose threads one has still to go: the error matches ErrRunning.
	Tidy(ctx context.Context, name string) error
	// Name is "systemd" or "process".
	Name() string
}

// State is what has become of a machine's process.
type State struct {
	Running bool
	PID     int // 0 when nothing runs, or in the first moment of a start
	// Failed is that the last process didn't end as it should: its start failed, QEMU
	// gave up or was killed (by another than Kill).
	Failed bool
	Why    string // of Failed: its last words, a few lines at most
}

// StartError is a start that the launcher or QEMU gave up.
type StartError struct {
	Machine string
	Why     string // a few lines at most
}

func (e *StartError) Error() string {
	return fmt.Sprintf("machine %s didn't start: %s", e.Machine, e.Why)
}

// The ways to run machines, as Options.Run names them.
const (
	RunAuto    = "auto"
	RunSystemd = "systemd"
	RunProcess = "process"
)

// Options are what a Runner has to know.
type Options struct {
	Run     string // RunSystemd or RunProcess; RunAuto or "": what Choose finds
	Dirs    Dirs
	Program string // trayd, for processes; "": this one
	Config  string // that is passed on to it; "": the default one
}

// Template is the unit that machines are instances of under systemd.
const Template = "trayd-vm@.service"

// Choose says how machines are run: as systemd's units where systemd is in charge, answers
// on D-Bus, and has the template; else as processes. Options.Run forces either.
func Choose(ctx context.Context, o Options) Runner {
	units := NewUnits(o.Dirs)
	if o.Run == RunSystemd {
		return units
	}
	why := errors.New("machines.run is " + RunProcess)
	if o.Run != RunProcess {
		if why = units.available(ctx); why == nil {
			return units
		}
	}
	d := NewDetached(o)
	d.refuse = dependent("/proc/self/cgroup", why)
	return d
}

// dependent is the reason why a process that this one starts would end with it: systemd
// ends all processes of a service. noUnits is why there are no units.
func dependent(cgroup string, noUnits error) error {
	// systemd started this very process, and not a shell that a person or a test has in a
	// service (systemd.exec(5); 248).
	if os.Getppid() != 1 && os.Getenv("SYSTEMD_EXEC_PID") != fmt.Sprint(os.Getpid()) {
		return nil
	}
	service := serviceOf(cgroup)
	if service == "" {
		return nil
	}
	return fmt.Errorf("machines can't be processes of %s, since they would end with it (%w): install %s and polkit (Debian: polkitd) and set machines.run to %s",
		service, noUnits, Template, RunSystemd)
}

// serviceOf is the service that a process is in, by its /proc/PID/cgroup; "" for none.
func serviceOf(cgroup string) string {
	b, err := os.ReadFile(cgroup)
	if err != nil {
		return "" // no control groups: nobody ends what is in one
	}
	for _, line := range strings.Split(string(b), "\n") {
		// Version 2, and the hierarchy that systemd has for itself with version 1.
		f := strings.SplitN(line, ":", 3)
		if len(f) == 3 && (f[1] == "" || f[1] == "name=systemd") && strings.HasSuffix(f[2], ".service") {
			return path.Base(f[2])
		}
	}
	return ""
}

// each lets one at a time have a machine.
type each struct {
	mu  sync.Mutex // guards all
	all map[string]chan struct{}
}

// take waits for a machine. The function gives it back.
func (e *each) take(ctx context.Context, name string) (func(), error) {
	e.mu.Lock()
	if e.all == nil {
		e.all = make(map[string]chan struct{})
	}
	one, ok := e.all[name]
	if !ok {
		one = make(chan struct{}, 1) // holds a token while somebody has the machine
		e.all[name] = one
	}
	e.mu.Unlock()
	select {
	case one <- struct{}{}:
		return func() { <-one }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("machine %s: something else is done with it: %w", name, ctx.Err())
	}
}
