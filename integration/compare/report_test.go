package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/trayd/trayd/integration/fault"
	"github.com/trayd/trayd/integration/peer"
	"github.com/trayd/trayd/integration/rendered"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestSample(t *testing.T) {
	var s sample
	require.Equal(t, "–", s.String())
	for i := range 100 {
		s = append(s, time.Duration(100-i)*time.Millisecond)
	}
	require.Equal(t, 51*time.Millisecond, s.median())
	require.Equal(t, "51.0 ms (11.0 ms–91.0 ms)", s.String())
	for d, want := range map[time.Duration]string{
		1500 * time.Nanosecond: "1 µs", 1234 * time.Microsecond: "1.23 ms", 12340 * time.Microsecond: "12.3 ms",
		123 * time.Millisecond: "123 ms", 1234 * time.Millisecond: "1.23 s",
	} {
		require.Equal(t, want, short(d))
	}
}

// TestTargets: a target that isn't reached is told.
func TestTargets(t *testing.T) {
	ms := func(n int) sample { return sample{time.Duration(n) * time.Millisecond} }
	r := &report{
		Latencies: []latency{{Name: traydAPI, Change: ms(1)}, {Name: libvirtAPI, Change: ms(10)}, {Name: trayctl, Whole: true, Change: ms(10)}, {Name: virsh, Whole: true, Change: ms(49)}},
		AtOnce:    []atOnce{{Name: traydAPI, Took: ms(10)}, {Name: libvirtAPI, Took: ms(81)}},
		Ready:     map[string]sample{"trayd": ms(10), "libvirt": ms(49)},
		Usages:    []usage{{"trayd", many, []peer.Usage{{Resident: 10}}}, {"libvirt", many, []peer.Usage{{Resident: 30}}}, {"trayd", few, []peer.Usage{{Resident: 99}}}},
	}
	var all []string
	for _, target := range r.Targets() {
		all = append(all, target.Reached)
	}
	require.Empty(t, r.Targets()[0].Why)
	require.NotEmpty(t, r.Targets()[1].Why)
	require.Equal(t, []string{"yes", "**no**", "yes", "–", "**no**", "yes"}, all)
}

// TestRender: every table of the file keeps its columns, whatever was measured.
func TestRender(t *testing.T) {
	r := &report{Rounds: 1, Runs: 2, Others: 1, Machine: []string{"here"}}
	r.Latencies = []latency{{Name: traydAPI}, {Name: trayctl, Whole: true}}
	r.Ready = map[string]sample{"trayd": nil}
	r.Installed = []install{{Name: "trayd", Size: 15e6}, {Name: "libvirt", Failed: "no lists"}}
	for _, f := range fault.All() {
		r.Faults = append(r.Faults, faultRow{"trayd", f, fault.Count{Runs: 2, Kept: 1, True: 2, Clean: 2, Notes: map[string]int{"in the drive: no disc": 1}}},
			faultRow{"script", f, fault.Count{Runs: 1, Kept: 1, Clean: 1, Silent: true}})
	}
	gone := fault.All()[3]
	require.Equal(t, "new image vanishes for good", gone.Name)
	r.Volumes = []faultRow{{"trayd", gone, fault.Count{Runs: 3, Kept: 3, True: 3, Clean: 2, Notes: map[string]int{"active: fault-OLD, fault-GONE": 1}, Ended: map[string]int{"OLD": 2, "FRESH": 1}}}}
	r.Usages = []usage{{"trayd", 1, []peer.Usage{{Resident: 16.26, Threads: 6}, {Resident: 16.5, Threads: 6}, {Resident: 16.41, Threads: 6}}}}
	text, err := r.render()
	require.NoError(t, err)
	columns := 0
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "|") {
			columns = 0
			continue
		}
		if columns == 0 {
			columns = strings.Count(line, "|")
		}
		require.Equal(t, columns, strings.Count(line, "|"), line)
	}
	require.Contains(t, text, "| 1 · 2 · 2 of 2 | – | 1 · none · 1 of 1 |")
	require.Contains(t, text, "- new image missing: in the drive: no disc (1)")
	require.Contains(t, text, "| libvirt | not computed: no lists | – |")
	require.Contains(t, text, "| new image vanishes for good | 3 · 3 · 2 of 3 |")
	require.Contains(t, text, "- new image vanishes for good: active: fault-OLD, fault-GONE (1)")
	require.Contains(t, text, "; trayd with volumes FRESH 1, OLD 2\n")
	require.Contains(t, text, "| trayd | 1 | 16.4 MiB (16.3–16.5) | 0.0 MiB | 0.0 MiB | 6 | 0 |")
	require.NotContains(t, text, "<no value>")
}

