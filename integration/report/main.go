// Command report reads what `go test -json` wrote, prints what failed with its output
// and one line a package, and ends with the counts and the version of QEMU that was under
// test. A failed test, a package that doesn't build, and a skipped test each make it fail:
// a skip that nobody sees would hide a missing tool. So do two versions of QEMU in one run.
//
// With -table it reads several and prints a line of each.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"
)

// event is what `go doc test2json` describes.
type event struct {
	Time                          time.Time
	Action, Package, Test, Output string
	ImportPath                    string // of a build's output
	Elapsed                       float64
}

func main() {
	table := flag.Bool("table", false, "a line of each file, and nothing else")
	flag.Parse()
	if flag.NArg() == 0 || flag.NArg() > 1 && !*table {
		fmt.Fprintln(os.Stderr, "usage: report FILE | report -table FILE...")
		os.Exit(2)
	}
	all := run
	if *table {
		all = summaries
	}
	if err := all(os.Stdout, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(out io.Writer, files []string) error {
	r, err := read(out, files[0])
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%d passed, %d failed, %d skipped, in %s, on QEMU %s\n", r.passed, r.failed, r.skipped, r.took(), r.qemu())
	return r.verdict()
}

func summaries(out io.Writer, files []string) error {
	w := tabwriter.NewWriter(out, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "TESTS\tQEMU\tPASSED\tFAILED\tSKIPPED\tTIME")
	var bad error
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		r, err := read(io.Discard, file)
		if err != nil {
			fmt.Fprintf(w, "%s\tdidn't run\t\t\t\t\n", name)
			bad = errors.Join(bad, err)
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\t%s\n", name, r.qemu(), r.passed, r.failed+r.broken, r.skipped, r.took())
		if err := r.verdict(); err != nil {
			bad = errors.Join(bad, fmt.Errorf("%s: %w", name, err))
		}
	}
	return errors.Join(w.Flush(), bad)
}

func read(out io.Writer, file string) (*report, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r := &report{out: out, output: make(map[string]*strings.Builder)}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) == nil {
			r.take(e)
		} else {
			fmt.Fprintln(out, lines.Text())
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%s can't be read to its end: %w", file, err)
	}
	return r, nil
}

type report struct {
	out                             io.Writer
	output                          map[string]*strings.Builder // of a test, until it has ended
	passed, failed, skipped, broken int
	begin, end                      time.Time
	versions                        []string // of QEMU, as tests have said
}

func (r *report) verdict() error {
	switch {
	case r.failed+r.skipped+r.broken > 0:
		return errors.New("not everything has passed")
	case r.passed == 0:
		return errors.New("no test has run")
	case len(r.versions) > 1:
		return errors.New("more than one QEMU was under test")
	}
	return nil
}

func (r *report) took() time.Duration { return r.end.Sub(r.begin).Round(time.Second) }

func (r *report) qemu() string {
	if len(r.versions) == 0 {
		return "-"
	}
	return strings.Join(r.versions, " and ")
}

// underTest stands before the version in the words of a test (internal/qemutest).
const underTest = "QEMU under test: "

func (r *report) take(e event) {
	if r.begin.IsZero() {
		r.begin = e.Time
	}
	if !e.Time.IsZero() {
		r.end = e.Time
	}
	key := e.Package + " " + e.Test
	switch e.Action {
	case "output", "build-output":
		if e.Action == "build-output" {
			key = e.ImportPath + " "
		}
		if _, version, ok := strings.Cut(e.Output, underTest); ok {
			r.saw(strings.TrimSpace(version))
		}
		if r.output[key] == nil {
			r.output[key] = &strings.Builder{}
		}
		r.output[key].WriteString(e.Output)
	case "pass":
		if e.Test != "" {
			r.passed++
		} else {
			fmt.Fprintf(r.out, "ok    %-55s %.1fs\n", e.Package, e.Elapsed)
		}
		delete(r.output, key)
	case "skip":
		if e.Test != "" {
			r.skipped++
			r.show("SKIP", key)
		}
	case "fail", "build-fail":
		if e.Action == "build-fail" {
			key = e.ImportPath + " "
		}
		if e.Test != "" {
			r.failed++
		} else {
			r.broken++
		}
		r.show("FAIL", key)
	}
}

func (r *report) saw(version string) {
	for _, v := range r.versions {
		if v == version {
			return
		}
	}
	r.versions = append(r.versions, version)
}

func (r *report) show(what, key string) {
	fmt.Fprintf(r.out, "%s  %s\n", what, strings.TrimSpace(key))
	if o := r.output[key]; o != nil {
		fmt.Fprint(r.out, o.String())
	}
	delete(r.output, key)
}
