package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/trayd/trayd/integration/peer"
	"github.com/trayd/trayd/internal/wire"
)

// The sizes of the fleet.
const (
	few  = 1
	many = 50
	lots = 100
)

// figures measures everything but the faults.
func (c *comparison) figures(ctx context.Context) error {
	k := c.contenders("figures")
	defer k.close()
	fmt.Println("one machine for each ...")
	if err := k.boot(ctx, names(0, few)...); err != nil {
		return err
	}
	ways := k.ways()
	if err := c.latencies(ctx, ways, "vm0"); err != nil {
		return err
	}
	if err := c.pipe(ctx, k.libvirt); err != nil {
		return err
	}
	if err := c.durable(ctx, k); err != nil {
		return err
	}
	if err := c.usages(ctx, k, few); err != nil {
		return err
	}
	fmt.Printf("%d machines for each ...\n", many)
	if err := k.boot(ctx, names(few, many-few)...); err != nil {
		return err
	}
	if err := c.fill(ctx, k, names(0, many)); err != nil {
		return err
	}
	if err := sleep(ctx, settling); err != nil {
		return err
	}
	if err := c.atOnce(ctx, ways, names(0, many)); err != nil {
		return err
	}
	if err := c.ready(ctx, k); err != nil {
		return err
	}
	if err := c.usages(ctx, k, many); err != nil {
		return err
	}
	// Those without a daemon have nothing to be looked at with more machines.
	k.script.Close()
	k.floor.Close()
	fmt.Printf("%d machines for each daemon ...\n", lots)
	for _, one := range k.daemons() {
		if err := one.Boot(ctx, names(many, lots-many)...); err != nil {
			return err
		}
	}
	if err := c.usages(ctx, k, lots); err != nil {
		return err
	}
	var err error
	c.Installed, err = installed(ctx, c.tree)
	return err
}

// settling is how long a daemon is left alone before it is measured: trayd asks QEMUs for
// their features after it has attached to them.
const settling = 5 * time.Second

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// daemons are those with a process that stays, and a status.
func (k contenders) daemons() []peer.Contender { return []peer.Contender{k.trayd, k.libvirt} }

// fill puts the first disc into all machines.
func (c *comparison) fill(ctx context.Context, k contenders, vms []string) error {
	for _, one := range k.all() {
		ask := one.Persistent()
		if ask == nil {
			ask = one.Command()
		}
		for _, vm := range vms {
			if err := ask(ctx, wire.Replace, vm, c.discs[0]); err != nil {
				return fmt.Errorf("%s, %s: %w", one.Name(), vm, err)
			}
		}
	}
	return nil
}

// ready measures from a daemon's start, after a kill -9, until it has said of every
// machine that it runs and which disc is in.
func (c *comparison) ready(ctx context.Context, k contenders) error {
	fmt.Printf("start to ready with %d running machines ...\n", many)
	const times = 7
	vms := names(0, many)
	for _, one := range k.daemons() {
		// Each has the same disc in, whatever happened before.
		if err := peer.Together(len(vms), func(i int) error { return one.Persistent()(ctx, wire.Replace, vms[i], c.discs[1]) }); err != nil {
			return err
		}
	}
	took := make(map[string]sample)
	for range times {
		for _, one := range k.daemons() {
			one.Kill()
			began := time.Now()
			if err := one.Start(ctx); err != nil {
				return err
			}
			if err := c.knows(ctx, one, vms); err != nil {
				return err
			}
			took[one.Name()] = append(took[one.Name()], time.Since(began))
		}
		began := time.Now()
		if err := k.floor.Reconnect(); err != nil {
			return err
		}
		took[floorAPI] = append(took[floorAPI], time.Since(began))
	}
	for _, name := range slices.Sorted(maps.Keys(took)) {
		fmt.Printf("  %s: %s\n", name, took[name])
	}
	c.Ready = took
	return nil
}

// knows waits until a daemon says what is so of all machines: they run, with the second
// disc in.
func (c *comparison) knows(ctx context.Context, one peer.Contender, vms []string) error {
	const readyLimit = time.Minute
	for end := time.Now().Add(readyLimit); ; time.Sleep(time.Millisecond) {
		says, err := one.Says(ctx)
		wrong := slices.IndexFunc(vms, func(vm string) bool {
			return says[vm] != peer.Status{Running: true, Disc: c.discs[1]}
		})
		if err == nil && wrong < 0 {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s does not know its machines: %w: %s: %+v", one.Name(), err, vms[max(0, wrong)], says[vms[max(0, wrong)]])
		}
	}
}

// usages looks at the daemons with n machines, several times in turns: started anew, with
// every disc changed twice, and left alone for a while.
func (c *comparison) usages(ctx context.Context, k contenders, n int) error {
	const times = 3
	daemons := k.daemons()
	looks := make([]usage, len(daemons))
	for i := range times {
		for j := range daemons {
			if err := c.used(ctx, daemons[(i+j)%len(daemons)], names(0, n)); err != nil {
				return err
			}
		}
		if err := sleep(ctx, settling); err != nil {
			return err
		}
		for j, one := range daemons {
			u, err := peer.UsageOf(one.PID())
			if err != nil {
				return err
			}
			looks[j].Name, looks[j].Machines, looks[j].All = one.Name(), n, append(looks[j].All, u)
		}
	}
	for _, u := range looks {
		fmt.Printf("  %s with %d machines: RSS %s, PSS %s, heap %s, %s threads, %s open files\n", u.Name, n, u.RSS(), u.PSS(), u.Heap(), u.Threads(), u.Files())
	}
	c.Usages = append(c.Usages, looks...)
	return nil
}

// used starts a daemon anew and has it change every disc twice.
func (c *comparison) used(ctx context.Context, one peer.Contender, vms []string) error {
	one.Kill()
	if err := one.Start(ctx); err != nil {
		return err
	}
	if err := c.serves(ctx, one, vms); err != nil {
		return err
	}
	for _, disc := range c.discs {
		for _, vm := range vms {
			if err := one.Persistent()(ctx, wire.Replace, vm, disc); err != nil {
				return fmt.Errorf("%s, %s: %w", one.Name(), vm, err)
			}
		}
	}
	return nil
}

// serves waits until a daemon that was started knows its machines.
func (c *comparison) serves(ctx context.Context, one peer.Contender, vms []string) error {
	for {
		says, err := one.Says(ctx)
		if err == nil && !slices.ContainsFunc(vms, func(vm string) bool { return !says[vm].Running || says[vm].Busy }) {
			return nil
		}
		if err := sleep(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
}
