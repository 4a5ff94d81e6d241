package main

import (
	"context"
	"fmt"
	"time"

	"github.com/trayd/trayd/integration/peer"
	"github.com/trayd/trayd/internal/wire"
)

// way is one way of asking one contender.
type way struct {
	name  string
	who   peer.Contender // whose machines it changes
	ask   peer.Ask
	whole bool // a command from its start to its end
	took  map[string]sample
}

func (k contenders) ways() []*way {
	ways := []*way{
		{name: traydAPI, who: k.trayd, ask: k.trayd.Persistent()},
		{name: libvirtAPI, who: k.libvirt, ask: k.libvirt.Persistent()},
		{name: floorAPI, who: k.floor, ask: k.floor.Persistent()},
		{name: durableFloor, who: k.floor, ask: k.floor.Durable()},
		{name: trayctl, who: k.trayd, ask: k.trayd.Command(), whole: true},
		{name: virsh, who: k.libvirt, ask: k.libvirt.Command(), whole: true},
		{name: script, who: k.script, ask: k.script.Command(), whole: true},
		{name: floorCommand, who: k.floor, ask: k.floor.Command(), whole: true},
	}
	for _, w := range ways {
		w.took = make(map[string]sample)
	}
	return ways
}

// The ways, as the table calls them.
const (
	traydAPI     = "trayd"
	libvirtAPI   = "libvirt from Python"
	floorAPI     = "the floor"
	durableFloor = "the floor with two durable writes"
	trayctl      = "trayctl"
	virsh        = "virsh change-media"
	script       = "shell script"
	floorCommand = "the floor, a program"
)

// commandRounds: commands take longer, and vary less for their length.
const commandRounds = 4

// latencies has each way insert, change and eject in turns, so that a moment in which the
// machine is slow hits all of them. The order changes with every round.
func (c *comparison) latencies(ctx context.Context, ways []*way, vm string) error {
	fmt.Printf("latency of insert, change, eject: %d rounds ...\n", c.rounds)
	const warm = 3
	for i := range c.rounds + warm {
		for j := range ways {
			w := ways[(i+j)%len(ways)]
			if w.whole && i%commandRounds != 0 && c.rounds > warm*commandRounds {
				continue
			}
			for _, step := range []struct{ verb, disc string }{
				{wire.Insert, c.discs[0]}, {wire.Replace, c.discs[1]}, {wire.Eject, ""},
			} {
				began := time.Now()
				if err := w.ask(ctx, step.verb, vm, step.disc); err != nil {
					return fmt.Errorf("%s, %s: %w", w.name, step.verb, err)
				}
				if i >= warm {
					w.took[step.verb] = append(w.took[step.verb], time.Since(began))
				}
			}
		}
	}
	for _, w := range ways {
		fmt.Printf("  %s: insert %s, change %s, eject %s\n", w.name, w.took[wire.Insert], w.took[wire.Replace], w.took[wire.Eject])
		c.Latencies = append(c.Latencies, latency{w.name, w.whole, w.took[wire.Insert], w.took[wire.Replace], w.took[wire.Eject]})
	}
	return nil
}

// pipe measures what the way to the Python program adds to libvirt's figures.
func (c *comparison) pipe(ctx context.Context, l *peer.Libvirt) error {
	for range c.rounds {
		began := time.Now()
		if err := l.Pipe(ctx); err != nil {
			return err
		}
		c.Pipe = append(c.Pipe, time.Since(began))
	}
	return nil
}

// atOnce has all machines' discs changed at once, by each way in turns.
func (c *comparison) atOnce(ctx context.Context, ways []*way, vms []string) error {
	fmt.Printf("%d machines changed at once ...\n", len(vms))
	const rounds, warm = 10, 1
	took := make([]sample, len(ways))
	// Two ways may have the same machines: neither asks for the disc that is in.
	changes := make(map[peer.Contender]int)
	for i := range rounds + warm {
		for j := range ways {
			at := (i + j) % len(ways)
			changes[ways[at].who]++
			disc := c.discs[changes[ways[at].who]%2]
			began := time.Now()
			if err := peer.Together(len(vms), func(i int) error {
				vm := vms[i]
				return ways[at].ask(ctx, wire.Replace, vm, disc)
			}); err != nil {
				return fmt.Errorf("%s, %d at once: %w", ways[at].name, len(vms), err)
			}
			if i >= warm {
				took[at] = append(took[at], time.Since(began))
			}
		}
	}
	for i, w := range ways {
		fmt.Printf("  %s: %s\n", w.name, took[i])
		c.AtOnce = append(c.AtOnce, atOnce{w.name, w.whole, took[i]})
	}
	return nil
}

// names are n names of machines, from the first on.
func names(first, n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf("vm%d", first+i)
	}
	return all
}
