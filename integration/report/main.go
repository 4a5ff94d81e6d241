// Command report reads what `go test -json` wrote, prints what failed with its output
// and one line a package, and ends with the counts. A failed test, a package that
// doesn't build, and a skipped test each make it fail: a skip that nobody sees would
// hide a missing tool.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

// event is what `go doc test2json` describes.
type event struct {
	Action, Package, Test, Output string
	ImportPath                    string // of a build's output
	Elapsed                       float64
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: report FILE")
		os.Exit(2)
	}
	f, err := os.Open(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	defer f.Close()
	r := report{output: make(map[string]*strings.Builder)}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) == nil {
			r.take(e)
		} else {
			fmt.Println(lines.Text())
		}
	}
	if err := lines.Err(); err != nil {
		fmt.Fprintf(os.Stderr, "%s can't be read to its end: %v\n", os.Args[1], err)
		os.Exit(1)
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", r.passed, r.failed, r.skipped)
	if r.failed+r.skipped+r.broken > 0 || r.passed == 0 {
		os.Exit(1)
	}
}

type report struct {
	output                          map[string]*strings.Builder // of a test, until it has ended
	passed, failed, skipped, broken int
}

func (r *report) take(e event) {
	key := e.Package + " " + e.Test
	switch e.Action {
	case "output", "build-output":
		if e.Action == "build-output" {
			key = e.ImportPath + " "
		}
		if r.output[key] == nil {
			r.output[key] = &strings.Builder{}
		}
		r.output[key].WriteString(e.Output)
	case "pass":
		if e.Test != "" {
			r.passed++
		} else {
			fmt.Printf("ok    %-55s %.1fs\n", e.Package, e.Elapsed)
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

func (r *report) show(what, key string) {
	fmt.Printf("%s  %s\n", what, strings.TrimSpace(key))
	if o := r.output[key]; o != nil {
		fmt.Print(o.String())
	}
	delete(r.output, key)
}
