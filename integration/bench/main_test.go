package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/trayd/trayd/integration/peer"
	"github.com/trayd/trayd/integration/rendered"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestCheck: a measurement that nobody knows isn't an empty table.
func TestCheck(t *testing.T) {
	ok := bench{rounds: 200, most: 3000}
	for _, c := range []struct {
		edit func(*bench)
		args []string
		says string
	}{
		{func(*bench) {}, nil, ""},
		{func(b *bench) { b.only = "volumes" }, nil, ""},
		{func(b *bench) { b.only = "nonsense" }, nil, `no measurement is called "nonsense"`},
		{func(*bench) {}, []string{"scale"}, `no argument is taken but options: "scale"`},
		{func(b *bench) { b.rounds = 0 }, nil, "at least 5"},
		{func(b *bench) { b.most = 99 }, nil, "at least 100"},
		{func(b *bench) { b.out = "scale.md" }, nil, "-only scale"},
	} {
		b := ok
		c.edit(&b)
		err := b.check(c.args)
		if c.says == "" {
			require.NoError(t, err)
			continue
		}
		require.ErrorContains(t, err, c.says)
	}
}

// TestRenderScale: every row has a column for each number of machines, what is extrapolated is
// said to be, and the limits stand in the order in which they are met.
func TestRenderScale(t *testing.T) {
	ms := func(n int) []time.Duration { return []time.Duration{time.Duration(n) * time.Millisecond} }
	render := func(list int) string {
		of := func(n int) scaled {
			return scaled{Machines: n, Rest: peer.Usage{Resident: 10 + float64(n)/25.6, Files: n + 15}, Changes: ms(9), List: ms(n / list), Others: ms(9), Slow: ms(4000), SlowList: ms(800), Threads: 10 + n/100}
		}
		text, err := scaleReport{Trayd: "trayd v1", Processor: "a fast one", Date: "2026-01-02", CPUs: 2, Slow: digits(slowAnswer), All: []scaled{of(100), of(1000)}}.render()
		require.NoError(t, err)
		return text
	}
	text := render(10)
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "|") {
			require.Equal(t, 4, strings.Count(line, "|"), line)
		}
	}
	for _, want := range []string{"trayd v1; 2 processors, a fast one", "| | 100 | 1,000 |", "is 40 KiB of memory", "Extrapolated from\n1,000 machines that is at about 10,000", "20 at most", "that is 0.80 s"} {
		require.Contains(t, text, want)
	}
	require.NotContains(t, text, "<no value>")
	require.Regexp(t, `(?s)first limit\*\* is the list.*second\*\* is the descriptors.*at about 16,000 machines`, text)
	require.Regexp(t, `(?s)first limit\*\* is the descriptors.*second\*\* is the list.*at about 20,000`, render(20))
}

// TestUnitLimits: what is measured, and written of, are the limits that trayd is shipped with.
func TestUnitLimits(t *testing.T) {
	unit, err := os.ReadFile("../../systemd/trayd.service")
	require.NoError(t, err)
	require.Contains(t, string(unit), fmt.Sprintf("\nLimitNOFILE=%d\n", unitFiles))
	require.Contains(t, string(unit), fmt.Sprintf("\nTasksMax=%d\n", unitThreads))
}

func TestDigits(t *testing.T) {
	for d, want := range map[time.Duration]string{
		240 * time.Microsecond: "0.24 ms", 5200 * time.Microsecond: "5.2 ms", 94 * time.Millisecond: "94 ms", 160 * time.Millisecond: "0.16 s", 3 * time.Second: "3.0 s",
	} {
		require.Equal(t, want, digits(d))
	}
}

// TestCommitted: the committed document was made by this template.
func TestCommitted(t *testing.T) {
	document, err := os.ReadFile("../../docs/scale.md")
	require.NoError(t, err)
	require.NoError(t, rendered.By(scaleText, string(document)), "make scale")
}
