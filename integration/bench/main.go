// Command bench measures the project's figures side by side with what they are
// compared to: interleaved, in one run, as ratios of medians. The machines are noisy;
// the ratios are what counts. `make bench` runs it.
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
	"text/tabwriter"
	"time"

	"github.com/trayd/trayd/internal/qemutest"
)

func main() {
	b := &bench{}
	flag.StringVar(&b.bin, "bin", "bin", "directory of trayd and trayctl")
	flag.IntVar(&b.rounds, "rounds", 200, "rounds of each interleaved measurement")
	flag.StringVar(&b.only, "only", "", "only this `measurement`: "+strings.Join(b.names(), ", ")+"; volumes needs an edge host")
	flag.IntVar(&b.most, "most", 3000, "machines of the largest simulation of scale, 100 or more")
	flag.StringVar(&b.out, "o", "", "with -only scale: write docs/scale.md's text to this `file`")
	flag.BoolVar(&b.libvirt, "libvirt", true, "measure virsh too (its packages must be installed)")
	flag.Parse()
	if flag.Arg(0) == "part" { // of a measurement, in a process of its own
		if err := part(flag.Arg(1), flag.Arg(2), flag.Arg(3)); err != nil {
			fmt.Fprintf(os.Stderr, "bench: %v\n", err)
			os.Exit(1)
		}
		return
	}
	if err := b.check(flag.Args()); err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := b.run(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

type bench struct {
	bin     string
	dir     string
	rounds  int
	only    string
	most    int
	out     string
	libvirt bool
	discs   [2]string
	extra   string // more of trayd's configuration
	rows    []row
	ends    []func() // in reverse, at the end
}

// check refuses what can't be meant.
func (b *bench) check(args []string) error {
	switch {
	case len(args) > 0:
		return fmt.Errorf("no argument is taken but options: %q", args[0])
	case b.only != "" && !slices.Contains(b.names(), b.only):
		return fmt.Errorf("no measurement is called %q: -only takes %s", b.only, strings.Join(b.names(), ", "))
	case b.rounds < fewestRounds:
		return fmt.Errorf("-rounds %d: at least %d, since some take a fifth of them", b.rounds, fewestRounds)
	case b.most < scaleSizes[0]:
		return fmt.Errorf("-most %d: at least %d machines", b.most, scaleSizes[0])
	case b.out != "" && b.only != "scale":
		return errors.New("-o is for -only scale")
	}
	return nil
}

// fewestRounds leaves each measurement one round: volumes takes a fifth of them.
const fewestRounds = 5

// measurement is one of those that -only names.
type measurement struct {
	name    string
	measure func(context.Context) error
}

func (b *bench) measurements() []measurement {
	return []measurement{
		{"journal", b.journal}, {"change", b.change}, {"command", b.command}, {"fleet", b.fleet}, {"ingest", b.ingest}, {"machines", b.own}, {"sizes", b.sizes}, {"iso", b.iso}, {"reads", b.reads}, {"page", b.page}, {"events", b.events}, {"scale", b.scale}, {"volumes", b.volumes},
	}
}

func (b *bench) names() []string {
	var names []string
	for _, m := range b.measurements() {
		names = append(names, m.name)
	}
	return names
}

// row is one line of the table.
type row struct{ what, ours, beside, ratio, target string }

func (b *bench) add(what, ours, beside, ratio, target string) {
	b.rows = append(b.rows, row{what, ours, beside, ratio, target})
	fmt.Printf("  %s: %s (beside: %s) %s\n", what, ours, beside, ratio)
}

func (b *bench) atEnd(f func()) { b.ends = append(b.ends, f) }

func (b *bench) run(ctx context.Context) (err error) {
	if b.dir, err = os.MkdirTemp("", "trayd-bench-"); err != nil {
		return err
	}
	b.atEnd(func() { os.RemoveAll(b.dir) })
	defer b.endFrom(0)
	for i, name := range []string{"BENCH_A", "BENCH_B"} {
		if b.discs[i], err = qemutest.WriteDisc(b.dir, name); err != nil {
			return err
		}
	}
	for _, m := range b.measurements() {
		if b.only != m.name && (b.only != "" || m.name == "volumes") {
			continue
		}
		if err := m.measure(ctx); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	b.print()
	return nil
}

func (b *bench) print() {
	fmt.Println()
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "WHAT\tTRAYD\tBESIDE\tRATIO\tTARGET")
	for _, r := range b.rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", r.what, r.ours, r.beside, r.ratio, r.target)
	}
	w.Flush()
}

func (b *bench) sizes(context.Context) error {
	for _, name := range []string{"trayd", "trayctl"} {
		st, err := os.Stat(filepath.Join(b.bin, name))
		if err != nil {
			return err
		}
		b.add("size of "+name, fmt.Sprintf("%.1f MB", float64(st.Size())/1e6), "-", "-", "at most 15 MB")
	}
	return nil
}

// interleave runs two things in turns, n times each, and returns their durations,
// sorted. Each is told its round.
func interleave(n int, ours, beside func(int) error) (a, c []time.Duration, err error) {
	for i := range n {
		first, second := &a, &c
		f, g := ours, beside
		if i%2 == 1 { // nobody always goes second
			first, second, f, g = second, first, g, f
		}
		for _, run := range []struct {
			to *[]time.Duration
			f  func(int) error
		}{{first, f}, {second, g}} {
			began := time.Now()
			if err := run.f(i); err != nil {
				return nil, nil, err
			}
			*run.to = append(*run.to, time.Since(began))
		}
	}
	slices.Sort(a)
	slices.Sort(c)
	return a, c, nil
}

func median(d []time.Duration) time.Duration { return d[len(d)/2] }

func spread(d []time.Duration) string {
	return fmt.Sprintf("%s (p90 %s)", short(median(d)), short(d[len(d)*9/10]))
}

func short(d time.Duration) string { return d.Round(max(d/1000, 100*time.Nanosecond)).String() }

func ratio(a, b []time.Duration) string {
	return fmt.Sprintf("%.2fx", float64(median(a))/float64(median(b)))
}
