package api

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/trayd/trayd/internal/agent"
	"github.com/trayd/trayd/internal/wire"
)

// Limits of what is kept of requests that have an Idempotency-Key
// (draft-ietf-httpapi-idempotency-key-header).
const (
	maxRepeats    = 1000 // of all
	maxRepeatsOne = 200  // of one identity, so that nobody has others' forgotten
	repeatTime    = 24 * time.Hour
	maxRepeatKey  = 255       // bytes
	maxRepeatKept = 256 << 10 // of an answer, in bytes
)

// repeats are the answers to requests that may come again: a client that lost the connection
// before the answer sends the same key with the same request, and gets the answer to the first
// one. They are kept in memory: after a restart of trayd a request counts as a new one, as all
// without a key do.
type repeats struct {
	mu    sync.Mutex // guards all below
	all   map[string]*repeat
	order []*repeat // as they began
}

// repeat is one request with its answer.
type repeat struct {
	who   string // the identity's key
	key   string // with that and the request's line
	body  [sha256.Size]byte
	began time.Time
	done  chan struct{} // closed when the rest is set
	kept  bool
	again recorded
}

type recorded struct {
	status int
	header http.Header
	body   []byte
}

func newRepeats() *repeats { return &repeats{all: make(map[string]*repeat)} }

// once carries a request out, or repeats the answer to an earlier one of the same key.
func (s *Server) once(to *route, w *reply, r *http.Request) {
	key := r.Header.Get("Idempotency-Key")
	who := identity(r).Key                                                                                  // "" where nobody has to say who they are: their answers aren't kept
	if key == "" || who == "" || to == nil || r.Method != http.MethodPost && r.Method != http.MethodPatch { // the others are idempotent by themselves
		s.mux.ServeHTTP(w, r)
		return
	}
	if len(key) > maxRepeatKey {
		badRequest(w, errors.New("an Idempotency-Key has at most 255 characters"))
		return
	}
	body, err := readBody(w, r, to.limit())
	if err != nil {
		badRequest(w, err)
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	e, first := s.repeats.begin(who, r.Method+" "+r.URL.RequestURI()+" "+key, sha256.Sum256(body))
	if first {
		// It goes on when the client goes, who may send it again for the answer.
		ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
		defer cancel()
		defer context.AfterFunc(s.closing, cancel)()
		r = r.WithContext(ctx)
		tape := &recorder{reply: w}
		defer s.repeats.end(e, tape)
		s.mux.ServeHTTP(tape, r)
		return
	}
	if e.body != sha256.Sum256(body) {
		writeProblem(w, &wire.Problem{Code: "idempotency-key-reused", Status: http.StatusUnprocessableEntity,
			Detail: "this Idempotency-Key was sent with another request", Next: "use a new key for each request, and the same one only to send it again"})
		return
	}
	select {
	case <-e.done:
	case <-r.Context().Done():
		return
	}
	if !e.kept {
		writeProblem(w, &wire.Problem{Code: string(agent.BadRequest), Status: http.StatusConflict,
			Detail: "the first request of this Idempotency-Key was not carried out", Next: "send it again"})
		return
	}
	for name, values := range e.again.header {
		w.Header()[name] = values
	}
	w.Header().Set("Idempotency-Replayed", "true")
	w.WriteHeader(e.again.status)
	_, _ = w.Write(e.again.body) // a client that has gone is no error of ours
}

// begin returns the request of that key, and whether it is a new one.
func (c *repeats) begin(who, key string, body [sha256.Size]byte) (*repeat, bool) {
	now := time.Now()
	key = who + " " + key
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.order) > 0 && now.Sub(c.order[0].began) > repeatTime {
		c.forget(c.order[0])
	}
	if e := c.all[key]; e != nil {
		return e, false
	}
	c.makeRoom(who)
	e := &repeat{who: who, key: key, body: body, began: now, done: make(chan struct{})}
	c.all[key] = e
	c.order = append(c.order, e)
	return e, true
}

// makeRoom forgets the oldest of who has too many; where all together are too many, of who
// has the most.
func (c *repeats) makeRoom(who string) {
	count := make(map[string]int)
	for _, e := range c.order {
		count[e.who]++
	}
	if count[who] < maxRepeatsOne {
		if len(c.order) < maxRepeats {
			return
		}
		for other, n := range count {
			if n > count[who] {
				who = other
			}
		}
	}
	if i := slices.IndexFunc(c.order, func(e *repeat) bool { return e.who == who }); i >= 0 {
		c.forget(c.order[i])
	} else { // everybody has one
		c.forget(c.order[0])
	}
}

func (c *repeats) forget(e *repeat) {
	if c.all[e.key] == e {
		delete(c.all, e.key)
		c.order = slices.DeleteFunc(c.order, func(o *repeat) bool { return o == e })
	}
}

// end keeps the answer. One that says that nothing was done (refused, for now) isn't kept, so
// that the request may be sent again.
func (c *repeats) end(e *repeat, tape *recorder) {
	status := tape.answered()
	e.kept = tape.sent && !tape.tooLong && status != http.StatusTooManyRequests && status < http.StatusInternalServerError
	e.again = recorded{status: status, header: tape.Header().Clone(), body: tape.body}
	close(e.done)
	if e.kept {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forget(e)
}

// recorder keeps an answer while it is sent.
type recorder struct {
	*reply
	body          []byte
	sent, tooLong bool
}

func (t *recorder) WriteHeader(status int) {
	t.sent = true
	t.reply.WriteHeader(status)
}

func (t *recorder) Write(b []byte) (int, error) {
	t.sent = true
	if len(t.body)+len(b) > maxRepeatKept {
		t.tooLong = true
	} else {
		t.body = append(t.body, b...)
	}
	return t.reply.Write(b)
}
