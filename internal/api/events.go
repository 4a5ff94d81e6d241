package api

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/trayd/trayd/internal/agent"
	"github.com/trayd/trayd/internal/wire"
)

const (
	// keepAlive is between comments on a silent stream, so that a client notices
	// a dead one.
	keepAlive = 20 * time.Second
)

// events streams what happens as server-sent events. Last-Event-ID, or ?after=ID,
// begins with what came after that event, as far as it is still kept.
func (s *Server) events(w http.ResponseWriter, r *http.Request) {
	after, err := afterID(r)
	if err != nil {
		writeProblem(w, &wire.Problem{Code: string(agent.BadRequest), Status: http.StatusBadRequest,
			Detail: "an event's id is a number: " + err.Error(), Next: "leave it out to begin with what comes next"})
		return
	}
	sub := s.Agent.Subscribe(after)
	defer sub.Close()
	out := http.NewResponseController(w)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	if out.Flush() != nil {
		return
	}
	alive := time.NewTicker(keepAlive)
	defer alive.Stop()
	for {
		_ = out.SetWriteDeadline(time.Now().Add(keepAlive + slowReader)) // unix sockets take deadlines
		var err error
		select {
		case <-r.Context().Done():
			return
		case <-s.closing.Done():
			return
		case e := <-sub.C:
			err = writeEvent(w, e)
		case <-alive.C:
			_, err = fmt.Fprint(w, ": still here\n\n")
		}
		if err != nil || out.Flush() != nil {
			return
		}
	}
}

func writeEvent(w http.ResponseWriter, e agent.Event) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "id: %d\nevent: %s\ndata: %s\n\n", e.ID, e.Type, b)
	return err
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
