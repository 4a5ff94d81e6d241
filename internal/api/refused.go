package api

import (
	"fmt"
	"maps"
	"net/http"
	"sync"
	"time"

	"github.com/trayd/trayd/internal/access"
	"github.com/trayd/trayd/internal/wire"
)

// refusedEvery is how often a refused request of one identity is told of at most: who may only
// look could else fill the audit log.
const refusedEvery = time.Second

// refusals are those that were told of a moment ago.
type refusals struct {
	mu   sync.Mutex // guards last
	last map[string]time.Time
}

// take reports whether a refusal of somebody's is told of.
func (f *refusals) take(who string, now time.Time) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	over := func(_ string, at time.Time) bool { return now.Sub(at) >= refusedEvery }
	maps.DeleteFunc(f.last, over)
	if _, told := f.last[who]; told {
		return false
	}
	f.last[who] = now
	return true
}

// auditRefused leaves a line of what somebody asked for and may not do.
func (s *Server) auditRefused(r *http.Request, id access.Identity, to *route) {
	if s.refused.take(id.Key, time.Now()) {
		s.Log.Warn("refused", "audit", true, "by", id.Name, "verb", "ask", "request", fmt.Sprintf("%s %.200s", r.Method, r.URL.Path),
			"code", string(wire.Forbidden), "error", fmt.Sprintf("the role is %s; this needs %s", id.Role, to.role))
	}
}
