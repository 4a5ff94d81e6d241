package agent

import (
	"context"
	"errors"
	"os"
	"slices"
	"sync"
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
	// turning is held while the boot order of a machine of trayd's own is changed, command by
	// command, and until what has to come next has: its reset.
	turning sync.Mutex
	// learning holds a token while it is found out what a machine of trayd's own has done before.
	learning chan struct{}

	mu       sync.Mutex // guards below
	path     string
	launched bool     // the supervisor runs
	unwanted bool     // its socket matches no glob of the configuration any more
	gone     bool     // forgotten by the agent; another vm may bear the name
	session  *session // nil: not connected
	process  Process  // the QEMU last seen, or that the records speak of
	awaited  Process  // the QEMU whose end is waited for, since it has no socket any more
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
		tried: make(chan struct{}), kick: make(chan struct{}, 1), gate: make(chan struct{}, 1), learning: make(chan struct{}, 1),
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

// forgotten reports whether another vm may bear the name.
func (v *vm) forgotten() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.gone
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
		v.awaitEnd()
	}
	v.a.forget(v)
}

// awaitEnd has the end of a process noticed that has no socket any more: it may be on its way.
func (v *vm) awaitEnd() {
	v.mu.Lock()
	p := v.process
	begun := v.awaited == p
	v.awaited = p
	v.mu.Unlock()
	if !begun {
		v.a.startUnlessStopping(func() {
			p.await(v.a.ctx, v.a.boot)
			v.a.scanSoon()
		})
	}
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

// lookForEnd has the machine's end noticed now, if it has come.
func (v *vm) lookForEnd() {
	if v.looked() {
		v.kickNow()
	} else {
		_ = v.letGoIfEnded() // it hasn't yet
	}
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
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	gone := make(chan struct{})
	v.a.start(func() {
		if s.process.await(ctx, v.a.boot) {
			close(gone)
		}
	})
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
