package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/trayd/trayd/integration/fault"
	"github.com/trayd/trayd/integration/peer"
)

// guestWait is how long trayd waits for the guest here. It is ten seconds by default;
// libvirt's five seconds can't be changed.
const guestWait = 200 * time.Millisecond

// faults does every fault to those that people use. The floor is no program of anybody's.
func (c *comparison) faults(ctx context.Context) error {
	k := c.contenders("faults")
	k.trayd.Tray = fmt.Sprintf("wait = %q", guestWait)
	for _, one := range []struct {
		contender peer.Contender
		runs      int
	}{{k.trayd, c.Runs}, {k.libvirt, c.Others}, {k.script, c.Others}} {
		began := time.Now()
		if err := c.faultsOf(ctx, one.contender, one.runs); err != nil {
			return fmt.Errorf("%s: %w", one.contender.Name(), err)
		}
		fmt.Printf("  %s: %s\n", one.contender.Name(), time.Since(began).Round(time.Second))
	}
	return nil
}

func (c *comparison) faultsOf(ctx context.Context, one peer.Contender, runs int) error {
	fmt.Printf("faults, %s: %d runs of each ...\n", one.Name(), runs)
	discs := filepath.Join(c.dir, "discs-"+one.Name())
	if err := os.Mkdir(discs, 0o755); err != nil {
		return err
	}
	r, err := fault.New(ctx, one, discs)
	if err != nil {
		one.Close()
		return err
	}
	defer r.Close()
	defer one.Close()
	for _, f := range fault.All() {
		count, err := r.Run(ctx, f, runs)
		if err != nil {
			return err
		}
		fmt.Printf("  %s: disc %d, status %d, nothing left %d of %d; in the end %v; wrong %v\n", f.Name, count.Kept, count.True, count.Clean, count.Runs, count.Ended, count.Notes)
		c.Faults = append(c.Faults, faultRow{one.Name(), f, count})
	}
	return nil
}

// lost counts the faults of which trayd lost a run.
func (c *comparison) lost() (n int) {
	for _, f := range slices.Concat(c.Faults, c.Volumes) {
		if f.Contender == "trayd" && !f.Count.Good() {
			n++
		}
	}
	return n
}
