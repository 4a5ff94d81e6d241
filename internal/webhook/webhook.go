package webhook

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/trayd/trayd/internal/wire"
)

// Hook is one receiver.
type Hook struct {
	URL        string
	SecretFile string
	Types, VMs []string // of the events that it gets; empty: all
	CAFile     string   // its certificate is signed by one of these besides the system's; "" for none
}

// The results of Counts.
const (
	Delivered = "delivered"
	GivenUp   = "given-up" // refused for good, or not taken within a day
	Retried   = "retried"  // a try that is made again
	Dropped   = "dropped"  // the oldest of too many that waited
)

// Options are what all hooks share.
type Options struct {
	// DialContext makes the connections; nil is the ordinary way.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)
	Version     string // of trayd, for User-Agent
	Log         *slog.Logger

	limits limits // shorter in tests
}

// limits are how long things may take, and how much may wait.
type limits struct {
	queue           int           // events that wait for one hook
	request         time.Duration // one request with its answer
	first, most     time.Duration // pauses between tries: the first, doubled up to the most
	life            time.Duration // of an event, from when it happened to its last try
	mostAnswerBytes int64         // of an answer that are read, so that its connection is used again
}

func ordinary() limits {
	return limits{queue: 1000, request: 15 * time.Second, first: time.Second, most: 5 * time.Minute, life: 24 * time.Hour, mostAnswerBytes: 64 << 10}
}

// Sender posts events. Its methods are safe for concurrent use.
type Sender struct {
	o      Options
	ctx    context.Context
	cancel context.CancelFunc
	work   sync.WaitGroup // a goroutine for each hook

	mu     sync.Mutex // guards below
	hooks  []*hook
	closed bool

	tally  sync.Mutex // guards counts; the last to be taken
	counts map[string]uint64
}

// hook is a receiver with what waits for it.
type hook struct {
	Hook
	s      *Sender
	log    *slog.Logger
	client *http.Client
	stop   context.CancelFunc
	wake   chan struct{} // holds a token when something came

	mu      sync.Mutex // guards below
	queue   []message
	dropped int // since the last one that was taken
}

// message is an event on its way.
type message struct {
	id    string // the same for every try
	event uint64
	body  []byte
	born  time.Time
}

// New returns a sender without hooks, which works until Close.
func New(o Options) *Sender {
	if o.limits == (limits{}) {
		o.limits = ordinary()
	}
	s := &Sender{o: o, counts: make(map[string]uint64)}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// Configure replaces the hooks. One that stays as it was keeps what waits for it.
func (s *Sender) Configure(hooks []Hook) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	old := s.hooks
	s.hooks = nil
	for _, c := range hooks {
		i := slices.IndexFunc(old, func(h *hook) bool { return h.same(c) })
		if i >= 0 {
			s.hooks = append(s.hooks, old[i])
			old = slices.Delete(old, i, i+1)
			continue
		}
		s.hooks = append(s.hooks, s.begin(c))
	}
	for _, h := range old {
		h.stop()
		if n := h.waiting(); n > 0 {
			h.log.Warn("a webhook is no longer configured: what waited for it is dropped", "dropped", n)
		}
	}
}

func (s *Sender) begin(c Hook) *hook {
	ctx, stop := context.WithCancel(s.ctx)
	h := &hook{Hook: c, s: s, log: s.o.Log.With("webhook", safeURL(c.URL)), stop: stop, wake: make(chan struct{}, 1)}
	h.client = h.newClient()
	s.work.Go(func() {
		defer stop()
		defer h.client.CloseIdleConnections()
		h.run(ctx)
	})
	return h
}

func (h *hook) same(c Hook) bool {
	return h.URL == c.URL && h.SecretFile == c.SecretFile && h.CAFile == c.CAFile && slices.Equal(h.Types, c.Types) && slices.Equal(h.VMs, c.VMs)
}

// Close ends all tries, and waits for that.
func (s *Sender) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.work.Wait()
}

// Counts is how many tries and events came to which end, and how many events wait.
func (s *Sender) Counts() (counts map[string]uint64, waiting int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.hooks {
		waiting += h.waiting()
	}
	s.tally.Lock()
	defer s.tally.Unlock()
	return maps.Clone(s.counts), waiting
}

func (s *Sender) count(result string) {
	s.tally.Lock()
	defer s.tally.Unlock()
	s.counts[result]++
}

// Deliver queues an event for all hooks that want it, and waits for nothing.
func (s *Sender) Deliver(e wire.Event) {
	s.mu.Lock()
	hooks := slices.Clone(s.hooks)
	s.mu.Unlock()
	var body []byte
	for _, h := range hooks {
		if !h.wants(e) {
			continue
		}
		if body == nil {
			var err error
			if body, err = json.Marshal(e); err != nil {
				return // strings and numbers always can be
			}
		}
		h.push(message{id: "msg_" + rand.Text(), event: e.ID, body: body, born: time.Now()})
	}
}

// wants reports whether the hook gets an event. What was missed may have been of any kind.
func (h *hook) wants(e wire.Event) bool {
	return e.Type == wire.EventMissed ||
		(len(h.Types) == 0 || slices.Contains(h.Types, e.Type)) && (len(h.VMs) == 0 || slices.Contains(h.VMs, e.VM))
}

func (h *hook) push(m message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.queue) == h.s.o.limits.queue {
		h.queue = h.queue[1:]
		h.s.count(Dropped)
		if h.dropped++; h.dropped == 1 {
			h.log.Warn("too many events wait for a webhook: the oldest are dropped", "waiting", len(h.queue))
		}
	}
	h.queue = append(h.queue, m)
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

func (h *hook) waiting() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.queue)
}

// take removes the oldest message.
func (h *hook) take() (m message, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.queue) == 0 {
		h.queue = nil // what it held once is let go of
		return message{}, false
	}
	m = h.queue[0]
	h.queue = h.queue[1:]
	if h.dropped > 0 {
		h.log.Warn("events were dropped before they could be posted", "dropped", h.dropped, "next", m.event)
		h.dropped = 0
	}
	return m, true
}
