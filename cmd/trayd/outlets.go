package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/trayd/trayd/internal/agent"
	"github.com/trayd/trayd/internal/audit"
	"github.com/trayd/trayd/internal/config"
	"github.com/trayd/trayd/internal/hook"
	"github.com/trayd/trayd/internal/library"
	"github.com/trayd/trayd/internal/metrics"
	"github.com/trayd/trayd/internal/webhook"
	"github.com/trayd/trayd/state"
)

// outlets are where trayd says what happens, beside the API: the audit log, hooks, webhooks,
// and metrics.
type outlets struct {
	audit    *audit.Log
	plain    *slog.Logger // the log without the audit log, which says there what is wrong with it
	hooks    *hook.Hooks
	webhooks *webhook.Sender
	metrics  *metrics.Metrics
	free     freeBytes
}

// openOutlets makes the outlets, and the daemon's log, which goes through the audit log.
func (d *daemon) openOutlets(handler slog.Handler) {
	o := &outlets{plain: slog.New(handler)}
	o.metrics = metrics.New(version, d.facts)
	o.audit = audit.New(func(c audit.Change) { o.metrics.Change(c.Verb, c.Outcome, c.Code, c.Took) })
	d.log = slog.New(o.audit.Handler(handler))
	o.hooks = hook.New(hook.Options{}, d.log)
	posts := webhook.Options{Version: version, Log: d.log}
	d.sockets.webhooks(&posts)
	o.webhooks = webhook.New(posts)
	d.outlets = o
	o.configure(d.config)
}

// configure takes the configuration over.
func (o *outlets) configure(c *config.Config) {
	o.audit.Configure(c.Log.AuditPath(os.Getenv("LOGS_DIRECTORY")), o.plain)
	o.hooks.Configure(hook.Options{Dir: c.Hooks.Dir, Timeout: c.Hooks.Timeout})
	var all []webhook.Hook
	for _, w := range c.Webhooks {
		all = append(all, webhook.Hook(w))
	}
	o.webhooks.Configure(all)
}

// deliver hands events on until ctx ends, and then ends the hooks and webhooks.
func (o *outlets) deliver(ctx context.Context, events *agent.Subscriber) {
	defer events.Close()
	for {
		e, err := events.Next(ctx)
		if err != nil {
			break
		}
		o.webhooks.Deliver(e)
		o.hooks.Deliver(e)
	}
	var both sync.WaitGroup
	both.Go(o.hooks.Close)
	both.Go(o.webhooks.Close)
	both.Wait()
}

// close ends what has not ended yet; the audit log is the last.
func (o *outlets) close() {
	o.hooks.Close()
	o.webhooks.Close()
	o.audit.Close()
}

// whyNotReady is nil once the machines were attached to, or had their time, as long as the
// state file takes changes.
func (d *daemon) whyNotReady(ready <-chan struct{}) error {
	select {
	case <-ready:
	default:
		return errors.New("it is attaching to the machines")
	}
	if err := d.journal.Err(); err != nil {
		return fmt.Errorf("the state file takes no more changes: %w", err)
	}
	return nil
}

// facts is the host for the metrics. It asks no QEMU.
func (d *daemon) facts() metrics.Facts {
	known, st := d.agent.Known(), d.journal.Stats()
	counts, subscribers := d.agent.EventCounts()
	f := metrics.Facts{
		Drives:   known.Drives,
		VMs:      map[string]int{"attached": known.Attached, "unreachable": known.Unreachable, "stopped": known.Stopped},
		Monitors: known.Attached,
		Images:   known.Library.Images, ImageBytes: make(map[string]int64), PoolFree: make(map[string]int64),
		Downloads: known.Library.Downloading, DownloadBytes: known.Library.Fetched,
		VolumesActive: known.VolumesActive, VolumesWaiting: known.VolumesWaiting,
		StateWrites: st.Syncs, StateRefused: st.Refused, StateFailed: d.journal.Err() != nil,
		StateBounds: state.DurationBounds(), StateWithin: st.SyncTime.Within[:], StateSum: st.SyncTime.Sum,
		Events: counts, Subscribers: subscribers, Hooks: d.outlets.hooks.Counts(),
	}
	f.Webhooks, f.WebhooksWaiting = d.outlets.webhooks.Counts()
	paths := make(map[string]string)
	for pool, use := range known.Library.Pools {
		f.ImageBytes[pool] = use.Bytes
		if use.Path != "" {
			paths[pool] = use.Path
		}
	}
	d.outlets.free.ask(paths, f.PoolFree)
	return f
}

// freeLimit is how long file systems may take to say what they have left: one on a server that
// is gone doesn't answer.
const freeLimit = 500 * time.Millisecond

// freeBytes asks file systems, each by one goroutine at most.
type freeBytes struct {
	mu    sync.Mutex               // guards asked
	asked map[string]chan struct{} // by path; closed when the question was answered
}

// ask fills in what has been answered in time.
func (b *freeBytes) ask(paths map[string]string, free map[string]int64) {
	type answer struct {
		pool string
		free int64
	}
	answers := make(chan answer, len(paths))
	asked := 0
	for pool, path := range paths {
		if b.begin(path, func() {
			n, err := library.Free(path)
			if err == nil {
				answers <- answer{pool, n}
			} else {
				answers <- answer{}
			}
		}) {
			asked++
		}
	}
	late := time.NewTimer(freeLimit)
	defer late.Stop()
	for range asked {
		select {
		case a := <-answers:
			if a.pool != "" {
				free[a.pool] = a.free
			}
		case <-late.C:
			return
		}
	}
}

// begin has f run, unless the last one for that path hasn't ended.
func (b *freeBytes) begin(path string, f func()) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if last := b.asked[path]; last != nil {
		select {
		case <-last:
		default:
			return false
		}
	}
	if b.asked == nil {
		b.asked = make(map[string]chan struct{})
	}
	done := make(chan struct{})
	b.asked[path] = done
	go func() {
		defer close(done)
		f()
	}()
	return true
}
