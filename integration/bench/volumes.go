package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"github.com/trayd/trayd/internal/edge"
	"github.com/trayd/trayd/internal/qemutest"
)

// volumes measures what it takes to turn on a disc's volume, beside the same disc in a
// file and beside lvm2's own command. It needs device-mapper and the disks of an edge
// host; `make bench` runs it in one.
func (b *bench) volumes(ctx context.Context) (err error) {
	fmt.Println("discs on volumes ...")
	disk := edge.Disks[0]
	for _, args := range [][]string{{"vgcreate", "-q", "bench", disk}, {"lvcreate", "-q", "-y", "-Wn", "-L", "8m", "-n", "disc", "bench"}, {"lvcreate", "-q", "-y", "-Wn", "-L", "8m", "-n", "other", "bench"}} {
		if err := command(ctx, args...); err != nil {
			return err
		}
	}
	if err := copyTo("/dev/bench/disc", b.discs[0]); err != nil {
		return err
	}
	if err := command(ctx, "vgchange", "-q", "-an", "bench"); err != nil {
		return err
	}
	dir := filepath.Join(b.dir, "volumes")
	// It has to run: a stopped QEMU up to 8.2 keeps a descriptor that was taken back, and
	// with it the volume.
	idle, err := qemutest.WriteIdle(b.dir)
	if err == nil {
		err = b.machines(dir, "vm", 1, idle...)
	}
	if err != nil {
		return err
	}
	b.extra = fmt.Sprintf("[[volume]]\nname = \"disc\"\ntype = \"linear\"\nextents = [{ device = %q }]\n", edge.Disks[1])
	defer func() { b.extra = "" }()
	if err := copyTo(edge.Disks[1], b.discs[0]); err != nil {
		return err
	}
	d, err := b.startTrayd(dir)
	if err != nil {
		return err
	}
	defer d.Stop()
	took := map[string][]time.Duration{}
	for range b.rounds / 5 {
		for _, medium := range []string{b.discs[0], "lvm:bench/disc", "dm:disc"} {
			began := time.Now()
			if err := d.insert("vm0", medium); err != nil {
				return err
			}
			took[medium] = append(took[medium], time.Since(began))
			if err := d.eject("vm0"); err != nil {
				return err
			}
		}
		began := time.Now()
		if err := command(ctx, "lvchange", "-ay", "bench/other"); err != nil {
			return err
		}
		took["lvchange"] = append(took["lvchange"], time.Since(began))
		if err := command(ctx, "lvchange", "-an", "bench/other"); err != nil {
			return err
		}
	}
	for _, d := range took {
		slices.Sort(d)
	}
	file, lvm, dm, lvchange := took[b.discs[0]], took["lvm:bench/disc"], took["dm:disc"], took["lvchange"]
	// An emulated host is slower than the machine that it runs on, by a factor that the same
	// insert of a file tells, here and in the other figures of this run. So the targets, which
	// are of a machine where that takes 2 ms, are parts of it.
	of := func(ours time.Duration) string {
		return fmt.Sprintf("ours: %s, %.2f of a file's insert", short(ours), float64(ours)/float64(median(file)))
	}
	b.add("insert of a disc on a logical volume", spread(lvm), fmt.Sprintf("file %s, lvchange -ay %s", spread(file), spread(lvchange)),
		of(median(lvm)-median(lvchange)-median(file)), "2 ms of ours where a file takes 2 ms: 1.0")
	b.add("insert of a disc on device-mapper", spread(dm), "file "+spread(file), of(median(dm)-median(file)), "5 ms of ours where a file takes 2 ms: 2.5")
	return nil
}

func command(ctx context.Context, args ...string) error {
	if out, err := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w: %s", args, err, out)
	}
	return nil
}

// copyTo writes a disc to a device.
func copyTo(device, disc string) error {
	from, err := os.Open(disc)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(device, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = io.Copy(to, from)
	if err == nil {
		err = to.Sync()
	}
	if e := to.Close(); err == nil {
		err = e
	}
	return err
}
