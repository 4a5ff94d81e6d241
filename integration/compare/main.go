// Command compare measures trayd beside what people use instead, in one run: libvirt, a
// shell script, and the floor: the commands alone. Then it does the same things
// wrong to each and counts what came of it. It writes docs/comparison.md, and fails when
// trayd loses a single run. `make compare` runs it; it needs root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/trayd/trayd/integration/peer"
	"github.com/trayd/trayd/internal/qemutest"
)

func main() {
	c := &comparison{}
	flag.StringVar(&c.bin, "bin", "bin", "`directory` of trayd, trayctl and the floor")
	flag.StringVar(&c.edge, "edge", "bin/edge", "the `program` that runs a command in an edge host")
	flag.StringVar(&c.out, "o", "docs/comparison.md", "the `file` to write; - for stdout")
	flag.IntVar(&c.rounds, "rounds", 200, "rounds of the latencies; commands are run in a quarter of them")
	flag.IntVar(&c.runs, "faults", 100, "runs of each fault with trayd")
	flag.IntVar(&c.others, "others", 20, "runs of each fault with the others, at most as many as with trayd")
	flag.IntVar(&c.volumes, "volumes", 100, "runs of each fault with discs on logical volumes, at most as many as with files; each takes seconds in an emulated host")
	flag.StringVar(&c.only, "only", "", "only one `part`, printed and not written: "+strings.Join(parts, ", "))
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: compare [options]")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.Arg(0) == inside && flag.NArg() == 3 {
		if err := inEdgeHost(flag.Arg(1), flag.Arg(2)); err != nil {
			fmt.Fprintf(os.Stderr, "compare: %v\n", err)
			os.Exit(1)
		}
		return
	}
	if err := c.check(flag.Args()); err != nil {
		fmt.Fprintf(os.Stderr, "compare: %v\n", err)
		os.Exit(2)
	}
	if err := c.start(); err != nil {
		fmt.Fprintf(os.Stderr, "compare: %v\n", err)
		os.Exit(1)
	}
}

// The parts of a comparison, as -only names them.
var parts = []string{"figures", "faults", "volumes"}

// check refuses what can't be meant.
func (c *comparison) check(args []string) error {
	switch {
	case len(args) > 0:
		return fmt.Errorf("no argument is taken but options: %q", args[0])
	case c.only != "" && !slices.Contains(parts, c.only):
		return fmt.Errorf("no part is called %q: -only takes %s", c.only, strings.Join(parts, ", "))
	}
	for _, n := range []struct {
		name string
		n    int
	}{{"rounds", c.rounds}, {"faults", c.runs}, {"others", c.others}, {"volumes", c.volumes}} {
		if n.n < 1 {
			return fmt.Errorf("-%s %d: at least 1", n.name, n.n)
		}
	}
	return nil
}

func (c *comparison) does(part string) bool { return c.only == "" || c.only == part }

type comparison struct {
	bin, edge, out        string
	rounds                int
	runs, others, volumes int
	only                  string

	dir   string // sockets, state and discs of this run
	tree  string // what `make install` makes
	discs [2]string
	report
}

func (c *comparison) start() (err error) {
	for _, path := range []*string{&c.bin, &c.edge} {
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
	}
	if c.dir, err = os.MkdirTemp("/var/tmp", "trayd-cmp-"); err != nil { // on a disk, as trayd's state is; sockets' paths are short
		return err
	}
	defer os.RemoveAll(c.dir)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := c.prepare(ctx); err != nil {
		return err
	}
	err = errors.Join(c.run(ctx), c.write())
	if lost := c.lost(); lost > 0 {
		err = errors.Join(err, fmt.Errorf("trayd lost %d faults: see the tables", lost))
	}
	return err
}

func (c *comparison) prepare(ctx context.Context) error {
	if _, err := os.Stat(c.edge); err != nil && c.does("volumes") {
		return fmt.Errorf("%w (make bin/test)", err)
	}
	c.Rounds, c.Runs, c.Others, c.VolumeRuns = c.rounds, c.runs, min(c.others, c.runs), min(c.volumes, c.runs)
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
	c.tree, err = newTree(ctx, c.dir)
	return err
}

// run does the parts. What isn't whole is printed and not written; a part that fails takes
// nothing from the others.
func (c *comparison) run(ctx context.Context) error {
	if c.only != "" {
		c.out = "-"
	}
	var failed error
	for _, part := range []struct {
		name string
		do   func(context.Context) error
	}{{"figures", c.figures}, {"volumes", c.onVolumes}, {"faults", c.faults}} {
		if !c.does(part.name) {
			continue
		}
		if err := part.do(ctx); err != nil {
			c.out, failed = "-", errors.Join(failed, fmt.Errorf("%s: %w", part.name, err))
		}
		if err := ctx.Err(); err != nil { // which may have cut off this part, too
			c.out, failed = "-", errors.Join(failed, err)
			break
		}
	}
	return failed
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
	floor := peer.NewFloor(in("f"))
	floor.Program = filepath.Join(c.bin, "floor")
	return contenders{peer.NewTrayd(c.bin, in("t"), c.dir), peer.NewLibvirt(in("l")), peer.NewScript(in("s")), floor}
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
