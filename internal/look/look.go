// Package look lets many who want to see the same thing at the same time see it by one look.
//
// A page, a monitor and three scripts that list a hundred machines at once would else have
// each machine asked five times over. What anybody gets was looked at after they had asked:
// nothing is kept, and nothing is older than the question.
package look

import "sync"

// Shared is one thing that is looked at. Its zero value is ready; it may be used by several
// goroutines.
type Shared[T any] struct {
	mu      sync.Mutex // guards all below
	running bool
	next    *look[T] // of those who have come since the running one began
}

// look is one for all who wait for it.
type look[T any] struct {
	turn  chan struct{} // closed when its first may begin
	done  chan struct{} // closed when value is set
	value T
}

// Do returns what f saw, which was called after Do was: for this caller, or for another who
// came at the same time. At any time at most one f runs, which should be bounded in time: a
// caller who comes meanwhile waits for two of them at most.
func (s *Shared[T]) Do(f func() T) T {
	s.mu.Lock()
	l, first := s.next, s.next == nil
	if first {
		l = &look[T]{turn: make(chan struct{}), done: make(chan struct{})}
		if s.running {
			s.next = l
		} else {
			s.running = true
			close(l.turn)
		}
	}
	s.mu.Unlock()
	if !first {
		<-l.done
		return l.value
	}
	<-l.turn
	defer s.end(l)
	l.value = f()
	return l.value
}

// end answers those who waited for a look, and lets the next one begin.
func (s *Shared[T]) end(l *look[T]) {
	close(l.done)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next == nil {
		s.running = false
		return
	}
	close(s.next.turn)
	s.next = nil
}
