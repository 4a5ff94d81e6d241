package agent

import (
	"sync"
	"time"
)

// keptEvents is how many past events a subscriber that comes back may ask for.
const keptEvents = 256

// bus hands events to any number of subscribers and never waits for one.
type bus struct {
	mu     sync.Mutex // guards all below
	last   uint64
	recent []Event // at most keptEvents, oldest first
	subs   map[*Subscriber]struct{}
}

// Subscriber receives events. A subscriber that doesn't read loses events; the
// gap shows in the ids.
type Subscriber struct {
	C   <-chan Event
	c   chan Event
	bus *bus
}

func (b *bus) publish(e Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last++
	e.ID, e.Time = b.last, time.Now()
	if len(b.recent) == keptEvents {
		b.recent = append(b.recent[:0], b.recent[1:]...)
	}
	b.recent = append(b.recent, e)
	for s := range b.subs {
		select {
		case s.c <- e:
		default:
		}
	}
}

// subscribe starts with the events after the given id that are still kept; an id
// of 0 starts with what comes next.
func (b *bus) subscribe(after uint64) *Subscriber {
	c := make(chan Event, 2*keptEvents)
	s := &Subscriber{C: c, c: c, bus: b}
	b.mu.Lock()
	defer b.mu.Unlock()
	if after > 0 {
		for _, e := range b.recent {
			if e.ID > after {
				c <- e
			}
		}
	}
	if b.subs == nil {
		b.subs = make(map[*Subscriber]struct{})
	}
	b.subs[s] = struct{}{}
	return s
}

// Close ends the subscription.
func (s *Subscriber) Close() {
	s.bus.mu.Lock()
	defer s.bus.mu.Unlock()
	delete(s.bus.subs, s)
}
