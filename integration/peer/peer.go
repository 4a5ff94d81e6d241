// Package peer is what trayd is measured beside: each way in which people change a disc in
// a QEMU machine's CD drive, behind one small interface. The bench and the comparison use
// it.
//
//	trayd.go    trayd of this checkout: its API, and trayctl
//	libvirt.go  a libvirtd of the run's own: virsh, and a persistent connection (libvirt.py)
//	script.go   a shell script on the monitor's socket (script.sh)
//	floor.go    the floor: the commands alone (integration/raw), nothing durable, nothing checked
//
// Machines are alike for all: the same QEMU binary, machine type, memory and SATA drive,
// running with a processor that has halted, a second monitor (Machine.Side) through which
// the outcome is looked at, and a qtest socket through which a guest is played. Only
// libvirt starts its own.
//
// A contender is used by one goroutine at a time, except for its Asks, which may be called
// for different machines at once.
package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"syscall"
)

// Ask is one way of asking for a change: it ends when the contender says how it ended. The
// verb is wire.Insert (into an empty drive), wire.Replace or wire.Eject.
type Ask func(ctx context.Context, verb, vm, disc string) error

// Contender is one program that changes discs.
type Contender interface {
	// Name is what the table calls it.
	Name() string
	// Boot starts machines with empty drives, which the contender serves when it returns.
	Boot(ctx context.Context, names ...string) error
	// Machine is one that was booted.
	Machine(name string) *Machine
	// Persistent asks over a connection that stays; nil where there is none.
	Persistent() Ask
	// Command asks by a command, from its start to its end; nil where there is none.
	Command() Ask
	// Says is what it says of each machine that it knows; ErrNoStatus from one that has
	// nothing to say.
	Says(ctx context.Context) (map[string]Status, error)
	// Kill kills what works on changes, as kill -9 does. Start starts it again, and ends when
	// it serves requests.
	Kill()
	Start(ctx context.Context) error
	// PID is its daemon's process id; 0 where nothing stays between changes.
	PID() int
	// Left are traces of changes that the contender itself finds, beyond QEMU.
	Left(ctx context.Context) ([]string, error)
	// Close ends it and its machines, and removes what it made.
	Close()
}

// Status is what a contender says of a machine and its drive.
type Status struct {
	Running bool   // the machine's process is there
	Disc    string // the path of the disc that is in; "" for an empty drive
	Open    bool   // the tray
	Busy    bool   // a change is under way, or isn't put in order yet
}

// ErrNoStatus says that a contender keeps no status.
var ErrNoStatus = errors.New("it keeps no status")

// run runs a command to its end, in a process group of its own, so that it can be killed
// with what it has started.
func run(ctx context.Context, env []string, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.Env = env
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s: %w: %s%s", name, err, out.Bytes(), errs.Bytes())
	}
	return out.Bytes(), nil
}

// errVerb is for a verb that is none of the three.
func errVerb(verb string) error { return fmt.Errorf("no such change: %q", verb) }
