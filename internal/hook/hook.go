package hook

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/trayd/trayd/internal/wire"
)

// Options are the settings of hooks.
type Options struct {
	Dir     string        // "" for no hooks
	Timeout time.Duration // for one run; then SIGTERM to its process group, and SIGKILL after killDelay
}

// queueLimit is how many events one executable may be behind.
const queueLimit = 256

// The results of Counts.
const (
	Done     = "done"
	Failed   = "failed"  // another exit code than 0, or it couldn't be run
	TimedOut = "timeout" // ended by trayd
	Dropped  = "dropped" // the oldest of too many that waited
)

// Hooks run executables. Its methods are safe for concurrent use.
type Hooks struct {
	log    *slog.Logger
	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup // a goroutine for each queue that isn't empty

	mu      sync.Mutex // guards below
	options Options
	queues  map[string]*queue // by path; only those with events
	said    map[string]string // why a file, or the folder, was refused when it was last said
	counts  map[string]uint64
	closed  bool
}

// queue is what one executable has still to handle.
type queue struct {
	events  []wire.Event
	dropped int // since the last one that was handled
}

// New returns hooks that run until Close.
func New(o Options, log *slog.Logger) *Hooks {
	h := &Hooks{log: log, options: o, queues: make(map[string]*queue), said: make(map[string]string), counts: make(map[string]uint64)}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	return h
}

// Configure takes new settings for the events that come.
func (h *Hooks) Configure(o Options) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.options = o
}

// Close ends the hooks that run, and waits for them.
func (h *Hooks) Close() {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.cancel()
	h.work.Wait()
}

// Counts is how many runs ended how, and how many events were dropped.
func (h *Hooks) Counts() map[string]uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.counts)
}

// Deliver has the event handled by what the folder holds now. It waits for the folder's file
// system and for nothing else.
func (h *Hooks) Deliver(e wire.Event) {
	h.mu.Lock()
	o := h.options
	h.mu.Unlock()
	if o.Dir == "" {
		return
	}
	paths, refused, err := find(o.Dir)
	h.tell(o.Dir, refused, err)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return
	}
	for _, path := range paths {
		h.push(path, e)
	}
}

// push puts an event into a queue, and starts to work on it. mu is held.
func (h *Hooks) push(path string, e wire.Event) {
	q := h.queues[path]
	if q == nil {
		q = &queue{}
		h.queues[path] = q
		h.work.Go(func() { h.handle(path, q) })
	}
	if len(q.events) == queueLimit {
		q.events = q.events[1:]
		h.counts[Dropped]++
		if q.dropped++; q.dropped == 1 {
			h.log.Warn("a hook is too slow: the oldest events that wait for it are dropped", "hook", path, "waiting", queueLimit)
		}
	}
	q.events = append(q.events, e)
}

// handle works on a queue until it is empty.
func (h *Hooks) handle(path string, q *queue) {
	for {
		h.mu.Lock()
		if len(q.events) == 0 || h.closed {
			delete(h.queues, path)
			h.mu.Unlock()
			return
		}
		e, limit := q.events[0], h.options.Timeout
		q.events = q.events[1:]
		dropped := q.dropped
		q.dropped = 0
		h.mu.Unlock()
		if dropped > 0 {
			h.log.Warn("events were dropped, since a hook was too slow", "hook", path, "dropped", dropped, "next", e.ID)
		}
		result := h.run(path, e, limit)
		h.mu.Lock()
		h.counts[result]++
		h.mu.Unlock()
	}
}

// run runs an executable, unless it has become one that isn't run.
func (h *Hooks) run(path string, e wire.Event, limit time.Duration) string {
	began := time.Now()
	out, err := execute(h.ctx, path, e, limit)
	log := h.log.With("hook", path, "event", e.Type, "id", e.ID, "took", time.Since(began).Round(time.Millisecond))
	if out != "" {
		log = log.With("said", out)
	}
	switch {
	case err == nil && out == "":
		log.Debug("a hook has run")
	case err == nil:
		log.Info("a hook has run")
	case h.ctx.Err() != nil:
		log.Info("a hook was ended, since trayd stops")
		return TimedOut
	case err == errTimeout:
		log.Warn("a hook was ended, since it took too long", "timeout", limit)
		return TimedOut
	default:
		log.Warn("a hook failed", "error", err)
		return Failed
	}
	return Done
}

// tell says why files, or the whole folder, aren't run; once, until that changes.
func (h *Hooks) tell(dir string, refused map[string]string, err error) {
	now := maps.Clone(refused)
	if now == nil {
		now = make(map[string]string)
	}
	if err != nil {
		now[dir] = err.Error()
	}
	h.mu.Lock()
	before := h.said
	h.said = now
	h.mu.Unlock()
	for path, why := range now {
		if before[path] != why {
			h.log.Warn("a hook is refused", "hook", path, "why", why)
		}
	}
}
