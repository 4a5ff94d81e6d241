package main

import (
	"bytes"
	"cmp"
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/template"
	"time"
)

//go:embed scale.md.tmpl
var scaleText string

// scaleReport is what the template shows.
type scaleReport struct {
	Trayd, Processor, Date string
	CPUs                   int
	Slow                   string
	All                    []scaled
}

func (b *bench) writeScale(ctx context.Context, all []scaled) error {
	version, err := exec.CommandContext(ctx, filepath.Join(b.bin, "trayd"), "version").Output()
	if err != nil {
		return err
	}
	r := scaleReport{
		Trayd: strings.TrimSpace(string(version)), Processor: processor(), Date: time.Now().UTC().Format(time.DateOnly),
		CPUs: runtime.NumCPU(), Slow: digits(slowAnswer), All: all,
	}
	text, err := r.render()
	if err != nil {
		return err
	}
	return os.WriteFile(b.out, []byte(text), 0o644)
}

// processor is what the kernel calls it.
func processor() string {
	info, _ := os.ReadFile("/proc/cpuinfo") // without it, it has no name
	for line := range strings.Lines(string(info)) {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}

func (r scaleReport) render() (string, error) {
	t, err := template.New("scale").Parse(scaleText)
	if err != nil {
		return "", err
	}
	var text bytes.Buffer
	err = t.Execute(&text, r)
	return text.String(), err
}

// Columns are a table's first two lines.
func (r scaleReport) Columns() string {
	names, rule := "| |", "|---|"
	for _, s := range r.All {
		names += fmt.Sprintf(" %s |", thousands(s.Machines))
		rule += "---|"
	}
	return names + "\n" + rule
}

// Rows are what stands in the table.
func (r scaleReport) Rows() []string {
	percent := func(part, of time.Duration) string { return fmt.Sprintf("%.2f %%", part.Seconds()/of.Seconds()*100) }
	spread := func(d []time.Duration) string { return digits(median(d)) + ", " + digits(p99(d)) }
	rows := []struct {
		what string
		cell func(s scaled) string
	}{
		{"from start to all attached", func(s scaled) string { return digits(s.All) }},
		{"processor for that, a machine", func(s scaled) string { return digits(s.StartCPU / time.Duration(s.Machines)) }},
		{"resident memory", func(s scaled) string { return fmt.Sprintf("%.0f MiB", s.Rest.Resident) }},
		{"open files", func(s scaled) string { return thousands(s.Rest.Files) }},
		{"threads, in the end", func(s scaled) string { return fmt.Sprint(s.Threads) }},
		{"processor at rest", func(s scaled) string { return percent(s.RestCPU, idleFor) }},
		{"a change in each, 100 clients at once: all done", func(s scaled) string { return digits(s.Whole) }},
		{"one of these changes: p50, p99", func(s scaled) string { return spread(s.Changes) }},
		{"processor, a change", func(s scaled) string { return digits(s.ChangesCPU / time.Duration(len(s.Changes))) }},
		{"the list of all machines, looked at anew: p50", func(s scaled) string { return digits(median(s.List)) }},
		{fmt.Sprintf("one machine in a hundred takes %s for each answer, and is changed all the time; a change of the others: p50, p99", r.Slow), func(s scaled) string { return spread(s.Others) }},
		{"processor, such a change", func(s scaled) string { return digits(s.OthersCPU / time.Duration(len(s.Others))) }},
		{"a change of a slow one: p50", func(s scaled) string { return digits(median(s.Slow)) }},
		{"the list, with the slow ones left alone: p50", func(s scaled) string { return digits(median(s.SlowList)) }},
	}
	var all []string
	for _, row := range rows {
		line := "| " + row.what + " |"
		for _, s := range r.All {
			line += " " + row.cell(s) + " |"
		}
		all = append(all, line)
	}
	return all
}

func (r scaleReport) least() scaled { return r.All[0] }
func (r scaleReport) most() scaled  { return r.All[len(r.All)-1] }

// Most is the largest number of machines.
func (r scaleReport) Most() string { return thousands(r.most().Machines) }

// Memory is what a machine more takes.
func (r scaleReport) Memory() string {
	least, most := r.least(), r.most()
	return fmt.Sprintf("%.0f KiB", (most.Rest.Resident-least.Rest.Resident)*1024/float64(max(1, most.Machines-least.Machines)))
}

// Look is what a machine takes of a list's time.
func (r scaleReport) Look() string { return digits(r.look()) }

func (r scaleReport) look() time.Duration {
	return median(r.most().List) / time.Duration(r.most().Machines)
}

// SlowLook is a look at a slow machine: two questions.
func (scaleReport) SlowLook() string { return digits(2 * slowAnswer) }

// silent is with how many machines a list takes a second, if it goes on to grow as it has.
func (r scaleReport) silent() int { return int(time.Second / max(1, r.look())) }

// full is with how many machines the unit's descriptors are all open, with none for clients.
func (r scaleReport) full() int {
	most := r.most()
	return unitFiles - (most.Rest.Files - most.Machines)
}

// Limits are the first and the second, as they lie by what was measured.
func (r scaleReport) Limits() string {
	list := "the list: where a look at all machines takes a second, those that answer count as silent. Extrapolated from\n" +
		r.Most() + " machines that is at about " + roughly(r.silent()) + " on such a processor; so many were not measured."
	files := "the descriptors (`LimitNOFILE`), one for each machine and some for clients and discs:\nat about " +
		roughly(r.full()) + " machines none is left."
	first, second := files, list
	if r.silent() < r.full() {
		first, second = list, files
	}
	return first + "\n**The second** is " + second
}

// roughly is a number in whole thousands, if there are any.
func roughly(n int) string {
	if n >= 1000 {
		n -= n % 1000
	}
	return thousands(n)
}

// Threads are the most that were seen.
func (r scaleReport) Threads() int {
	return slices.MaxFunc(r.All, func(a, b scaled) int { return cmp.Compare(a.Threads, b.Threads) }).Threads
}

// UnitFiles is the limit under which it was measured.
func (scaleReport) UnitFiles() string { return thousands(unitFiles) }

// UnitThreads is what the unit allows.
func (scaleReport) UnitThreads() int { return unitThreads }

// digits is a duration in two digits.
func digits(d time.Duration) string {
	unit, name := time.Second, "s"
	if d < 100*time.Millisecond {
		unit, name = time.Millisecond, "ms"
	}
	n := float64(d) / float64(unit)
	places := 0
	switch {
	case n < 1:
		places = 2
	case n < 10:
		places = 1
	}
	return fmt.Sprintf("%.*f %s", places, n, name)
}

// thousands is a number with a comma.
func thousands(n int) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	return fmt.Sprintf("%d,%03d", n/1000, n%1000)
}
