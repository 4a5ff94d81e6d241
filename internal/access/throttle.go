package access

import (
	"net/netip"
	"sync"
	"time"
)

// Throttle slows down who tries secrets: after freeFailures wrong ones from an address each
// further one makes it wait twice as long. Tokens of 256 bits can't be guessed; it keeps the
// log and the processor from being filled by those who try. Secrets of a token that there is
// count by themselves, so that nobody behind the same address is kept out by others' wrong
// ones.
//
// It may be used by several goroutines.
type Throttle struct {
	mu  sync.Mutex // guards all
	all map[suspect]*failures
}

// suspect is who tries what.
type suspect struct {
	from  netip.Prefix
	token string // the id of one that there is; "" for all others
}

type failures struct {
	count int
	until time.Time // when the next attempt is looked at
	last  time.Time
}

// Limits of a Throttle.
const (
	freeFailures  = 5
	firstWait     = time.Second
	longestWait   = time.Minute
	forgetAfter   = 15 * time.Minute
	maxThrottled  = 4096 // addresses; beyond that the one that failed the longest ago is forgotten
	sharedBitsV6  = 64   // who has one address of IPv6 has so many
	failureShifts = 6    // 2^6 s is above longestWait
)

// NewThrottle returns one that has seen nothing.
func NewThrottle() *Throttle { return &Throttle{all: make(map[suspect]*failures)} }

// Wait is how long an address has to wait before its next attempt at a token is looked at; 0
// for now.
func (t *Throttle) Wait(from netip.Addr, token string, now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f := t.all[suspect{Neighbours(from), token}]; f != nil {
		return max(0, f.until.Sub(now))
	}
	return 0
}

// Failed counts a wrong secret.
func (t *Throttle) Failed(from netip.Addr, token string, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	key := suspect{Neighbours(from), token}
	f := t.all[key]
	if f == nil || now.Sub(f.last) > forgetAfter {
		if f == nil && len(t.all) >= maxThrottled {
			t.forgetOne()
		}
		f = new(failures)
		t.all[key] = f
	}
	f.count++
	f.last = now
	if n := f.count - freeFailures; n >= 0 {
		f.until = now.Add(min(firstWait<<min(n, failureShifts), longestWait))
	}
}

// Succeeded forgets an address's failures with a token.
func (t *Throttle) Succeeded(from netip.Addr, token string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.all, suspect{Neighbours(from), token})
}

func (t *Throttle) forgetOne() {
	var oldest suspect
	for k, f := range t.all {
		if o := t.all[oldest]; o == nil || f.last.Before(o.last) {
			oldest = k
		}
	}
	delete(t.all, oldest)
}

// Neighbours are the addresses that count as one with a: itself, or its /64 of IPv6.
func Neighbours(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := a.BitLen()
	if a.Is6() {
		bits = sharedBitsV6
	}
	p, _ := a.Prefix(bits) // bits are those of the address
	return p
}