// TestCheck: what can't be meant is refused before anything is measured.
func TestCheck(t *testing.T) {
	ok := comparison{rounds: 200, runs: 100, others: 20, volumes: 100}
	for _, c := range []struct {
		edit func(*comparison)
		args []string
		says string
	}{
		{func(*comparison) {}, nil, ""},
		{func(c *comparison) { c.only = "volumes" }, nil, ""},
		{func(c *comparison) { c.only = "nonsense" }, nil, `no part is called "nonsense": -only takes figures, faults, volumes`},
		{func(*comparison) {}, []string{"faults"}, `no argument is taken but options: "faults"`},
		{func(c *comparison) { c.rounds = 0 }, nil, "-rounds 0: at least 1"},
		{func(c *comparison) { c.runs = 0 }, nil, "-faults 0: at least 1"},
		{func(c *comparison) { c.others = -1 }, nil, "-others -1: at least 1"},
		{func(c *comparison) { c.volumes = 0 }, nil, "-volumes 0: at least 1"},
	} {
		one := ok
		c.edit(&one)
		err := one.check(c.args)
		if c.says == "" {
			require.NoError(t, err)
			continue
		}
		require.ErrorContains(t, err, c.says)
	}
}

// TestWhy: the reason for a target that isn't reached is what was measured.
func TestWhy(t *testing.T) {
	require.Equal(t, "the floor itself is 5.0 times faster than libvirt, and 4.0 times with two durable writes, which isn't enough either; trayd's own work takes 1.50 ms more", why(10, 5, 4, 0.0015))
	require.Equal(t, "the floor itself is 12.0 times faster than libvirt, and 9.0 times with two durable writes", why(8, 12, 9, -0.001))
}

// TestVolumeRows: what the edge host says is whole, or an error.
func TestVolumeRows(t *testing.T) {
	var said strings.Builder
	for _, f := range fault.All() {
		_, err := volumeRows(strings.NewReader(said.String()))
		require.ErrorContains(t, err, "says nothing of")
		require.NoError(t, json.NewEncoder(&said).Encode(counted{f.Name, fault.Count{Runs: 2, Kept: 1}}))
	}
	rows, err := volumeRows(strings.NewReader(said.String()))
	require.NoError(t, err)
	require.Len(t, rows, len(fault.All()))
	require.Equal(t, 1, rows[0].Kept)
	rows, err = volumeRows(strings.NewReader(said.String() + said.String())) // of two hosts
	require.NoError(t, err)
	require.Equal(t, []int{4, 2}, []int{rows[0].Runs, rows[0].Kept})
	_, err = volumeRows(strings.NewReader("bash: not found"))
	require.ErrorContains(t, err, "what the edge host says")
}

// TestWithoutQEMU: the edge host isn't run by the QEMU under test.
func TestWithoutQEMU(t *testing.T) {
	require.Equal(t, []string{"HOME=/root", "PATH=/usr/bin:/bin"}, withoutQEMU([]string{"HOME=/root", "PATH=/c/bin:/usr/bin:/bin", "QEMU=/c/bin/qemu-system-x86_64"}))
	require.Equal(t, []string{"PATH=/usr/bin:/bin"}, withoutQEMU([]string{"PATH=/usr/bin:/bin"}))
}

// TestSize: what is installed is every file.
func TestSize(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, "share"), 0o755))
	for name, n := range map[string]int{"trayd": 100, "share/page.gz": 7} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), make([]byte, n), 0o644))
	}
	n, err := size(dir)
	require.NoError(t, err)
	require.EqualValues(t, 107, n)
}

// TestCalls: a call that another thread's cut in two is one.
func TestCalls(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	require.NoError(t, os.WriteFile(log, []byte("12 fdatasync(5 <unfinished ...>\n13 rename(\"a\", \"b\") = 0\n12 <... fdatasync resumed>) = 0\n13 fdatasync(6) = 0\n13 +++ exited with 0 +++\n"), 0o644))
	counts, err := calls(log)
	require.NoError(t, err)
	require.Equal(t, map[string]int{"fdatasync": 2, "rename": 1}, counts)
}

func TestLost(t *testing.T) {
	c := &comparison{}
	c.Faults = []faultRow{
		{"trayd", fault.Fault{}, fault.Count{Runs: 2, Kept: 2, True: 2, Clean: 2}},
		{"libvirt", fault.Fault{}, fault.Count{Runs: 2}},
	}
	require.Zero(t, c.lost())
	c.Faults = append(c.Faults, faultRow{"trayd", fault.Fault{}, fault.Count{Runs: 2, Kept: 2, True: 2, Clean: 1}})
	require.Equal(t, 1, c.lost())
	c.Volumes = []faultRow{{"trayd", fault.Fault{}, fault.Count{Runs: 2, Kept: 1, True: 2, Clean: 2}}}
	require.Equal(t, 2, c.lost())
}

// TestCommitted: the committed document was made by this template.
func TestCommitted(t *testing.T) {
	document, err := os.ReadFile("../../docs/comparison.md")
	require.NoError(t, err)
	require.NoError(t, rendered.By(reportText, string(document)), "make compare")
}
