package main

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/trayd/trayd/internal/agent"
	"github.com/trayd/trayd/internal/doctor"
	"github.com/trayd/trayd/internal/wire"
)

// healthy does what a request does before it asks QEMU: it takes the agent's, every
// machine's and every drive's lock, the event bus's, and the journal's. Each of them is
// held for microseconds, so one that isn't to be had means that the agent hangs. Disk
// and QEMU are left out: starting trayd anew doesn't make them answer.
func (d *daemon) healthy(context.Context) error {
	d.agent.Alive()
	d.journal.Stats()
	return nil
}

// statusPause is how long machines may come and go before the status line follows, so
// that a hundred that start together are counted once.
const statusPause = 500 * time.Millisecond

// report tells the service manager that trayd is ready, and then keeps the status line
// right until ctx ends.
func (d *daemon) report(ctx context.Context, ready <-chan struct{}) {
	select {
	case <-ready:
	case <-ctx.Done():
		return
	}
	if !d.notifier.Enabled() {
		return
	}
	d.tell(d.notifier.Ready(d.attached()))
	events := d.agent.Subscribe(0)
	defer events.Close()
	for {
		e, err := events.Next(ctx)
		if err != nil {
			return
		}
		switch e.Type {
		case agent.EventVMAttached, agent.EventVMLost, agent.EventVMEnded, wire.EventMissed:
		default:
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(statusPause):
		}
		events.Take(math.MaxInt) // counted together
		d.tell(d.notifier.Status(d.attached()))
	}
}

// attached says for the status line how many machines trayd is attached to.
func (d *daemon) attached() string {
	attached, all := d.agent.Attached()
	return fmt.Sprintf("attached to %d of %d machines", attached, all)
}

// tell logs that the service manager couldn't be told; trayd works without it.
func (d *daemon) tell(err error) {
	if err != nil {
		d.log.Warn("systemd", "error", err)
	}
}

// doctorOptions are what `trayctl doctor` has looked at.
func (d *daemon) doctorOptions() doctor.Options {
	return doctor.Options{
		Agent:  d.agent,
		Config: d.latest.Load,
		Certificate: func() time.Time {
			if d.certificate == nil {
				return time.Time{}
			}
			return d.certificate.ends()
		},
		Tokens: d.access.Tokens.List,
	}
}
