package agent

import (
	"sync"
	"time"
)

// The types of events.
const (
	EventVMAttached    = "vm-attached"
	EventVMLost        = "vm-lost"     // the monitor's connection ended
	EventVMEnded       = "vm-ended"    // the machine's process ended
	EventStarted       = "started"     // an operation began
	EventWaiting       = "waiting"     // it waits for the guest
	EventFailed        = "failed"      // it was refused or failed; the drive is as it was, or the event before says how
	EventIncomplete    = "incomplete"  // it is done, and something is still to be cleaned up
	EventUnchanged     = "unchanged"   // it is as was asked already: nothing was moved
	EventLoaded        = "loaded"      // a disc of ours is in
	EventEjected       = "ejected"     // a disc is out
	EventRolledBack    = "rolled-back" // the drive is as it was before
	EventUnsettled     = "unsettled"   // the outcome is not known yet
	EventSettled       = "settled"     // an outcome was found out afterwards
	EventGuestEjected  = "guest-ejected"
	EventTrayPutRight  = "tray-put-right" // a late answer of a guest was undone
	EventReleased      = "released"       // a disc of ours left by other hands, or a volume or node is released
	EventReleaseWaits  = "release-waits"  // a volume can't be released yet
	EventVolumeCorrupt = "volume-corrupt" // a verity volume doesn't hold what its hashes say
	EventImageAdded    = "image-added"
	EventImageRemoved  = "image-removed"
	EventConflict      = "conflict" // somebody else's disc is in
)

// Event is something that happened. IDs rise by one; they start anew with the
// agent.
type Event struct {
	ID        uint64    `json:"id"`
	Time      time.Time `json:"time"`
	Type      string    `json:"type"`
	VM        string    `json:"vm"`
	Drive     string    `json:"drive,omitempty"`
	Operation string    `json:"operation,omitempty"`
	Detail    string    `json:"detail,omitempty"`
}

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
