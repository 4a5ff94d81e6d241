package access

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// Sessions are those of browsers, which can send no token with each request. A session ends
// when it wasn't used for a while, and at its end; not with trayd, which has them in its
// state file: a page goes on when trayd is upgraded. What is kept of one doesn't let anybody
// in.
//
// It may be used by several goroutines.
type Sessions struct {
	store Store

	mu  sync.Mutex // guards all, and that the store follows it
	all map[string]*session
}

// session is one as it is stored, by the hash of its secret.
type session struct {
	ID      Identity  `json:"id"`
	Scope   string    `json:"scope"`
	Began   time.Time `json:"began"`
	used    time.Time // not kept: a look would be a write
	oneTime bool      // for Exchange, and nothing else; not kept
}

// Limits of sessions.
const (
	sessionKey     = "session/"
	maxSessions    = 1000 // of all
	maxSessionsOne = 100  // of one identity, so that nobody ends others'
	sessionLength  = 12 * time.Hour
	sessionIdle    = time.Hour
	oneTimeTokens  = 100             // that wait to be exchanged
	oneTimeTimeout = 2 * time.Minute // for a person to open the page
)

// NewSessions reads the sessions that are kept.
func NewSessions(store Store, now time.Time) (*Sessions, error) {
	s := &Sessions{store: store, all: make(map[string]*session)}
	err := load(store, sessionKey, func(name string, o *session) {
		o.used = now
		s.all[name] = o
	})
	return s, err
}

// load reads what a store has with a prefix.
func load[T any](store Store, prefix string, add func(name string, v *T)) (failed error) {
	store.Range(func(key string, value json.RawMessage) bool {
		name, ok := strings.CutPrefix(key, prefix)
		if !ok {
			return true
		}
		v := new(T)
		if failed = json.Unmarshal(value, v); failed != nil {
			failed = fmt.Errorf("%s in the state file: %w", key, failed)
			return false
		}
		add(name, v)
		return true
	})
	return failed
}

// Begin begins a session and returns its secret. It counts within its scope only: a page
// that is reached through one tunnel has nothing from a session of another. The error is the
// store's.
func (s *Sessions) Begin(id Identity, scope string, now time.Time) (string, error) {
	return s.add(&session{ID: id, Scope: scope, Began: now.UTC(), used: now}, maxSessions)
}

// OneTime returns a secret that Exchange takes once.
func (s *Sessions) OneTime(id Identity, scope string, now time.Time) (string, error) {
	return s.add(&session{ID: id, Scope: scope, Began: now.UTC(), used: now, oneTime: true}, maxSessions+oneTimeTokens)
}

func (s *Sessions) add(n *session, limit int) (string, error) {
	secret := random(32)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tidy(n.used)
	for s.count(n.ID.Key) >= maxSessionsOne {
		s.removeOldest(func(o *session) bool { return o.ID.Key == n.ID.Key })
	}
	for len(s.all) >= limit {
		s.removeOldest(func(*session) bool { return true })
	}
	if !n.oneTime {
		if err := s.store.Put(sessionKey+hash(secret), n); err != nil {
			return "", err
		}
	}
	s.all[hash(secret)] = n
	return secret, nil
}

// count is how many sessions an identity has.
func (s *Sessions) count(key string) (n int) {
	for _, o := range s.all {
		if o.ID.Key == key {
			n++
		}
	}
	return n
}

// removeOldest removes the one, among some, that wasn't used for the longest time.
func (s *Sessions) removeOldest(among func(*session) bool) {
	var oldest string
	for k, o := range s.all {
		if among(o) && (oldest == "" || o.used.Before(s.all[oldest].used)) {
			oldest = k
		}
	}
	s.remove(oldest)
}

// remove forgets a session. Where the store can't, it is read again with the next start, and
// its time is over all the same.
func (s *Sessions) remove(name string) {
	if o := s.all[name]; o != nil && !o.oneTime {
		_ = s.store.Delete(sessionKey + name)
	}
	delete(s.all, name)
}

