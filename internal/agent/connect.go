package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"syscall"

	"github.com/trayd/trayd/qmp"
)

// acquire returns the machine's session, and how to give it back. On demand it
// connects; with a persistent attachment it waits for the first try only.
func (v *vm) acquire(ctx context.Context) (*session, func(), error) {
	if s, release := v.current(); s != nil {
		return s, release, nil
	}
	v.mu.Lock()
	launched := v.launched
	v.mu.Unlock()
	if launched {
		select {
		case <-v.tried:
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		}
	}
	if v.a.opts().Attach == OnDemand && launched {
		return v.connect(ctx)
	}
	if s, release := v.current(); s != nil {
		return s, release, nil
	}
	return nil, nil, v.unreachable()
}

// current returns the live session, if there is one, with a hold on it.
func (v *vm) current() (*session, func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s := v.session
	if s == nil || s.conn.Err() != nil {
		return nil, nil
	}
	s.holds++
	return s, sync.OnceFunc(func() { v.leave(s) })
}

// connected reports whether there is a live session.
func (v *vm) connected() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.session != nil && v.session.conn.Err() == nil
}

// connect returns the session, made and settled if there is none. One caller at a
// time connects; the others get its session.
func (v *vm) connect(ctx context.Context) (*session, func(), error) {
	select {
	case v.gate <- struct{}{}:
		defer func() { <-v.gate }()
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	if s, release := v.current(); s != nil {
		return s, release, nil
	}
	s, err := openSession(ctx, v)
	if err != nil {
		v.fail(err)
		return nil, nil, v.unreachable()
	}
	v.mu.Lock()
	first := v.session == nil && v.process != s.process
	if v.process != s.process {
		v.left = nil
	}
	v.session, v.process, v.why, v.ended = s, s.process, nil, false
	s.holds++
	v.mu.Unlock()
	s.settleAll(ctx)
	v.a.machines.attached(s)
	if first || v.a.opts().Attach == Persistent {
		v.a.publish(Event{Type: EventVMAttached, VM: v.name, Detail: "QEMU " + s.conn.Version().String()})
	}
	return s, sync.OnceFunc(func() { v.leave(s) }), nil
}

// leave gives a hold back; the last one ends the session.
func (v *vm) leave(s *session) {
	cause := s.conn.Err()
	v.mu.Lock()
	s.holds--
	last := s.holds == 0
	if last && !closedByQEMU(cause) {
		v.a.machines.unfollowed(s) // before anybody sees the machine's end
	}
	if last && v.session == s {
		v.session = nil
	}
	v.mu.Unlock()
	if !last {
		return
	}
	s.lost()
	s.close()
	if cause != nil && v.a.ctx.Err() == nil {
		if s, release := v.current(); s != nil { // connected anew meanwhile
			release()
			return
		}
		v.fail(cause)
		v.kickNow() // what it had can be let go now
	}
}

// fail keeps why there is no session, for those who ask.
func (v *vm) fail(err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	e := &Error{Code: Unreachable, VM: v.name, Err: err}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		e.Detail = fmt.Sprintf("VM %s: nobody listens on its monitor socket %s", v.name, v.path)
		e.Next = "is QEMU running? start the machine"
	case errors.Is(err, qmp.ErrHeld):
		e.Detail = fmt.Sprintf("VM %s: no greeting on %s: another client holds this monitor", v.name, v.path)
		e.Next = "let the other client go, or give QEMU a second -qmp socket for trayd"
		if v.process.stopped() {
			e.Detail = fmt.Sprintf("VM %s: QEMU (pid %d) is stopped by a signal and doesn't answer", v.name, v.process.PID)
			e.Next = fmt.Sprintf("kill -CONT %d", v.process.PID)
		}
	case errors.Is(err, fs.ErrPermission):
		e.Detail = fmt.Sprintf("VM %s: no permission to connect to %s", v.name, v.path)
		e.Next = "let the user that trayd runs as write to the socket"
	default:
		e.Detail = fmt.Sprintf("VM %s: the monitor can't be used: %v", v.name, err)
		e.Next = "see the journal of trayd; it goes on trying"
	}
	if v.why == nil || v.why.Detail != e.Detail {
		level := slog.LevelWarn
		if v.a.machines.doing(v.name) != "" || v.a.machines.own(v.name) && e.Code == Unreachable && !v.process.alive(v.a.boot) {
			level = slog.LevelDebug // it is being started, or has just ended
		}
		v.a.log.Log(v.a.ctx, level, "a monitor can't be had; trayd goes on trying", "vm", v.name, "error", e.Detail, "next", e.Next)
	}
	v.why = e
}

// closedByQEMU reports whether a connection ended by QEMU's doing, as it does when QEMU ends.
func closedByQEMU(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET)
}

// unreachable is the error for a request that needs QEMU and can't have it.
func (v *vm) unreachable() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.why != nil {
		return v.why
	}
	return &Error{Code: Unreachable, VM: v.name, Detail: "VM " + v.name + " is not attached", Next: "try again in a moment"}
}

// letGoIfEnded settles the records of a machine whose process is no more. The
// error says that the process is still there, out of reach, or that somebody still
// holds its last session.
func (v *vm) letGoIfEnded() error {
	v.mu.Lock()
	p, path := v.process, v.path
	if s := v.session; s != nil {
		v.mu.Unlock()
		if err := s.conn.Err(); err != nil {
			return fmt.Errorf("its session is about to be given back: %w", err)
		}
		return nil
	}
	known := p != Process{}
	if known && p.alive(v.a.boot) {
		v.mu.Unlock()
		if path != "" {
			path = " " + path
		}
		return fmt.Errorf("QEMU (pid %d) runs, but its monitor socket%s is gone", p.PID, path)
	}
	if !known {
		// Never seen: nothing of ours can be in it. A socket on which nobody
		// listens is no machine; one that is held is.
		v.ended = v.why != nil && (errors.Is(v.why.Err, fs.ErrNotExist) || errors.Is(v.why.Err, syscall.ECONNREFUSED))
		if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) && path != "" { // the last try ended otherwise
			v.ended = true
		}
		v.mu.Unlock()
		return nil
	}
	was := v.ended
	v.ended = true
	if !was {
		v.why = &Error{Code: Unreachable, VM: v.name, Detail: fmt.Sprintf("VM %s: its QEMU (pid %d) has ended", v.name, p.PID), Next: "start the machine"}
	}
	v.mu.Unlock()
	if was {
		return nil
	}
	for _, d := range v.allDrives() {
		d.machineEnded()
		d.dropRecord()
	}
	v.a.machines.ended(v.name, p, endSeen)
	v.a.retryReleases() // it may have held one
	v.a.publish(Event{Type: EventVMEnded, VM: v.name, Detail: "the machine's process ended"})
	return nil
}

// lookSoon has the machine's drives observed and settled, in the background. Looks
// that are asked for while one is about to begin are the same look.
func (v *vm) lookSoon() {
	s, release := v.current()
	if s == nil {
		if v.a.opts().Attach == OnDemand {
			v.kickNow() // connecting settles the drives
		}
		return
	}
	v.mu.Lock()
	looking := v.looking
	v.looking = true
	v.mu.Unlock()
	if looking {
		release()
		return
	}
	v.a.start(func() {
		defer release()
		s.look(v.a.ctx, func() {
			v.mu.Lock()
			v.looking = false
			v.mu.Unlock()
		})
	})
}
