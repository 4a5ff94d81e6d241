package main

import (
	"bytes"
	"cmp"
	"context"
	_ "embed"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/template"
	"time"

	"github.com/trayd/trayd/integration/fault"
	"github.com/trayd/trayd/integration/peer"
	"github.com/trayd/trayd/internal/qemutest"
)

//go:embed comparison.md.tmpl
var reportText string

// report is what the template shows.
type report struct {
	Machine              []string // what it ran on and with
	Rounds, Runs, Others int
	VolumeRuns           int
	Latencies            []latency
	Pipe                 sample
	AtOnce               []atOnce
	Durable              []durable
	Ready                map[string]sample
	Usages               []usage
	Installed            []install
	Faults               []faultRow
	Volumes              []faultRow // trayd's, with discs on logical volumes
}

type latency struct {
	Name                  string
	Whole                 bool
	Insert, Change, Eject sample
}

type atOnce struct {
	Name  string
	Whole bool
	Took  sample
}

type durable struct {
	Name           string
	Syncs, Renames float64
}

type usage struct {
	Name     string
	Machines int
	All      []peer.Usage // one for each look
}

type faultRow struct {
	Contender string
	fault.Fault
	fault.Count
}

// machineLine says on what is measured, and with which versions.
func machineLine(ctx context.Context, bin string) ([]string, error) {
	var lines []string
	for _, cmd := range [][]string{
		{qemutest.Binary(), "--version"}, {"libvirtd", "--version"}, {filepath.Join(bin, "trayd"), "version"}, {"bash", "--version"}, {"socat", "-V"}, {"uname", "-sr"},
	} {
		out, err := exec.CommandContext(ctx, cmd[0], cmd[1:]...).Output()
		if err != nil {
			return nil, fmt.Errorf("%s: %w (run integration/install-deps compare)", cmd[0], err)
		}
		line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		if cmd[0] == "socat" { // the first line is who wrote it
			_, line, _ = strings.Cut(string(out), "\n")
			line, _, _ = strings.Cut(line, " on ")
		}
		lines = append(lines, line)
	}
	return append(lines, fmt.Sprintf("%d processors; machines under software emulation, whose processor halts: what is measured is the host's work", runtime.NumCPU())), nil
}

// write writes the whole file.
func (c *comparison) write() error {
	text, err := c.render()
	if err != nil {
		return err
	}
	if c.out == "-" {
		fmt.Print(text)
		return nil
	}
	return os.WriteFile(c.out, []byte(text), 0o644)
}

func (r *report) render() (string, error) {
	t, err := template.New("comparison").Parse(reportText)
	if err != nil {
		return "", err
	}
	var b bytes.Buffer
	err = t.Execute(&b, r)
	return b.String(), err
}

// Persistent and Commands are the latencies of the two kinds.
func (r *report) Persistent() []latency { return r.kind(false) }

// Commands are those of whole commands.
func (r *report) Commands() []latency { return r.kind(true) }

func (r *report) kind(whole bool) []latency {
	return slices.DeleteFunc(slices.Clone(r.Latencies), func(l latency) bool { return l.Whole != whole })
}

// Tail is the slowest change of a hundred, where there were so many.
func (l latency) Tail() string {
	const enough = 100
	if len(l.Change) < enough {
		return "–"
	}
	return short(l.Change.at(0.99))
}

// PipeMedian is what the pipe to the Python program adds.
func (r *report) PipeMedian() string { return short(r.Pipe.median()) }

// Target is one figure that trayd has to reach, against libvirt's in the same run. Why says
// what stands in its way, where it isn't reached.
type Target struct{ What, Figure, Wanted, Reached, Why string }

