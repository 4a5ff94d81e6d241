package access

import (
	"sync"
	"time"
)

// Sessions are those of browsers, which can send no token with each request. A session ends
// when it wasn't used for a while, at its end, and with trayd.
//
// It may be used by several goroutines.
type Sessions struct {
	mu  sync.Mutex // guards all
	all map[string]*session
}

type session struct {
	id      Identity
	scope   string
	began   time.Time
	used    time.Time
	oneTime bool // for Exchange, and nothing else
}

// Limits of sessions.
const (
	maxSessions    = 1000
	sessionLength  = 12 * time.Hour
	sessionIdle    = time.Hour
	oneTimeTokens  = 100             // that wait to be exchanged
	oneTimeTimeout = 2 * time.Minute // for a person to open the page
)

// NewSessions returns no session.
func NewSessions() *Sessions { return &Sessions{all: make(map[string]*session)} }

// Begin begins a session and returns its secret. It counts within its scope only: a page
// that is reached through one tunnel has nothing from a session of another.
func (s *Sessions) Begin(id Identity, scope string, now time.Time) string {
	return s.add(&session{id: id, scope: scope, began: now, used: now}, maxSessions)
}

// OneTime returns a secret that Exchange takes once.
func (s *Sessions) OneTime(id Identity, scope string, now time.Time) string {
	return s.add(&session{id: id, scope: scope, began: now, used: now, oneTime: true}, maxSessions+oneTimeTokens)
}

func (s *Sessions) add(n *session, limit int) string {
	secret := random(32)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tidy(n.began)
	for len(s.all) >= limit { // the one that wasn't used for the longest time
		var oldest string
		for k, o := range s.all {
			if oldest == "" || o.used.Before(s.all[oldest].used) {
				oldest = k
			}
		}
		delete(s.all, oldest)
	}
	s.all[hash(secret)] = n
	return secret
}

// Exchange begins a session with a one-time secret, which counts no more.
func (s *Sessions) Exchange(secret, scope string, now time.Time) (session string, id Identity, ok bool) {
	s.mu.Lock()
	s.tidy(now)
	o := s.all[hash(secret)]
	if o == nil || !o.oneTime || o.scope != scope {
		s.mu.Unlock()
		return "", Identity{}, false
	}
	delete(s.all, hash(secret))
	s.mu.Unlock()
	return s.Begin(o.id, scope, now), o.id, true
}

// Find is whose a session is.
func (s *Sessions) Find(secret, scope string, now time.Time) (Identity, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.all[hash(secret)]
	if o == nil || o.oneTime || o.scope != scope || o.over(now) {
		return Identity{}, false
	}
	o.used = now
	return o.id, true
}

// End ends a session.
func (s *Sessions) End(secret string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, hash(secret))
}

// EndScope ends all sessions of a scope.
func (s *Sessions) EndScope(scope string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, o := range s.all {
		if o.scope == scope {
			delete(s.all, k)
		}
	}
}

func (s *Sessions) tidy(now time.Time) {
	for k, o := range s.all {
		if o.over(now) {
			delete(s.all, k)
		}
	}
}

func (o *session) over(now time.Time) bool {
	idle := sessionIdle
	if o.oneTime {
		idle = oneTimeTimeout
	}
	return now.Sub(o.used) > idle || now.Sub(o.began) > sessionLength
}
