package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/trayd/trayd/internal/look"
	"github.com/trayd/trayd/qmp"
)

// How a machine's monitor is asked for.
const (
	dialTimeout = 2 * time.Second       // a QEMU that can answer does so in milliseconds
	minBackoff  = 20 * time.Millisecond // a socket exists a moment before QEMU listens on it
	maxBackoff  = 10 * time.Second      // new sockets are noticed at once; this is for the rest
)

// vm is one machine: a monitor socket, and the QEMU behind it while there is one.
type vm struct {
	a     *Agent
	name  string
	tried chan struct{} // closed when attaching has been tried once
	once  sync.Once     // closes tried
	kick  chan struct{} // wakes the supervisor
	gate  chan struct{} // holds a token while somebody connects
	looks look.Shared[VMStatus]

	mu       sync.Mutex // guards below
	path     string
	launched bool     // the supervisor runs
	unwanted bool     // its socket matches no glob of the configuration any more
	gone     bool     // forgotten by the agent; another vm may bear the name
	session  *session // nil: not connected
	process  Process  // the QEMU last seen, or that the records speak of
	ended    bool     // that process has ended and nobody listens
	why      *Error   // why there is no session
	drives   map[string]*drive
	looking  bool // a look is under way or about to be
	// left are the nodes that can't be deleted yet, and the drives they were in.
	left map[string]string
}

func newVM(a *Agent, name string) *vm {
	return &vm{
		a: a, name: name,
		tried: make(chan struct{}), kick: make(chan struct{}, 1), gate: make(chan struct{}, 1),
		drives: make(map[string]*drive),
	}
}

func (v *vm) socket() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.path
}

// hidden reports whether the machine is no longer one that people should see.
func (v *vm) hidden() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.ended || v.path == "" && v.process == Process{}
}

// drive returns the drive of that name, made if needed.
func (v *vm) drive(name string) *drive {
	v.mu.Lock()
	defer v.mu.Unlock()
	d := v.drives[name]
	if d == nil {
		d = newDrive(v, name)
		v.drives[name] = d
	}
	return d
}

// allDrives are the machine's drives, by name.
func (v *vm) allDrives() []*drive {
	v.mu.Lock()
	defer v.mu.Unlock()
	drives := make([]*drive, 0, len(v.drives))
	for _, d := range v.drives {
		drives = append(drives, d)
	}
	slices.SortFunc(drives, func(a, b *drive) int {
		if a.name < b.name {
			return -1
		}
		return 1
	})
	return drives
}

// launch starts the supervisor on a socket; false when it runs already.
func (v *vm) launch(path string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.gone {
		v.a.scanSoon() // it was forgotten as the socket came
		return false
	}
	v.unwanted = false
	if v.path != path {
		v.path = path
		v.kickNow()
	}
	if v.launched {
		return false
	}
	v.launched = true
	v.a.start(func() { v.supervise(v.a.ctx) })
	return true
}

// withoutSocket is told of a machine that no socket belongs to (any more); matches says
// whether one would, if it were there.
func (v *vm) withoutSocket(matches bool) {
	v.mu.Lock()
	v.unwanted = v.path != "" && !matches
	launched := v.launched
	v.mu.Unlock()
	if launched {
		v.kickNow()
		return
	}
	if err := v.letGoIfEnded(); err != nil {
		v.fail(err)
	}
	v.a.forget(v)
}

// dismissed ends the supervisor of a machine that the configuration no longer names.
// What trayd has in it stays in, and in the records.
func (v *vm) dismissed() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.unwanted {
		return false
	}
	v.launched, v.path = false, ""
	v.why = &Error{Code: Unreachable, VM: v.name, Detail: "VM " + v.name + ": its socket matches none of monitors any more",
		Next: "add it to monitors in trayd.toml, so that its disc is looked after"}
	return true
}

// looked reports whether the machine's supervisor runs, which sees its end.
func (v *vm) looked() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.launched
}

