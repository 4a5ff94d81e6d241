package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/integration/peer"
	"github.com/trayd/trayd/integration/raw"
	"github.com/trayd/trayd/internal/wire"
	"github.com/trayd/trayd/state"
)

// journal compares a journal append with a bare append and fdatasync of as many bytes.
func (b *bench) journal(context.Context) error {
	fmt.Println("journal append ...")
	j, err := state.Open(filepath.Join(b.dir, "bench.journal"), nil)
	if err != nil {
		return err
	}
	defer j.Close()
	f, err := os.Create(filepath.Join(b.dir, "bare.log"))
	if err != nil {
		return err
	}
	defer f.Close()
	value := string(raw.Record())
	ours, bare, err := interleave(5*b.rounds,
		func(int) error { return j.Put("drive/vm/cd0", value) },
		func(int) error {
			if _, err := f.Write(raw.Record()); err != nil {
				return err
			}
			return unix.Fdatasync(int(f.Fd()))
		})
	if err != nil {
		return err
	}
	b.add("journal append, 600 bytes", spread(ours), "bare append + fdatasync "+spread(bare), ratio(ours, bare), "at most 1.3x")
	return nil
}

// change compares a change over a warm API connection with the raw commands and two
// durable appends. Each has a machine of its own, alike.
func (b *bench) change(context.Context) error {
	fmt.Println("change over a warm API connection ...")
	dir := filepath.Join(b.dir, "change")
	if err := b.machines(dir, "ours", 1); err != nil {
		return err
	}
	other := filepath.Join(b.dir, "floor")
	if err := b.machines(other, "raw", 1); err != nil {
		return err
	}
	d, err := b.startTrayd(dir)
	if err != nil {
		return err
	}
	defer d.Stop()
	floor, err := raw.Dial(filepath.Join(other, "run/raw0.qmp"), filepath.Join(b.dir, "raw.log"))
	if err != nil {
		return err
	}
	for i := range 5 { // warm both
		if err := d.change("ours0", b.discs[i%2]); err != nil {
			return err
		}
		if err := floor.Change("cd0", b.discs[i%2], fmt.Sprintf("warm-%d", i)); err != nil {
			return err
		}
	}
	ours, bare, err := interleave(b.rounds,
		func(i int) error { return d.change("ours0", b.discs[(i+1)%2]) },
		func(i int) error { return floor.Change("cd0", b.discs[(i+1)%2], fmt.Sprintf("trayd-bench-raw%06d", i)) })
	if err != nil {
		return err
	}
	b.add("change, warm API connection", spread(ours), "raw commands, 2 fdatasyncs "+spread(bare), ratio(ours, bare), "at most 1.5x")
	return nil
}

// command compares `trayctl change` as a process with `virsh change-media`.
func (b *bench) command(ctx context.Context) error {
	fmt.Println("the command as a whole process ...")
	dir := filepath.Join(b.dir, "command")
	if err := b.machines(dir, "ours", 1); err != nil {
		return err
	}
	d, err := b.startTrayd(dir)
	if err != nil {
		return err
	}
	defer d.Stop()
	run := func(name string, args ...string) error {
		if out, err := exec.Command(filepath.Join(b.bin, name), args...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", name, err, out)
		}
		return nil
	}
	trayctl := func(i int) error { return run("trayctl", "--socket", d.Socket(), "change", "ours0", b.discs[i%2]) }
	bare := func(i int) error { return run("bare", d.Socket(), "ours0", b.discs[i%2]) }
	if err := trayctl(1); err != nil {
		return err
	}
	if !b.libvirt {
		ours, _, err := interleave(b.rounds/4, trayctl, func(int) error { return nil })
		if err == nil {
			b.add("trayctl change, whole process", spread(ours), "virsh not measured", "-", "at most a fifth of virsh")
		}
		return err
	}
	v := peer.NewLibvirt(filepath.Join(b.dir, "libvirt"))
	defer v.Close()
	if err := v.Boot(ctx, "bench"); err != nil {
		return fmt.Errorf("%w; without libvirt: -libvirt=false", err)
	}
	change := func(i int) error { return v.Command()(ctx, wire.Replace, "bench", b.discs[i%2]) }
	for i := range 2 {
		if err := change(i); err != nil {
			return err
		}
	}
	ours, virsh, err := interleave(b.rounds/4, trayctl, change)
	if err != nil {
		return err
	}
	b.add("trayctl change, whole process", spread(ours), "virsh change-media "+spread(virsh), ratio(ours, virsh), "at most 0.20x")
	floor, virsh, err := interleave(b.rounds/4, bare, change)
	if err != nil {
		return err
	}
	b.add("a bare Go client doing the same", spread(floor), "virsh change-media "+spread(virsh), ratio(floor, virsh), "reported")
	return nil
}

// The fleets of the figures.
const (
	many    = 50
	crowd   = 100
	rounds  = 10
	idleFor = 20 * time.Second
)

// fleet measures many machines: changed at once, started on, and left alone.
func (b *bench) fleet(ctx context.Context) error {
	fmt.Printf("%d machines at once ...\n", many)
	dir := filepath.Join(b.dir, "fleet")
	if err := b.machines(dir, "vm", many); err != nil {
		return err
	}
	other := filepath.Join(b.dir, "bare")
	if err := b.machines(other, "raw", many); err != nil {
		return err
	}
	var started []time.Duration
	var d *daemon
	for range 5 { // the first has to make its state file, too
		var err error
		if d, err = b.startTrayd(dir); err != nil {
			return err
		}
		started = append(started, d.Ready)
		if len(started) < 5 {
			d.Stop()
		}
	}
	defer d.Stop()
	time.Sleep(3 * time.Second) // let it ask the QEMUs for their features, which the figure leaves out
	floors := make([]*raw.Conn, many)
	for i := range floors {
		var err error
		if floors[i], err = raw.Dial(filepath.Join(other, fmt.Sprintf("run/raw%d.qmp", i)), ""); err != nil {
			return err
		}
	}
	ours, bare, err := interleave(rounds+1,
		func(round int) error {
			return peer.Together(many, func(i int) error { return d.change(fmt.Sprintf("vm%d", i), b.discs[round%2]) })
		},
		func(round int) error {
			return peer.Together(many, func(i int) error {
				return floors[i].Change("cd0", b.discs[round%2], fmt.Sprintf("trayd-bench-raw%06d", round))
			})
		})
	if err != nil {
		return err
	}
	b.add(fmt.Sprintf("%d machines changed at once", many), spread(ours), "raw commands at once "+spread(bare), ratio(ours, bare), "at most 1.5x")
	slices.Sort(started)
	b.add(fmt.Sprintf("start to READY, %d machines attached", many), spread(started), "-", "-", "at most 100 ms")
	d.Stop() // it holds the machines' monitors
	return b.idle(ctx, dir)
}
