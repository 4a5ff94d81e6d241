package look

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestShared: what anybody gets was looked at after they had asked, and those who ask at once
// share it.
func TestShared(t *testing.T) {
	var (
		s     Shared[int64]
		truth atomic.Int64 // it grows all the time
		looks atomic.Int64
		work  sync.WaitGroup
	)
	stop := make(chan struct{})
	work.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				truth.Add(1)
			}
		}
	})
	var askers sync.WaitGroup
	for range 50 {
		askers.Go(func() {
			for range 40 {
				asked := truth.Load()
				seen := s.Do(func() int64 {
					looks.Add(1)
					v := truth.Load()
					time.Sleep(time.Millisecond)
					return v
				})
				if seen < asked {
					t.Errorf("asked at %d, and got what was at %d", asked, seen)
				}
			}
		})
	}
	askers.Wait()
	close(stop)
	work.Wait()
	require.Less(t, looks.Load(), int64(200), "2000 asked")
	require.False(t, s.running)
	require.Nil(t, s.next)
}

// TestRecent: what is answered is never older than the limit, nor than what happened.
func TestRecent(t *testing.T) {
	var (
		r     Recent[int64]
		truth atomic.Int64
		mark  atomic.Uint64
		looks atomic.Int64
	)
	began := time.Now()
	ask := func(limit time.Duration) int64 {
		return r.Do(limit, mark.Load, func(<-chan struct{}) int64 { looks.Add(1); return truth.Load() })
	}
	require.Zero(t, ask(time.Hour))
	truth.Store(1)
	require.Zero(t, ask(time.Hour), "nothing is known to have happened")
	mark.Add(1)
	require.EqualValues(t, 1, ask(time.Hour), "something has")
	truth.Store(2)
	time.Sleep(2 * time.Millisecond)
	require.EqualValues(t, 2, ask(time.Millisecond), "too old")
	truth.Store(3)
	time.Sleep(30 * time.Millisecond)
	before := looks.Load()
	if got := ask(50 * time.Millisecond); time.Since(began) < 50*time.Millisecond {
		require.EqualValues(t, 2, got, "old enough to be looked at again, and nobody waits")
	}
	r.Wait()
	require.Equal(t, before+1, looks.Load())
	require.EqualValues(t, 3, ask(time.Hour))
}

// TestRecentHurries: a look that goes on by itself may take its time until somebody waits.
func TestRecentHurries(t *testing.T) {
	var (
		r       Recent[int]
		mark    atomic.Uint64
		begun   = make(chan struct{})
		hurried atomic.Bool
	)
	look := func(hurry <-chan struct{}) int {
		select {
		case <-hurry:
			return 1
		default:
		}
		close(begun)
		<-hurry // for ever, unless it is told
		hurried.Store(true)
		return 2
	}
	const limit = time.Minute
	require.Equal(t, 1, r.Do(limit, mark.Load, look), "the first is waited for")
	r.last.began = r.last.began.Add(-limit * 3 / 4)
	require.Equal(t, 1, r.Do(limit, mark.Load, look), "nobody waits for the one that begins now")
	<-begun
	require.Equal(t, 1, r.Do(limit, mark.Load, look))
	require.False(t, hurried.Load())
	mark.Add(1)
	require.Equal(t, 1, r.Do(limit, mark.Load, look), "something has happened: one of one's own")
	require.True(t, hurried.Load())
	r.Wait()
	require.False(t, r.refreshing)
}
