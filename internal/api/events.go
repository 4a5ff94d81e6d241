package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/trayd/trayd/internal/agent"
	"github.com/trayd/trayd/internal/wire"
)

const (
	// keepAlive is between comments on a silent stream, so that a client notices
	// a dead one.
	keepAlive = 20 * time.Second
	// comeBack is what a browser is told to wait before it asks again (retry:).
	comeBack = time.Second
	// atOnce is how many events one write has at most.
	atOnce = 64
)

// events streams what happens as server-sent events. Last-Event-ID, or ?after=ID,
// begins with what came after that event; an event of type missed comes first when not all of
// that is kept. ?vm= and ?type= leave others out; each may be there more than once.
func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	after, err := afterID(r)
	if err != nil {
		writeProblem(w, &wire.Problem{Code: string(agent.BadRequest), Status: http.StatusBadRequest,
			Detail: "an event's id is a number: " + err.Error(), Next: "leave it out to begin with what comes next"})
		return
	}
	sub := s.Agent.Subscribe(after)
	defer sub.Close()
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	out := http.NewResponseController(w)
	write := func(b []byte) bool {
		_ = out.SetWriteDeadline(time.Now().Add(slowReader)) // sockets take deadlines
		_, err := w.Write(b)
		return err == nil && out.Flush() == nil
	}
	if !write(fmt.Appendf(nil, "retry: %d\n\n", comeBack.Milliseconds())) {
		return
	}
	ctx, end := s.whileAllowed(r, r.Context())
	defer end()
	follow(ctx, s.closing.Done(), sub, wantedEvents(r.URL.Query()), write)
}

// follow writes events until ctx ends, the client doesn't read, or trayd stops.
func follow(ctx context.Context, closing <-chan struct{}, sub *agent.Subscriber, wanted func(*agent.Event) bool, write func([]byte) bool) {
	alive := time.NewTicker(keepAlive)
	defer alive.Stop()
	var frames bytes.Buffer
	for {
		events, more := sub.Take(atOnce)
		frames.Reset()
		for i := range events {
			if wanted(&events[i]) {
				frame(&frames, &events[i])
			}
		}
		if frames.Len() > 0 && !write(frames.Bytes()) {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-closing:
			return
		case <-more:
		case <-alive.C:
			if !write([]byte(": still here\n\n")) {
				return
			}
		}
	}
}

// wantedEvents is what a query's vm and type let through. What was missed may have been of
// any kind.
func wantedEvents(q url.Values) func(*agent.Event) bool {
	vms, types := q["vm"], q["type"]
	return func(e *agent.Event) bool {
		return e.Type == wire.EventMissed ||
			(len(vms) == 0 || slices.Contains(vms, e.VM)) && (len(types) == 0 || slices.Contains(types, e.Type))
	}
}

// frame appends an event as the stream has it.
func frame(b *bytes.Buffer, e *agent.Event) {
	data, err := json.Marshal(e)
	if err != nil { // strings and numbers always can be
		return
	}
	fmt.Fprintf(b, "id: %d\nevent: %s\ndata: %s\n\n", e.ID, e.Type, data)
}

func afterID(r *http.Request) (uint64, error) {
	id := r.Header.Get("Last-Event-ID")
	if id == "" {
		id = r.URL.Query().Get("after")
	}
	if id == "" {
		return 0, nil
	}
	return strconv.ParseUint(id, 10, 64)
}