// Targets are all of them, with those that are only told.
func (r *report) Targets() []Target {
	change := func(name string) float64 {
		i := slices.IndexFunc(r.Latencies, func(l latency) bool { return l.Name == name })
		return seconds(i, func() time.Duration { return r.Latencies[i].Change.median() })
	}
	at := func(name string) float64 {
		i := slices.IndexFunc(r.AtOnce, func(a atOnce) bool { return a.Name == name })
		return seconds(i, func() time.Duration { return r.AtOnce[i].Took.median() })
	}
	memory := func(name string) (u usage) {
		if i := slices.IndexFunc(r.Usages, func(u usage) bool { return u.Name == name && u.Machines == many }); i >= 0 {
			u = r.Usages[i]
		}
		return u
	}
	ready := func(name string) float64 { return r.Ready[name].median().Seconds() }
	ours, theirs := memory("trayd"), memory("libvirt")
	return []Target{
		faster("change over a connection that stays", change(traydAPI), change(libvirtAPI), 10,
			why(10, change(libvirtAPI)/change(floorAPI), change(libvirtAPI)/change(durableFloor), change(traydAPI)-change(durableFloor))),
		faster("change by a command", change(trayctl), change(virsh), 5,
			fmt.Sprintf("the shell script is %.1f times faster than virsh, and the floor as a program, which is started and sends the commands, %.1f times", change(virsh)/change(script), change(virsh)/change(floorCommand))+
				more("trayctl and trayd take", change(trayctl)-change(floorCommand))),
		faster(fmt.Sprintf("%d machines at once, over connections that stay", many), at(traydAPI), at(libvirtAPI), 8,
			why(8, at(libvirtAPI)/at(floorAPI), at(libvirtAPI)/at(durableFloor), at(traydAPI)-at(durableFloor))),
		faster(fmt.Sprintf("%d machines at once, by commands", many), at(trayctl), at(virsh), 0, ""),
		faster(fmt.Sprintf("start to ready with %d machines", many), ready("trayd"), ready("libvirt"), 5,
			fmt.Sprintf("the floor, which only asks the %d QEMUs, is %.1f times faster than libvirt; the start of a program, its state file and sockets come on top", many, ready("libvirt")/ready(floorAPI))),
		share(fmt.Sprintf("resident memory (RSS) with %d machines", many), ours.resident(), theirs.resident(), 3,
			fmt.Sprintf("by PSS it is %s of libvirt's, by heap %s; %.1f MiB of trayd's RSS are pages of its own program, which nobody shares with it", part(ours.proportional(), theirs.proportional()), part(ours.anonymous(), theirs.anonymous()), ours.resident()-ours.anonymous())),
	}
}

// why says what a target is up against: how many times faster than libvirt the bare commands
// are, and those with two durable writes; and what trayd takes beyond these, in seconds.
func why(target, floor, durable, own float64) string {
	s := fmt.Sprintf("the floor itself is %.1f times faster than libvirt, and %.1f times with two durable writes", floor, durable)
	if durable < target {
		s += ", which isn't enough either"
	}
	return s + more("trayd's own work takes", own)
}

// more says what somebody takes beyond what was told, where it was measured so.
func more(who string, seconds float64) string {
	if seconds <= 0 {
		return ""
	}
	return fmt.Sprintf("; %s %s more", who, short(time.Duration(seconds*float64(time.Second))))
}

func seconds(i int, of func() time.Duration) float64 {
	if i < 0 {
		return 0
	}
	return of().Seconds()
}

// faster is a target of so many times faster; 0 is one that is only told.
func faster(what string, ours, theirs, times float64, why string) Target {
	t := Target{What: what, Figure: "–", Wanted: "–", Reached: "–"}
	if ours > 0 {
		t.Figure = fmt.Sprintf("%.1f times faster", theirs/ours)
	}
	if times > 0 {
		t.Wanted = fmt.Sprintf("at least %.0f times", times)
		t.reach(ours, theirs, times, why)
	}
	return t
}

// share is a target of at most one of so many parts.
func share(what string, ours, theirs, times float64, why string) Target {
	t := Target{What: what, Figure: part(ours, theirs), Wanted: fmt.Sprintf("at most 1/%.0f", times)}
	t.reach(ours, theirs, times, why)
	return t
}

func part(ours, theirs float64) string {
	if ours <= 0 {
		return "–"
	}
	return fmt.Sprintf("1/%.1f", theirs/ours)
}

// reach says whether theirs is so many times ours; nothing of what wasn't measured.
func (t *Target) reach(ours, theirs, times float64, why string) {
	switch {
	case ours <= 0 || theirs <= 0:
		t.Reached = "–"
	case ours*times <= theirs:
		t.Reached = "yes"
	default:
		t.Reached, t.Why = "**no**", why
	}
}

// FaultNames are the faults in their order.
func (r *report) FaultNames() []fault.Fault { return fault.All() }

// Outcome is one contender's cell of one fault.
func (r *report) Outcome(name, contender string) string {
	i := slices.IndexFunc(r.Faults, func(f faultRow) bool { return f.Name == name && f.Contender == contender })
	if i < 0 {
		return "–"
	}
	return r.Faults[i].Outcome()
}

