package main

import (
	"context"
	"fmt"
	"time"

	"github.com/trayd/trayd/integration/peer"
)

// idle adds machines up to the crowd, and looks at a trayd that nobody asks for
// anything.
func (b *bench) idle(ctx context.Context, dir string) error {
	fmt.Printf("%d machines, idle for %s ...\n", crowd, idleFor)
	if err := b.machines(dir, "more", crowd-many); err != nil {
		return err
	}
	d, err := b.startTrayd(dir)
	if err != nil {
		return err
	}
	defer d.Stop()
	select {
	case <-time.After(5 * time.Second): // let it ask the QEMUs for their features
	case <-ctx.Done():
		return ctx.Err()
	}
	before, after, err := d.rests(ctx)
	if err != nil {
		return err
	}
	b.add(fmt.Sprintf("resident memory, %d machines", crowd), fmt.Sprintf("%.1f MiB", after.Resident), "libvirtd with 50: 50 MiB (FACTS 8)", "-", "at most 16 MiB")
	share := (after.CPU - before.CPU).Seconds() / idleFor.Seconds() * 100
	b.add(fmt.Sprintf("idle CPU, %d machines", crowd), fmt.Sprintf("%.3f %%", share), "-", "-", "below 0.1 %")
	b.add(fmt.Sprintf("wake-ups, %d machines", crowd), fmt.Sprintf("%.1f/s", float64(after.Switches-before.Switches)/idleFor.Seconds()), "-", "-", "reported")
	return nil
}

// rests looks at a trayd that nobody asks for anything, before and after idleFor.
func (d *daemon) rests(ctx context.Context) (before, after peer.Usage, err error) {
	if before, err = peer.UsageOf(d.PID()); err != nil {
		return before, after, err
	}
	select {
	case <-time.After(idleFor):
	case <-ctx.Done():
		return before, after, ctx.Err()
	}
	after, err = peer.UsageOf(d.PID())
	return before, after, err
}
