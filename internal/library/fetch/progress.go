package fetch

import (
	"context"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// Phase is what a job does just now.
type Phase string

// The phases.
const (
	Connecting Phase = "connecting" // until the server answers
	Hashing    Phase = "hashing"    // what is there from before
	Receiving  Phase = "receiving"
	Waiting    Phase = "waiting" // before another attempt
	Done       Phase = "done"
	Ended      Phase = "ended" // with an error
)

// Progress is how far a job is.
type Progress struct {
	Phase   Phase
	Bytes   int64         // of the file that are there, or hashed
	Total   int64         // -1: the server doesn't say
	Rate    float64       // bytes a second, smoothed over some seconds
	ETA     time.Duration // until the end at that rate; -1: unknown
	Attempt int           // of this mirror, from 1 on
	Mirror  int           // index in Job.URLs
	URL     string        // without its query
	Err     *Error        // of the attempt before, while Waiting; of the job, when Ended
	State   State         // to be kept; it changes with Bytes and with the content
}

const (
	tick      = 250 * time.Millisecond // between two calls
	smoothing = 5 * time.Second        // over which the rate is an average
)

// meter gathers progress and passes it on.
type meter struct {
	tell func(Progress) // may be nil

	mu    sync.Mutex // guards the rest, and that tell is called by one at a time
	p     Progress
	base  int64        // bytes before those of count
	count func() int64 // of the body or the hash that runs; may be nil
	rated time.Time    // when Rate was reckoned
	at    int64        // Bytes then
}

func newMeter(tell func(Progress), s State) *meter {
	return &meter{tell: tell, p: Progress{Total: -1, ETA: -1, State: s}}
}

// change changes what is told, and tells it.
func (m *meter) change(f func(*Progress)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f(&m.p)
	m.told(time.Now())
}

// note changes what is told the next time.
func (m *meter) note(f func(*Progress)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f(&m.p)
}

func (m *meter) phase(p Phase) {
	m.change(func(now *Progress) { now.Phase, now.Err = p, nil })
}

func (m *meter) ended(err *Error) {
	m.change(func(p *Progress) { p.Phase, p.Err, p.Rate, p.ETA = Ended, err, 0, -1 })
}

// told is called with the lock.
func (m *meter) told(now time.Time) {
	if m.count != nil {
		m.p.Bytes = m.base + m.count()
	}
	if m.tell != nil {
		m.tell(m.p)
	}
}

// run tells from time to time while something counts from base on. The function that it
// returns ends that.
func (m *meter) run(ctx context.Context, phase Phase, base int64, count func() int64) (stop func()) {
	m.mu.Lock()
	m.base, m.count, m.rated, m.at = base, count, time.Now(), base
	m.p.Phase, m.p.Err, m.p.Rate, m.p.ETA = phase, nil, 0, -1
	m.told(m.rated)
	m.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		t := time.NewTicker(tick)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case now := <-t.C:
				m.mu.Lock()
				m.rate(now)
				m.told(now)
				m.mu.Unlock()
			}
		}
	}()
	return func() {
		cancel()
		<-done
		m.mu.Lock()
		defer m.mu.Unlock()
		m.p.Bytes, m.count = m.base+m.count(), nil
	}
}

// rate is called with the lock.
func (m *meter) rate(now time.Time) {
	bytes := m.base + m.count()
	passed := now.Sub(m.rated)
	if passed <= 0 {
		return
	}
	current := float64(bytes-m.at) / passed.Seconds()
	if m.p.Rate == 0 {
		m.p.Rate = current
	} else {
		weight := 1 - math.Exp(-passed.Seconds()/smoothing.Seconds())
		m.p.Rate += weight * (current - m.p.Rate)
	}
	m.rated, m.at = now, bytes
	m.p.ETA = -1
	if left := m.p.Total - bytes; m.p.Total >= 0 && left >= 0 && m.p.Rate >= 1 {
		m.p.ETA = time.Duration(min(float64(left)/m.p.Rate, 1e9)) * time.Second
	}
}

// counted counts what is written to it.
type counted struct{ bytes atomic.Int64 }

func (c *counted) Write(p []byte) (int, error) {
	c.bytes.Add(int64(len(p)))
	return len(p), nil
}
