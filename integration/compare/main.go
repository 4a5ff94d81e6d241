// Command compare measures trayd beside what people use instead, in one run: libvirt, a
// shell script, and the floor: the commands alone. Then it does the same things
// wrong to each and counts what came of it. It writes docs/comparison.md, and fails when
// trayd loses a single run. `make compare` runs it; it needs root.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/trayd/trayd/integration/peer"
	"github.com/trayd/trayd/internal/qemutest"
)

func main() {
	c := &comparison{}
	flag.StringVar(&c.bin, "bin", "bin", "directory of trayd and trayctl")
	flag.StringVar(&c.units, "units", "systemd", "directory of what is installed beside them")
	flag.StringVar(&c.out, "o", "docs/comparison.md", "the file to write; - for stdout")
	flag.IntVar(&c.rounds, "rounds", 200, "rounds of the latencies; commands are run in a quarter of them")
	flag.IntVar(&c.runs, "faults", 100, "runs of each fault with trayd")
	flag.IntVar(&c.others, "others", 20, "runs of each fault with the others, at most as many as with trayd")
	flag.StringVar(&c.only, "only", "", "only figures or only faults, printed and not written")
	flag.Parse()
	if err := c.start(); err != nil {
		fmt.Fprintf(os.Stderr, "compare: %v\n", err)
		os.Exit(1)
	}
}

type comparison struct {
	bin, units, out string
	rounds          int
	runs, others    int
	only            string

	dir   string // sockets, state and discs of this run
	discs [2]string
	report
}

func (c *comparison) start() (err error) {
	if c.bin, err = filepath.Abs(c.bin); err != nil {
		return err
	}
	if c.dir, err = os.MkdirTemp("/var/tmp", "trayd-cmp-"); err != nil { // on a disk, as trayd's state is; sockets' paths are short
		return err
	}
	defer os.RemoveAll(c.dir)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := c.run(ctx); err != nil {
		return err
	}
	if err := c.write(); err != nil {
		return err
	}
	if lost := c.lost(); lost > 0 {
		return fmt.Errorf("trayd lost %d faults: see the table", lost)
	}
	return nil
}

func (c *comparison) run(ctx context.Context) error {
	if c.only != "" {
		c.out = "-"
	}
	c.Rounds, c.Runs, c.Others = c.rounds, c.runs, min(c.others, c.runs)
	for i, name := range []string{"FIRST", "SECOND"} {
		disc, err := qemutest.WriteDisc(c.dir, name)
		if err != nil {
			return err
		}
		c.discs[i] = disc
	}
	var err error
	if c.Machine, err = machineLine(ctx, c.bin); err != nil {
		return err
	}
	if c.only != "faults" {
		if err := c.figures(ctx); err != nil {
			return err
		}
	}
	if c.only != "figures" {
		return c.faults(ctx)
	}
	return nil
}

// contenders are new ones, whose places are beneath a directory of that name.
type contenders struct {
	trayd   *peer.Trayd
	libvirt *peer.Libvirt
	script  *peer.Script
	floor   *peer.Floor
}

func (c *comparison) contenders(dir string) contenders {
	in := func(name string) string { return filepath.Join(c.dir, dir, name) }
	return contenders{
		peer.NewTrayd(c.bin, in("t"), c.dir), peer.NewLibvirt(in("l")), peer.NewScript(in("s")), peer.NewFloor(in("f")),
	}
}

func (k contenders) all() []peer.Contender {
	return []peer.Contender{k.trayd, k.libvirt, k.script, k.floor}
}

func (k contenders) boot(ctx context.Context, names ...string) error {
	for _, one := range k.all() {
		if err := one.Boot(ctx, names...); err != nil {
			return fmt.Errorf("%s: %w", one.Name(), err)
		}
	}
	return nil
}

func (k contenders) close() {
	for _, one := range k.all() {
		one.Close()
	}
}
