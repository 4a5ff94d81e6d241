package agent

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/trayd/trayd/internal/wire"
)

// keptEvents is how many past events a subscriber that comes back may ask for: 0.3 MiB
// with details of the usual length. It is also how far one may fall behind.
const keptEvents = 1024

// bus keeps the last events for any number of subscribers, and waits for none of them:
// each reads on its own from what is kept, so one that doesn't read costs nothing.
type bus struct {
	mu     sync.Mutex // guards all below
	base   uint64     // no event has this id or a lower one
	last   uint64     // of the newest event; base when there is none
	ring   [keptEvents]Event
	more   chan struct{} // closed by the next event
	subs   int
	counts map[string]uint64 // events by type
}

// newBus returns a bus whose ids are above all of earlier ones: they begin at the
// microseconds since 1970. An id rises by one with each event, and no host has a million
// of them in a second, so a later start begins higher. That is below 2^53, which
// JavaScript counts to exactly, until the year 2255. A clock that was set back between two
// starts is noticed by ids that nobody has had yet.
func newBus(start time.Time) *bus {
	base := uint64(max(start.UnixMicro(), 1))
	return &bus{base: base, last: base, more: make(chan struct{}), counts: make(map[string]uint64)}
}

func (b *bus) publish(e Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last++
	e.ID, e.Time = b.last, time.Now()
	b.ring[b.last%keptEvents] = e
	b.counts[e.Type]++
	close(b.more)
	b.more = make(chan struct{})
}

// before is the id before the oldest event that is kept. mu is held.
func (b *bus) before() uint64 {
	if b.last-b.base > keptEvents {
		return b.last - keptEvents
	}
	return b.base
}

// Subscriber reads events, in their order. It is for one goroutine.
type Subscriber struct {
	bus   *bus
	after uint64 // the last one that was read
}

// subscribe starts with the events after the given id; 0 starts with what comes next.
func (b *bus) subscribe(after uint64) *Subscriber {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.subs++
	if after == 0 {
		after = b.last
	}
	return &Subscriber{bus: b, after: after}
}

// Take returns at most so many of the events that have come since the last Take, and a
// channel that is closed when there are more. Where some that should have come are not kept
// any more, or were an earlier trayd's, the first one is of type wire.EventMissed. Its
// id is that of the last one that was missed.
func (s *Subscriber) Take(most int) ([]Event, <-chan struct{}) {
	b := s.bus
	b.mu.Lock()
	defer b.mu.Unlock()
	var events []Event
	if before := b.before(); s.after < before || s.after > b.last {
		events = append(events, missed(s.after, before))
		s.after = before
	}
	for ; s.after < b.last && len(events) < most; s.after++ {
		events = append(events, b.ring[(s.after+1)%keptEvents])
	}
	if s.after < b.last {
		return events, closed()
	}
	return events, b.more
}

// Next waits for one event. The error is the context's.
func (s *Subscriber) Next(ctx context.Context) (Event, error) {
	for {
		events, more := s.Take(1)
		if len(events) > 0 {
			return events[0], nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return Event{}, ctx.Err()
		}
	}
}

// Close ends the subscription.
func (s *Subscriber) Close() {
	s.bus.mu.Lock()
	defer s.bus.mu.Unlock()
	s.bus.subs--
}

func closed() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

func missed(after, before uint64) Event {
	return Event{ID: before, Time: time.Now(), Type: wire.EventMissed, Detail: fmt.Sprintf(
		"what happened after event %d is not kept any more (the last %d of a running trayd are): look anew with GET /v1/vms", after, keptEvents)}
}

// EventCounts is how many events there were, by type, and how many subscribers there are.
func (a *Agent) EventCounts() (counts map[string]uint64, subscribers int) {
	b := a.bus
	b.mu.Lock()
	defer b.mu.Unlock()
	counts = make(map[string]uint64, len(b.counts))
	for k, n := range b.counts {
		counts[k] = n
	}
	return counts, b.subs
}
