package systemd

import (
	"context"
	"log/slog"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// Watch feeds the watchdog until ctx ends: twice in the manager's interval it calls
// healthy, and it tells the manager that the service lives only when that has come
// back with nil. healthy should take the locks and do the steps that a request needs,
// so that it hangs when they would. It gets a context that ends when the answer is too
// late to count, half of the time between two calls; one that doesn't return by then
// isn't called again until it has. The manager kills the service when it has heard
// nothing for the whole interval.
//
// Watch returns at once when there is no watchdog. A healthy that hangs outlives it.
func (n *Notifier) Watch(ctx context.Context, healthy func(context.Context) error, log *slog.Logger) {
	if n == nil || n.watchdog == 0 {
		return
	}
	every := n.watchdog / 2
	tick := time.NewTicker(every)
	defer tick.Stop()
	answer := make(chan error, 1) // of the check under way
	waiting := false              // a check of before hasn't answered
	for {
		if !waiting {
			go check(ctx, every/2, healthy, answer)
		}
		late := time.NewTimer(every / 2)
		select {
		case err := <-answer:
			late.Stop()
			waiting = false
			n.alive(err, log)
		case <-late.C:
			if !waiting {
				log.Error("the service doesn't answer its own health check; the watchdog will end it", "limit", every/2)
			}
			waiting = true
		case <-ctx.Done():
			late.Stop()
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func check(ctx context.Context, limit time.Duration, healthy func(context.Context) error, answer chan<- error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	answer <- healthy(ctx)
}

// alive tells the manager, unless err says that the service isn't.
func (n *Notifier) alive(err error, log *slog.Logger) {
	if err != nil {
		log.Error("the service is not healthy; the watchdog will end it", "error", err)
		return
	}
	if err := n.send(daemon.SdNotifyWatchdog); err != nil {
		log.Warn("the watchdog isn't fed", "error", err)
	}
}
