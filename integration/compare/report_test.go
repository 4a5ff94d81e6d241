package main

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/integration/fault"
	"github.com/trayd/trayd/integration/peer"
)

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
		Usages:    []usage{{"trayd", many, peer.Usage{Resident: 10}}, {"libvirt", many, peer.Usage{Resident: 30}}, {"trayd", few, peer.Usage{Resident: 99}}},
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
	require.NotContains(t, text, "<no value>")
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
}