// Outcome is a row's three numbers.
func (f faultRow) Outcome() string {
	status := fmt.Sprint(f.True)
	if f.Silent {
		status = "none"
	}
	return fmt.Sprintf("%d · %s · %d of %d", f.Kept, status, f.Clean, f.Count.Runs)
}

// Notes are what was found wrong in a contender's runs, the most frequent first.
func (r *report) Notes(contender string) []string {
	return notes(slices.DeleteFunc(slices.Clone(r.Faults), func(f faultRow) bool { return f.Contender != contender }))
}

// VolumeNotes are those of discs on logical volumes.
func (r *report) VolumeNotes() []string { return notes(r.Volumes) }

func notes(faults []faultRow) []string {
	var notes []string
	for _, f := range faults {
		if len(f.Notes) == 0 {
			continue
		}
		all := slices.SortedFunc(maps.Keys(f.Notes), func(a, b string) int {
			return cmp.Or(cmp.Compare(f.Notes[b], f.Notes[a]), strings.Compare(a, b))
		})
		for i, n := range all {
			all[i] = fmt.Sprintf("%s (%d)", n, f.Notes[n])
		}
		notes = append(notes, f.Name+": "+strings.Join(all, "; "))
	}
	return notes
}

// Ends say, of the faults that may end with either disc, with which one the runs ended.
func (r *report) Ends() []string {
	var all []string
	for _, f := range fault.All() {
		if !f.Either {
			continue
		}
		var each []string
		for _, row := range r.Faults {
			if row.Name == f.Name {
				each = append(each, row.Contender+" "+row.ended())
			}
		}
		for _, row := range r.Volumes {
			if row.Name == f.Name {
				each = append(each, row.Contender+" with volumes "+row.ended())
			}
		}
		all = append(all, f.Name+": "+cmp.Or(strings.Join(each, "; "), "–"))
	}
	return all
}

func (f faultRow) ended() string {
	var ends []string
	for _, volume := range slices.Sorted(maps.Keys(f.Ended)) {
		ends = append(ends, fmt.Sprintf("%s %d", cmp.Or(volume, "no disc"), f.Ended[volume]))
	}
	return strings.Join(ends, ", ")
}

// MB is the installed size.
func (i install) MB() string { return fmt.Sprintf("%.0f MB", float64(i.Size)/1e6) }

// RSS, PSS and Heap are a daemon's memory.
func (u usage) RSS() string {
	return u.looks("%.1f", " MiB", func(p peer.Usage) float64 { return p.Resident })
}

// PSS is its part of what it shares.
func (u usage) PSS() string {
	return u.looks("%.1f", " MiB", func(p peer.Usage) float64 { return p.Proportional })
}

// Heap is what is in no file.
func (u usage) Heap() string {
	return u.looks("%.1f", " MiB", func(p peer.Usage) float64 { return p.Anonymous })
}

// Threads and Files are counts.
func (u usage) Threads() string {
	return u.looks("%.0f", "", func(p peer.Usage) float64 { return float64(p.Threads) })
}

// Files are its open files.
func (u usage) Files() string {
	return u.looks("%.0f", "", func(p peer.Usage) float64 { return float64(p.Files) })
}

func (u usage) resident() float64 { return u.median(func(p peer.Usage) float64 { return p.Resident }) }
func (u usage) proportional() float64 {
	return u.median(func(p peer.Usage) float64 { return p.Proportional })
}
func (u usage) anonymous() float64 {
	return u.median(func(p peer.Usage) float64 { return p.Anonymous })
}

func (u usage) sorted(of func(peer.Usage) float64) (all []float64) {
	for _, p := range u.All {
		all = append(all, of(p))
	}
	slices.Sort(all)
	return all
}

func (u usage) median(of func(peer.Usage) float64) float64 {
	if len(u.All) == 0 {
		return 0
	}
	return u.sorted(of)[len(u.All)/2]
}

// looks is the median, and from the least to the most where they differ.
func (u usage) looks(verb, unit string, of func(peer.Usage) float64) string {
	if len(u.All) == 0 {
		return "–"
	}
	all := u.sorted(of)
	number := func(n float64) string { return fmt.Sprintf(verb, n) }
	least, most := number(all[0]), number(all[len(all)-1])
	text := number(u.median(of)) + unit
	if least == most {
		return text
	}
	return fmt.Sprintf("%s (%s–%s)", text, least, most)
}

// Who are those of the table of faults.
func (*report) Who() []string { return []string{"trayd", "libvirt", "script"} }
