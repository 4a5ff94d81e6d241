package systemd

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
)

var (
	// ErrDenied means that the service manager, or polkit for it, refused.
	ErrDenied = errors.New("the service manager refuses")

	// ErrNoManager means that nobody answers for the service manager on D-Bus.
	ErrNoManager = errors.New("the service manager isn't to be reached by D-Bus")
)

// JobError is a job that ended in another way than it should.
type JobError struct {
	Verb, Unit string
	Result     string // failed, timeout, canceled, dependency or skipped (org.freedesktop.systemd1(5))
}

func (e *JobError) Error() string {
	return fmt.Sprintf("%s %s: the job's result is %q", e.Verb, e.Unit, e.Result)
}

// Units starts, ends and looks at units over D-Bus. Its zero value is ready, and safe
// for concurrent use: each call has a connection of its own, so that a bus that was
// started anew is no case of its own. That costs little beside what a start takes.
//
// All methods wait as long as their context. Their errors match ErrDenied and
// ErrNoManager where it is that.
type Units struct{}

// UnitState is what the manager says of a service. One that isn't loaded is inactive.
type UnitState struct {
	Load    string // loaded, not-found, ...
	Active  string // active, inactive, failed, activating, deactivating, ...
	MainPID int    // 0: none
	// Of one that has failed:
	Result     string // exit-code, signal, timeout, ...
	Status     string // the last STATUS= that it sent
	Invocation string // of its last start
}

// Start starts a unit, and waits until it has started: what that means, its Type= says.
// The error is a JobError when it has not.
func (u Units) Start(ctx context.Context, unit string) error {
	return u.job(ctx, "start", unit, (*dbus.Conn).StartUnitContext)
}

// Kill sends SIGKILL to all of a unit's processes, waits for their end, and makes a
// unit that failed by that inactive. It does nothing to a unit that doesn't run.
func (u Units) Kill(ctx context.Context, unit string) error {
	return u.call(ctx, func(c *dbus.Conn) error {
		err := c.KillUnitWithTarget(ctx, unit, dbus.All, 9)
		if isNamed(err, "org.freedesktop.systemd1.NoSuchUnit") {
			return nil
		}
		if err != nil && !isNamed(err, "org.freedesktop.systemd1.NoSuchProcess") {
			return fmt.Errorf("kill %s: %w", unit, err)
		}
		// The job ends with the last process, and stands in the way of a start that
		// somebody else asked for.
		if err := wait(ctx, c, "stop", unit, (*dbus.Conn).StopUnitContext); err != nil {
			return err
		}
		if err := c.ResetFailedUnitContext(ctx, unit); err != nil && !isNamed(err, "org.freedesktop.systemd1.NoSuchUnit") {
			return fmt.Errorf("forget that %s failed: %w", unit, err)
		}
		return nil
	})
}

// State asks what has become of a service. It asks for single properties: for all of them
// the manager reads control groups, too, and takes more than twice as long.
func (u Units) State(ctx context.Context, unit string) (s UnitState, err error) {
	err = u.call(ctx, func(c *dbus.Conn) error {
		listed, err := c.ListUnitsByNamesContext(ctx, []string{unit})
		if err == nil && len(listed) != 1 {
			err = fmt.Errorf("the manager knows %d of them", len(listed))
		}
		if err == nil {
			s.Load, s.Active = listed[0].LoadState, listed[0].ActiveState
			err = s.more(ctx, c, unit)
		}
		if err != nil {
			return fmt.Errorf("ask for the state of %s: %w", unit, err)
		}
		return nil
	})
	return s, err
}

// more asks for what there is besides in this state.
func (s *UnitState) more(ctx context.Context, c *dbus.Conn, unit string) error {
	switch s.Active {
	case "inactive":
		return nil
	case "failed":
		id, err := c.GetUnitPropertyContext(ctx, unit, "InvocationID")
		if err != nil {
			return err
		}
		b, _ := id.Value.Value().([]byte)
		s.Invocation = hex.EncodeToString(b)
		return errors.Join(ask(ctx, c, unit, "Result", &s.Result), ask(ctx, c, unit, "StatusText", &s.Status))
	}
	var pid uint32
	err := ask(ctx, c, unit, "MainPID", &pid)
	s.MainPID = int(pid)
	return err
}

