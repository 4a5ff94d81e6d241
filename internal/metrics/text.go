package metrics

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// The kinds of families.
const (
	counter   = "counter"
	gauge     = "gauge"
	histogram = "histogram"
)

// text is an exposition in the making.
type text struct{ bytes.Buffer }

// family begins one: its samples follow.
func (t *text) family(name, kind, help string) {
	fmt.Fprintf(t, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
}

// sample writes one value. labels are names and values in turns.
func (t *text) sample(name string, value float64, labels ...string) {
	t.WriteString(name)
	for i := 0; i < len(labels); i += 2 {
		sep := byte(',')
		if i == 0 {
			sep = '{'
		}
		t.WriteByte(sep)
		t.WriteString(labels[i] + `="` + escape(labels[i+1]) + `"`)
	}
	if len(labels) > 0 {
		t.WriteByte('}')
	}
	t.WriteByte(' ')
	t.WriteString(strconv.FormatFloat(value, 'g', -1, 64))
	t.WriteByte('\n')
}

// one is a family of a single value.
func (t *text) one(name, kind, help string, value float64) {
	t.family(name, kind, help)
	t.sample(name, value)
}

// byLabel is a family with a value for each of a label.
func byLabel[N uint64 | int | int64](t *text, name, kind, help, label string, values map[string]N) {
	t.family(name, kind, help)
	for _, k := range slices.Sorted(maps.Keys(values)) {
		t.sample(name, float64(values[k]), label, k)
	}
}

// escape makes a label's value one that the format can hold.
func escape(s string) string {
	return strings.NewReplacer(`\`, `\\`, "\n", `\n`, `"`, `\"`).Replace(strings.ToValidUTF8(s, "?"))
}

// buckets is a histogram: within[i] counts what took at most bounds[i], the last what took
// longer.
type buckets struct {
	within []uint64
	sum    time.Duration
}

func (b *buckets) add(bounds []time.Duration, took time.Duration) {
	if b.within == nil {
		b.within = make([]uint64, len(bounds)+1)
	}
	i, _ := slices.BinarySearch(bounds, took)
	b.within[i]++
	b.sum += took
}

func (t *text) histogram(name string, bounds []time.Duration, b *buckets, labels ...string) {
	var sum uint64
	for i, n := range b.within {
		sum += n
		le := "+Inf"
		if i < len(bounds) {
			le = strconv.FormatFloat(bounds[i].Seconds(), 'g', -1, 64)
		}
		t.sample(name+"_bucket", float64(sum), append(labels[:len(labels):len(labels)], "le", le)...)
	}
	t.sample(name+"_sum", b.sum.Seconds(), labels...)
	t.sample(name+"_count", float64(sum), labels...)
}

// vec counts by label values. The zero value is ready.
type vec struct {
	mu sync.Mutex // guards n
	n  map[[3]string]uint64
}

func (v *vec) inc(labels ...string) {
	var k [3]string
	copy(k[:], labels)
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.n == nil {
		v.n = make(map[[3]string]uint64)
	}
	v.n[k]++
}

func (v *vec) write(t *text, name, help string, labels ...string) {
	t.family(name, counter, help)
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, k := range slices.SortedFunc(maps.Keys(v.n), compare) {
		t.sample(name, float64(v.n[k]), pairs(labels, k)...)
	}
}

func compare(a, b [3]string) int { return slices.Compare(a[:], b[:]) }

func pairs(labels []string, values [3]string) []string {
	all := make([]string, 0, 6)
	for i, l := range labels {
		all = append(all, l, values[i])
	}
	return all
}

// histograms are one by a label's value.
type histograms struct {
	bounds []time.Duration

	mu sync.Mutex // guards by
	by map[string]*buckets
}

func (h *histograms) add(label string, took time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.by == nil {
		h.by = make(map[string]*buckets)
	}
	b := h.by[label]
	if b == nil {
		b = &buckets{}
		h.by[label] = b
	}
	b.add(h.bounds, took)
}

func (h *histograms) write(t *text, name, help, label string) {
	t.family(name, histogram, help)
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, k := range slices.Sorted(maps.Keys(h.by)) {
		t.histogram(name, h.bounds, h.by[k], label, k)
	}
}
