package metrics

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func facts() Facts {
	return Facts{
		Drives: map[string]int{"loaded": 2, "empty": 1}, VMs: map[string]int{"attached": 3, "stopped": 1}, Monitors: 3,
		Images: map[string]int{"ready": 4}, ImageBytes: map[string]int64{"lo\"c\\al\n": 1 << 40}, PoolFree: map[string]int64{"local": 5},
		Downloads: 1, DownloadBytes: 77, VolumesActive: 1, VolumesWaiting: 2,
		StateWrites: 6, StateRefused: 1, StateFailed: true, StateSum: 3 * time.Millisecond,
		StateBounds: []time.Duration{time.Millisecond, 10 * time.Millisecond}, StateWithin: []uint64{4, 1, 1},
		Events: map[string]uint64{"loaded": 9}, Subscribers: 2, Hooks: map[string]uint64{"done": 1}, Webhooks: map[string]uint64{"delivered": 1}, WebhooksWaiting: 3,
	}
}

// promtool is Prometheus' own program, which install-deps has installed.
func promtool(t *testing.T, input []byte, args ...string) {
	t.Helper()
	cmd := exec.Command("promtool", args...)
	cmd.Stdin = bytes.NewReader(input)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s\n%s", out, input)
	require.NotContains(t, string(out), "error")
}

// TestPrometheusReadsIt, by its parser and its rules for names, with and without anything
// counted.
func TestPrometheusReadsIt(t *testing.T) {
	promtool(t, New("v1", func() Facts { return Facts{} }).Text(), "check", "metrics")
	m := New("v1.2.3", facts)
	for i, verb := range []string{"insert", "eject", "download image", "nonsense\"\n{}"} {
		m.Change(verb, "done", []string{"", "incomplete", "outcome-unknown", "drive-busy"}[i], time.Duration(i)*time.Second)
	}
	m.Request("GET /v1/vms", "GET", 200, time.Millisecond)
	m.Request("", "BREW", 999, time.Minute)
	out := m.Text()
	promtool(t, out, "check", "metrics")
	for _, line := range []string{
		`trayd_operations_total{kind="insert",result="done"} 1`,
		`trayd_operations_total{kind="eject",result="incomplete"} 1`,
		`trayd_operations_total{kind="image-download",result="unknown"} 1`,
		`trayd_operations_total{kind="other",result="failed"} 1`,
		`trayd_operation_duration_seconds_bucket{kind="eject",le="0.25"} 0`,
		`trayd_operation_duration_seconds_bucket{kind="eject",le="1"} 1`,
		`trayd_operation_duration_seconds_bucket{kind="eject",le="+Inf"} 1`,
		`trayd_operation_duration_seconds_sum{kind="eject"} 1`,
		`trayd_downloads_total{result="unknown"} 1`,
		`trayd_image_bytes{pool="lo\"c\\al\n"} 1.099511627776e+12`,
		`trayd_state_write_duration_seconds_bucket{le="0.01"} 5`,
		`trayd_state_write_duration_seconds_count 6`,
		`trayd_api_requests_total{route="GET /v1/vms",method="GET",code="2xx"} 1`,
		`trayd_api_requests_total{route="other",method="other",code="other"} 1`,
		`trayd_volumes{state="waiting"} 2`,
		`trayd_build_info{version="v1.2.3"} 1`,
	} {
		require.Contains(t, string(out), "\n"+line+"\n")
	}
}

// TestBounded: nothing that a caller chooses becomes a label.
func TestBounded(t *testing.T) {
	m := New("v1", func() Facts { return Facts{} })
	for i := range 1000 {
		word := fmt.Sprint("word", i)
		m.Change(word, "done", word, time.Second)
		m.Change(word+" image", "done", word, time.Second)
		m.Request("GET /v1/vms", word, 100+i, time.Second)
	}
	require.NotContains(t, string(m.Text()), "word")
	require.Less(t, strings.Count(string(m.Text()), "\n"), 200)
}

// TestProcess: the numbers are this process's.
func TestProcess(t *testing.T) {
	text := string(New("v1", func() Facts { return Facts{} }).Text())
	value := func(name string) float64 {
		m := regexp.MustCompile(`(?m)^` + name + ` (\S+)$`).FindStringSubmatch(text)
		require.NotNil(t, m, name)
		return number(m[1])
	}
	require.InDelta(t, float64(time.Now().Unix()), value("process_start_time_seconds"), 300)
	require.Greater(t, value("process_resident_memory_bytes"), 1e6)
	require.Greater(t, value("go_goroutines"), 0.0)
	require.Greater(t, value("process_open_fds"), 2.0)
}

// TestServed with the format's own type.
func TestServed(t *testing.T) {
	w := &answer{header: http.Header{}}
	New("v1", facts).ServeHTTP(w, nil)
	require.Equal(t, "text/plain; version=0.0.4; charset=utf-8", w.header.Get("Content-Type"))
	require.Equal(t, fmt.Sprint(w.Len()), w.header.Get("Content-Length"))
}

type answer struct {
	bytes.Buffer
	header http.Header
}

func (a *answer) Header() http.Header { return a.header }
func (a *answer) WriteHeader(int)     {}

// TestDocuments: the alerts are right, and all that they and the dashboard look at is there.
func TestDocuments(t *testing.T) {
	const dir = "../../docs/monitoring/"
	promtool(t, nil, "check", "rules", dir+"alerts.yml")
	m := New("v1", facts)
	m.Change("download image", "done", "", 0)
	m.Request("GET /v1/vms", "GET", 200, 0)
	text := string(m.Text())
	name := regexp.MustCompile(`\b(?:trayd|process|go)_[a-z0-9_]+[a-z0-9]`)
	for _, file := range []string{dir + "alerts.yml", dir + "grafana-dashboard.json", "../../docs/monitoring.md"} {
		b, err := os.ReadFile(file)
		require.NoError(t, err)
		found := name.FindAllString(string(b), -1)
		require.NotEmpty(t, found, file)
		for _, n := range found {
			require.Regexp(t, `(?m)^(# TYPE )?`+n+`[{ ]`, text, "%s looks at %s", file, n)
		}
	}
}
