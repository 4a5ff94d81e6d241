package qmp

import (
	"encoding/json"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// maxEarly is how many events a connection keeps for its first subscriber. One can come in the same read as the reply
// that ends the handshake (a SHUTDOWN, say), before anybody had a chance to subscribe.
const maxEarly = 16

// An Event is something that QEMU says without being asked.
type Event struct {
	Name string          // such as DEVICE_TRAY_MOVED
	Data json.RawMessage // nil when the event has none; shared by all subscribers: read it, don't write to it
	Time time.Time       // by the clock of QEMU's host, in microseconds; zero when QEMU could not tell
	Seq  uint64          // counts this connection's events from 1 on, those too that a subscriber missed
}

// A Subscription receives the events of one connection from the moment of [Conn.Subscribe] on.
type Subscription struct {
	// C is closed when the connection ended or Close was called; what was buffered can still be read then.
	C <-chan Event

	c      chan Event
	hub    *hub
	missed atomic.Uint64
}

// Missed returns how many events came while the buffer was full, and were dropped. When it grows, ask QEMU for its
// state.
func (s *Subscription) Missed() uint64 { return s.missed.Load() }

// Close ends the subscription. It may be called more than once and from any goroutine.
func (s *Subscription) Close() { s.hub.remove(s) }

func (s *Subscription) deliver(e Event) {
	select {
	case s.c <- e:
	default:
		s.missed.Add(1)
	}
}

func (s *Subscription) end() { close(s.c) }

// Subscribe begins to receive events into a buffer of that many, at least one. When the buffer is full further events
// are dropped and counted, because the connection's replies stand behind them. The first subscriber also gets the
// events, up to 16, that came before it. After the connection has ended the channel is closed from the beginning.
func (c *Conn) Subscribe(buffer int) *Subscription {
	s := &Subscription{c: make(chan Event, max(buffer, 1)), hub: &c.events}
	s.C = s.c
	dropped := c.events.add(s)
	s.missed.Add(dropped)
	return s
}

// A sink is where events go. Its methods are called with the hub's lock held, so they never block, and nothing is
// delivered after the end.
type sink interface {
	deliver(Event)
	end()
}

// A hub hands the events of one connection to everybody who listens.
type hub struct {
	// mu guards all that follows, and keeps a delivery and the closing of its channel apart.
	mu      sync.Mutex
	sinks   []sink
	ended   bool
	started bool    // somebody has subscribed
	early   []Event // the last ones before that
	dropped uint64  // how many of them there was no room for
}

// add takes s in, after the early events if it is the first one, and returns how many of those have been dropped.
func (h *hub) add(s sink) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.started = true
	for _, e := range h.early {
		s.deliver(e)
	}
	dropped := h.dropped
	h.early, h.dropped = nil, 0
	if h.ended {
		s.end()
	} else {
		h.sinks = append(h.sinks, s)
	}
	return dropped
}

// remove ends s unless it has ended.
func (h *hub) remove(s sink) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if i := slices.Index(h.sinks, s); i >= 0 {
		h.sinks = slices.Delete(h.sinks, i, i+1)
		s.end()
	}
}

// deliver never blocks.
func (h *hub) deliver(e Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.started {
		if len(h.early) == maxEarly {
			h.early = slices.Delete(h.early, 0, 1)
			h.dropped++
		}
		h.early = append(h.early, e)
		return
	}
	for _, s := range h.sinks {
		s.deliver(e)
	}
}

// end ends everybody. Early events stay for a subscriber that comes late.
func (h *hub) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ended = true
	for _, s := range h.sinks {
		s.end()
	}
	h.sinks = nil
}