// Exchange begins a session with a one-time secret, which counts no more.
func (s *Sessions) Exchange(secret, scope string, now time.Time) (session string, id Identity, ok bool) {
	s.mu.Lock()
	s.tidy(now)
	o := s.all[hash(secret)]
	if o == nil || !o.oneTime || o.Scope != scope {
		s.mu.Unlock()
		return "", Identity{}, false
	}
	s.remove(hash(secret))
	s.mu.Unlock()
	session, err := s.Begin(o.ID, scope, now)
	return session, o.ID, err == nil
}

// Find is whose a session is.
func (s *Sessions) Find(secret, scope string, now time.Time) (Identity, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.all[hash(secret)]
	if o == nil || o.oneTime || o.Scope != scope || o.over(now) {
		return Identity{}, false
	}
	o.used = now
	return o.ID, true
}

// End ends a session.
func (s *Sessions) End(secret string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remove(hash(secret))
}

// EndScope ends all sessions of a scope.
func (s *Sessions) EndScope(scope string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, o := range s.all {
		if o.Scope == scope {
			s.remove(k)
		}
	}
}

func (s *Sessions) tidy(now time.Time) {
	for k, o := range s.all {
		if o.over(now) {
			s.remove(k)
		}
	}
}

func (o *session) over(now time.Time) bool {
	idle := sessionIdle
	if o.oneTime {
		idle = oneTimeTimeout
	}
	return now.Sub(o.used) > idle || now.Sub(o.Began) > sessionLength
}

// Ways are those by which somebody brings browsers to the page, each with a scope of sessions.
// They are kept in the state file, as their sessions are.
//
// It may be used by several goroutines.
type Ways struct {
	store Store

	mu  sync.Mutex // guards all, and that the store follows it
	all map[string]*way
}

// way is one as it is stored.
type way struct {
	Key  string    `json:"key"` // of the identity that made it
	Made time.Time `json:"made"`
}

const (
	wayKey     = "ui/"
	maxWays    = 100 // of all; the oldest is forgotten for one more
	maxWaysOne = 20  // of one identity, whose oldest is, so that nobody ends others'
)

// NewWays reads the ways that are kept.
func NewWays(store Store) (*Ways, error) {
	w := &Ways{store: store, all: make(map[string]*way)}
	return w, load(store, wayKey, func(name string, one *way) { w.all[name] = one })
}

// Make makes a way for somebody, and says which others are forgotten for it.
func (w *Ways) Make(id Identity, now time.Time) (scope string, forgotten []string, err error) {
	scope = NewID()
	w.mu.Lock()
	defer w.mu.Unlock()
	forgotten = w.excess(id.Key, now)
	for _, name := range forgotten {
		w.remove(name)
	}
	one := &way{Key: id.Key, Made: now.UTC()}
	if err := w.store.Put(wayKey+scope, one); err != nil {
		return "", forgotten, err
	}
	w.all[scope] = one
	return scope, forgotten, nil
}

// excess are the ways whose time is over, and the one that has to make room for another one of
// somebody's.
func (w *Ways) excess(key string, now time.Time) (all []string) {
	var names, own []string
	for name, one := range w.all {
		if now.Sub(one.Made) > sessionLength {
			all = append(all, name)
			continue
		}
		names = append(names, name)
		if one.Key == key {
			own = append(own, name)
		}
	}
	if len(own) >= maxWaysOne {
		names = own
	} else if len(names) < maxWays {
		return all
	}
	return append(all, slices.MinFunc(names, func(a, b string) int { return w.all[a].Made.Compare(w.all[b].Made) }))
}

// MadeBy reports whether a way is somebody's.
func (w *Ways) MadeBy(scope string, id Identity) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	one := w.all[scope]
	return one != nil && one.Key == id.Key
}

// Remove forgets a way.
func (w *Ways) Remove(scope string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.remove(scope)
}

func (w *Ways) remove(scope string) {
	_ = w.store.Delete(wayKey + scope) // where that fails, its sessions' time is over all the same
	delete(w.all, scope)
}
