package agent

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/wire"
)

func publishMany(b *bus, n int) {
	for i := range n {
		b.publish(Event{Type: EventLoaded, Detail: fmt.Sprint(i)})
	}
}

// TestComingBack: whoever comes back gets what it missed, or hears that it isn't there.
func TestComingBack(t *testing.T) {
	start := time.UnixMicro(1_000_000)
	const base = 1_000_000
	for _, row := range []struct {
		what      string
		published int
		after     uint64
		missed    bool
		first     uint64 // after the word that some were missed; 0: nothing yet
	}{
		{"from now on", 5, 0, false, 0},
		{"nothing happened meanwhile", 5, base + 5, false, 0},
		{"all of it is kept", 5, base + 2, false, base + 3},
		{"the first of this trayd", 5, base, false, base + 1},
		{"an earlier trayd's", 5, base - 300, true, base + 1},
		{"an earlier trayd's, and nothing has happened", 0, base - 300, true, 0},
		{"one that nobody has had: the clock was set back", 5, base + 6, true, base + 1},
		{"as many as are kept", keptEvents + 9, base + 9, false, base + 10},
		{"one more than are kept", keptEvents + 10, base + 9, true, base + 11},
	} {
		t.Run(row.what, func(t *testing.T) {
			b := newBus(start)
			publishMany(b, row.published)
			events, _ := b.subscribe(row.after).Take(2 * keptEvents)
			require.Equal(t, row.missed, len(events) > 0 && events[0].Type == wire.EventMissed)
			if row.missed {
				require.Contains(t, events[0].Detail, "GET /v1/vms")
				require.LessOrEqual(t, events[0].ID, b.last)
				again, _ := b.subscribe(events[0].ID).Take(2 * keptEvents)
				require.True(t, slices.Equal(events[1:], again), "with the id of what was missed, nothing is lost and nothing told twice")
				events = events[1:]
			}
			if row.first == 0 {
				require.Empty(t, events)
				return
			}
			require.Equal(t, row.first, events[0].ID)
			require.Equal(t, b.last, events[len(events)-1].ID)
			require.Len(t, events, int(b.last-row.first)+1)
		})
	}
}

// TestIDsRiseAcrossStarts, also of two in one second, and JavaScript can count to them.
func TestIDsRiseAcrossStarts(t *testing.T) {
	now := time.Now()
	first := newBus(now)
	publishMany(first, 1000)
	second := newBus(now.Add(2 * time.Millisecond))
	require.Greater(t, second.last, first.last)
	require.Less(t, newBus(time.Date(2255, 1, 1, 0, 0, 0, 0, time.UTC)).last, uint64(1)<<53)
	require.NotZero(t, newBus(time.Unix(-1, 0)).last, "0 means from now on")
}

// TestOneThatNeverReads: the others get every event, in order; it hears what it missed.
func TestOneThatNeverReads(t *testing.T) {
	b := newBus(time.Now())
	slow := b.subscribe(0)
	const readers, events = 20, 3 * keptEvents
	var all sync.WaitGroup
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for range readers {
		s := b.subscribe(0)
		all.Go(func() {
			last := b.base
			for last < b.base+events {
				e, err := s.Next(ctx)
				if err != nil || e.ID != last+1 && e.Type != wire.EventMissed {
					t.Errorf("after %d came %+v, %v", last, e, err)
					return
				}
				last = e.ID
			}
		})
	}
	for i := range events {
		b.publish(Event{Type: EventLoaded})
		if i%(keptEvents/4) == 0 {
			time.Sleep(time.Millisecond) // readers on few processors
		}
	}
	all.Wait()
	got, _ := slow.Take(1)
	require.Equal(t, wire.EventMissed, got[0].Type)
	require.Equal(t, b.last-keptEvents, got[0].ID)
}

// TestMemoryOfEvents: with details of twice the usual length, all that are kept have half a MiB.
func TestMemoryOfEvents(t *testing.T) {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	b := newBus(time.Now())
	for i := range 3 * keptEvents {
		b.publish(Event{Type: EventLoaded, VM: "vm", Drive: "cd0", Operation: "abcdefghij", Detail: strings.Repeat("x", 200+i%10)})
	}
	subs := make([]*Subscriber, 200)
	for i := range subs {
		subs[i] = b.subscribe(0)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	used := int64(after.HeapAlloc) - int64(before.HeapAlloc)
	t.Logf("%d kept events and %d subscribers: %d bytes", keptEvents, len(subs), used)
	require.Less(t, used, int64(512<<10))
	runtime.KeepAlive(subs)
	runtime.KeepAlive(b)
}

// BenchmarkPublish is from publishing an event until all of 200 subscribers have it, alone
// and with one that never reads.
func BenchmarkPublish(b *testing.B) {
	for _, slow := range []int{0, 1} {
		b.Run(fmt.Sprintf("slow=%d", slow), func(b *testing.B) {
			bus := newBus(time.Now())
			for range slow {
				bus.subscribe(0)
			}
			ctx, cancel := context.WithCancel(context.Background())
			var readers sync.WaitGroup
			var got sync.WaitGroup
			for range 200 {
				s := bus.subscribe(0)
				readers.Go(func() {
					for {
						if _, err := s.Next(ctx); err != nil {
							return
						}
						got.Done()
					}
				})
			}
			var took []time.Duration
			for b.Loop() {
				got.Add(200)
				began := time.Now()
				bus.publish(Event{Type: EventLoaded})
				got.Wait()
				took = append(took, time.Since(began))
			}
			cancel()
			readers.Wait()
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-us")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-us")
		})
	}
}
