package look

import (
	"sync"
	"time"
)

// Recent is a look whose result counts for a while, as long as nothing is known to have
// happened: for what is asked for more often than it can be looked at. Its zero value is
// ready; it may be used by several goroutines.
type Recent[T any] struct {
	shared Shared[seen[T]]

	mu         sync.Mutex // guards all below
	last       seen[T]
	refreshing bool
	hurry      chan struct{}  // of the look that goes on by itself; nil when it was told
	work       sync.WaitGroup // of looks that nobody waits for
}

// seen is the result of one look.
type seen[T any] struct {
	value T
	began time.Time // of the look
	took  time.Duration
	mark  uint64 // what was known to have happened then
}

// Looks may take a quarter of the time: a result counts for idle times as long as it took to
// get, of which a new one is begun in the middle; but for no longer than stretch times the
// limit.
const (
	idle    = 8
	stretch = 10
)

// limit is how long a result counts, at least.
func (s *seen[T]) limit(limit time.Duration) time.Duration {
	return min(max(limit, idle*s.took), stretch*limit)
}

// Do returns what f saw, at most limit before Do was called, and after what mark counts last
// changed. Where f takes long, limit is up to ten times as long. When half of that time is over
// f is called by itself, so that nobody has to wait for it; Wait waits for those calls.
//
// hurry is closed when somebody waits for f. As long as nobody does, f should spread its work
// over time: what is asked for meanwhile is answered by the same processors.
func (r *Recent[T]) Do(limit time.Duration, mark func() uint64, f func(hurry <-chan struct{}) T) T {
	now, marked := time.Now(), mark()
	r.mu.Lock()
	last := r.last
	limit = last.limit(limit)
	fresh := !last.began.IsZero() && last.mark == marked && now.Sub(last.began) < limit
	switch {
	case fresh && now.Sub(last.began) > limit/2 && !r.refreshing:
		r.refreshing, r.hurry = true, make(chan struct{})
		r.work.Add(1)
		go r.refresh(mark, f, r.hurry)
	case !fresh && r.hurry != nil: // ours begins when that one has ended
		close(r.hurry)
		r.hurry = nil
	}
	r.mu.Unlock()
	if fresh {
		return last.value
	}
	awaited := make(chan struct{})
	close(awaited)
	return r.look(mark, f, awaited).value
}

// refresh looks while nobody waits.
func (r *Recent[T]) refresh(mark func() uint64, f func(<-chan struct{}) T, hurry chan struct{}) {
	defer r.work.Done()
	r.look(mark, f, hurry)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refreshing, r.hurry = false, nil
}

func (r *Recent[T]) look(mark func() uint64, f func(<-chan struct{}) T, hurry <-chan struct{}) seen[T] {
	return r.shared.Do(func() seen[T] {
		n := seen[T]{began: time.Now(), mark: mark()}
		n.value = f(hurry)
		n.took = time.Since(n.began)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.last = n
		return n
	})
}

// Wait waits for the looks that go on by themselves. No Do may come after it.
func (r *Recent[T]) Wait() { r.work.Wait() }