// ask asks for a service's property.
func ask(ctx context.Context, c *dbus.Conn, unit, name string, value any) error {
	p, err := c.GetUnitTypePropertyContext(ctx, unit, "Service", name)
	if err != nil {
		return err
	}
	return p.Value.Store(value)
}

// LastWords are the last lines, at most n, that a unit's processes wrote since the start
// that the invocation names, as the journal has them. Only root and the members of the
// group systemd-journal may read it; others have an error or no lines.
func (Units) LastWords(ctx context.Context, invocation string, n int) ([]string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "journalctl", "--no-pager", "--quiet", "--output=cat", "--lines="+strconv.Itoa(n),
		"_SYSTEMD_INVOCATION_ID="+invocation)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("journalctl: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	text := strings.TrimSpace(stdout.String())
	if text == "" {
		return nil, nil
	}
	return strings.Split(text, "\n"), nil
}

// startOrStop is a method of dbus.Conn that makes a job.
type startOrStop func(c *dbus.Conn, ctx context.Context, unit, mode string, result chan<- string) (int, error)

func (u Units) job(ctx context.Context, verb, unit string, do startOrStop) error {
	return u.call(ctx, func(c *dbus.Conn) error { return wait(ctx, c, verb, unit, do) })
}

// wait makes a job and waits for its end.
func wait(ctx context.Context, c *dbus.Conn, verb, unit string, do startOrStop) error {
	ended := make(chan string, 1) // go-systemd writes to it once, and hangs when it can't
	if _, err := do(c, ctx, unit, "replace", ended); err != nil {
		if isNamed(err, "org.freedesktop.systemd1.NoSuchUnit") && verb == "stop" {
			return nil
		}
		return fmt.Errorf("%s %s: %w", verb, unit, err)
	}
	select {
	case result := <-ended:
		if result != "done" {
			return &JobError{Verb: verb, Unit: unit, Result: result}
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s %s: the job hasn't ended: %w", verb, unit, ctx.Err())
	}
}

// call has a connection for as long as f runs.
func (Units) call(ctx context.Context, f func(*dbus.Conn) error) error {
	c, err := dbus.NewWithContext(ctx)
	switch {
	case ctx.Err() != nil: // the connection ends with it, and says only that it was closed
		if c != nil {
			c.Close()
		}
		return fmt.Errorf("ask the service manager: %w", ctx.Err())
	case err != nil:
		return fmt.Errorf("%w: %w", ErrNoManager, err)
	}
	defer c.Close()
	err = meaning(f(c))
	if err != nil && ctx.Err() != nil && !errors.Is(err, ctx.Err()) {
		return fmt.Errorf("%w: %w", ctx.Err(), err)
	}
	return err
}

// meaning says which errors of the bus are a caller's to decide on.
func meaning(err error) error {
	switch {
	case isNamed(err, "org.freedesktop.DBus.Error.AccessDenied"), isNamed(err, "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"):
		return fmt.Errorf("%w: %w", ErrDenied, err)
	case isNamed(err, "org.freedesktop.DBus.Error.ServiceUnknown"), isNamed(err, "org.freedesktop.DBus.Error.NameHasNoOwner"):
		return fmt.Errorf("%w: %w", ErrNoManager, err)
	}
	return err
}

// isNamed reports whether err is the D-Bus error of that name.
func isNamed(err error, name string) bool {
	var e godbus.Error
	return errors.As(err, &e) && e.Name == name
}

// Booted reports whether systemd is the service manager of this host (sd_booted(3)).
func Booted() bool {
	st, err := os.Lstat("/run/systemd/system")
	return err == nil && st.Mode().Type() == fs.ModeDir
}
