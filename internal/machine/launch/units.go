package launch

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/trayd/trayd/systemd"
)

// Units runs machines as systemd's units.
type Units struct {
	dirs    Dirs
	systemd systemd.Units
	each    each
}

// NewUnits makes a Units, whether there is a systemd or not.
func NewUnits(d Dirs) *Units { return &Units{dirs: d} }

// Unit is the unit of a machine. Every machine's name is an instance's as it is.
func Unit(name string) string { return strings.Replace(Template, "@", "@"+name, 1) }

// Name is "systemd".
func (*Units) Name() string { return RunSystemd }

// available says why machines can't be units.
func (u *Units) available(ctx context.Context) error {
	if !systemd.Booted() {
		return errors.New("systemd isn't this host's service manager")
	}
	s, err := u.systemd.State(ctx, Unit("x"))
	if err != nil {
		return err
	}
	if s.Load != "loaded" {
		return fmt.Errorf("%s isn't installed", Template)
	}
	return nil
}

// Start implements Runner.
func (u *Units) Start(ctx context.Context, name string) error {
	if err := u.dirs.check(name); err != nil {
		return err
	}
	release, err := u.each.take(ctx, name)
	if err != nil {
		return err
	}
	defer release()
	// systemd is content when a unit that is to be started runs. The lock's file is made
	// on the way, as trayd's: a unit's user is nobody's by the time that it has ended.
	lock, err := TakeLock(u.dirs, name)
	if err != nil {
		return err
	}
	lock.Close()
	err = u.systemd.Start(ctx, Unit(name))
	switch {
	case err == nil:
		return nil
	case errors.As(err, new(*systemd.JobError)):
		return u.explain(ctx, name, err)
	case ctx.Err() != nil:
		bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), giveUpTime)
		defer cancel()
		return errors.Join(fmt.Errorf("machine %s: its start was given up: %w", name, err), u.systemd.Kill(bound, Unit(name)))
	}
	return u.denied(name, err)
}

// giveUpTime is how long the end of a start may take that has taken too long already.
const giveUpTime = 5 * time.Second

// denied says what can be done when it was systemd or polkit that refused.
func (u *Units) denied(name string, err error) error {
	if errors.Is(err, systemd.ErrDenied) {
		return fmt.Errorf("machine %s: trayd may not manage %s: install polkit (Debian: polkitd) and /usr/share/polkit-1/rules.d/trayd.rules, run trayd as root, or set machines.run to %s where trayd isn't a service: %w",
			name, Unit(name), RunProcess, err)
	}
	return fmt.Errorf("machine %s: %w", name, err)
}

// explain adds to a job's result what the launcher or QEMU said.
func (u *Units) explain(ctx context.Context, name string, job error) error {
	s, err := u.systemd.State(ctx, Unit(name))
	if err != nil {
		return fmt.Errorf("machine %s: %w", name, job)
	}
	return &StartError{Machine: name, Why: u.why(ctx, name, s)}
}

// why is why a unit failed: what the launcher told systemd, which it takes back when it
// becomes QEMU; else the last lines in the journal; else systemd's own word for it.
func (u *Units) why(ctx context.Context, name string, s systemd.UnitState) string {
	if s.Status != "" {
		return s.Status
	}
	look := fmt.Sprintf("systemd says %q; `journalctl -u %s` says more", s.Result, Unit(name))
	if s.Invocation == "" {
		return look
	}
	// The journal has them a moment later than the process its end.
	for range journalTries {
		words, err := u.systemd.LastWords(ctx, s.Invocation, wordsLines)
		if err != nil {
			break
		}
		if len(words) > 0 {
			return bound(last(words))
		}
		select {
		case <-time.After(journalPause):
		case <-ctx.Done():
		}
	}
	return look
}

const (
	journalTries = 3
	journalPause = 100 * time.Millisecond
)

// bound cuts what is too long to be shown, at its beginning.
func bound(s string) string { return s[max(0, len(s)-wordsLimit):] }

// Tidy implements Runner: systemd has done it (RuntimeDirectory=).
func (*Units) Tidy(context.Context, string) error { return nil }

// Kill implements Runner.
func (u *Units) Kill(ctx context.Context, name string) error {
	if !machineName.MatchString(name) {
		return fmt.Errorf("machine %q: %w", name, ErrName)
	}
	if err := u.systemd.Kill(ctx, Unit(name)); err != nil {
		return u.denied(name, err)
	}
	return kill(ctx, u.dirs, name, func(int) {}) // one that is no unit's
}

// State implements Runner.
func (u *Units) State(ctx context.Context, name string) (State, error) {
	if !machineName.MatchString(name) {
		return State{}, fmt.Errorf("machine %q: %w", name, ErrName)
	}
	s, err := u.systemd.State(ctx, Unit(name))
	if err != nil {
		return State{}, fmt.Errorf("machine %s: %w", name, err)
	}
	if s.MainPID != 0 {
		return State{Running: true, PID: s.MainPID}, nil
	}
	switch s.Active {
	case "activating", "active", "deactivating":
		return State{Running: true}, nil
	}
	h, running, err := look(ctx, u.dirs, name)
	if err != nil || running {
		return State{Running: running, PID: h.pid}, err
	}
	if s.Active == "failed" {
		return State{Failed: true, Why: u.why(ctx, name, s)}, nil
	}
	return State{}, nil
}