// hasEnded reports whether the machine's process is known to have ended.
func (v *vm) hasEnded() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.ended && v.session == nil
}

func (v *vm) kickNow() {
	select {
	case v.kick <- struct{}{}:
	default:
	}
}

// supervise attaches to the machine, again and again, until it has ended and its
// socket is gone.
func (v *vm) supervise(ctx context.Context) {
	defer v.once.Do(func() { close(v.tried) })
	backoff := minBackoff
	defer func() { v.a.forget(v) }()
	for ctx.Err() == nil && !v.dismissed() {
		s, release, err := v.connect(ctx)
		if err == nil {
			v.once.Do(func() { close(v.tried) })
			backoff = minBackoff
			v.stay(ctx, s, release)
			continue
		}
		ended := v.letGoIfEnded() == nil
		v.once.Do(func() { close(v.tried) }) // what it had is let go by now
		if ended && !v.hasSocket() {
			return
		}
		pause := backoff
		if o := v.a.opts(); o.Attach == OnDemand && errors.Is(err, qmp.ErrHeld) {
			pause = o.Look // somebody else is at the monitor, as is meant
		}
		backoff = min(2*backoff, maxBackoff)
		if v.sleep(ctx, pause) {
			backoff = minBackoff // a new socket exists a moment before QEMU listens on it
		}
	}
}

// stay keeps a persistent session until it ends; an on-demand one is given back
// at once, and the next look waited for. The way may change by Reload, which kicks.
func (v *vm) stay(ctx context.Context, s *session, release func()) {
	ended := s.conn.Done()
	for v.persistent() {
		select {
		case <-ctx.Done():
			release()
			return
		case <-ended:
			// The guest's power-off is told right before the end: without it the machine would
			// have crashed.
			<-s.followed
			s.lost() // before anybody connects anew
			release()
			return
		case <-v.kick:
			v.mu.Lock()
			unwanted := v.unwanted
			v.mu.Unlock()
			if unwanted {
				release()
				return
			}
		}
	}
	release()
	// Nobody is connected who would see the machine's end, and its volumes are to be off
	// within a second of it.
	gone := make(chan struct{})
	if f := s.process.watch(v.a.boot); f != nil {
		defer f.Close()
		v.a.start(func() {
			if awaitEnd(f) == nil {
				close(gone)
			}
		})
	}
	select {
	case <-ctx.Done():
	case <-v.kick:
	case <-gone:
	}
}

// persistent reports whether the machine's monitor is held. That of a machine of trayd's own
// is nobody else's, and says what the guest does.
func (v *vm) persistent() bool {
	return v.a.opts().Attach != OnDemand || v.a.machines.own(v.name)
}

// sleep waits, and reports whether it was kicked.
func (v *vm) sleep(ctx context.Context, d time.Duration) (kicked bool) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	case <-v.kick:
		kicked = true
	}
	return kicked
}

// hasSocket reports whether the socket is still there; without it the supervisor
// ends, and the watcher starts another when the socket comes back.
func (v *vm) hasSocket() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if st, err := os.Lstat(v.path); err == nil && st.Mode()&os.ModeSocket != 0 {
		return true
	}
	v.launched = false
	return false
}

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
	v.a.machines.attached(v)
	if first || v.a.opts().Attach == Persistent {
		v.a.publish(Event{Type: EventVMAttached, VM: v.name, Detail: "QEMU " + s.conn.Version().String()})
	}
	return s, sync.OnceFunc(func() { v.leave(s) }), nil
}

// leave gives a hold back; the last one ends the session.
func (v *vm) leave(s *session) {
	v.mu.Lock()
	s.holds--
	last := s.holds == 0
	if last && v.session == s {
		v.session = nil
	}
	v.mu.Unlock()
	if !last {
		return
	}
	cause := s.conn.Err()
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
		return fmt.Errorf("QEMU (pid %d) runs, but its monitor socket %s is gone", p.PID, path)
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
