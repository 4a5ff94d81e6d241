package peer

import (
	"context"
	_ "embed"
	"slices"
	"sync"
)

//go:embed script.sh
var scriptText string

// Script is a shell script on the machine's own monitor, as people write them: eject, then
// change. It keeps nothing between changes, and so has nothing to say about a drive.
type Script struct {
	// Before are words that bash is run by: strace, say.
	Before []string

	fleet
	mu     sync.Mutex // guards cancel
	cancel map[int]context.CancelFunc
	next   int
}

// NewScript is a contender whose machines' sockets lie beneath dir, a short path.
func NewScript(dir string) *Script {
	return &Script{fleet: newFleet(dir), cancel: make(map[int]context.CancelFunc)}
}

// Name implements Contender.
func (*Script) Name() string { return "script" }

// Boot implements Contender.
func (s *Script) Boot(ctx context.Context, names ...string) error { return s.boot(ctx, names...) }

// Persistent implements Contender: there is none.
func (*Script) Persistent() Ask { return nil }

// Command implements Contender.
func (s *Script) Command() Ask {
	return func(ctx context.Context, verb, vm, disc string) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		s.mu.Lock()
		id := s.next
		s.next++
		s.cancel[id] = cancel
		s.mu.Unlock()
		defer func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			delete(s.cancel, id)
		}()
		words := append(slices.Clone(s.Before), "bash", "-c", scriptText, "cd.sh", s.Machine(vm).Monitor, verb, disc)
		_, err := run(ctx, nil, words[0], words[1:]...)
		return err
	}
}

// Says implements Contender.
func (*Script) Says(context.Context) (map[string]Status, error) { return nil, ErrNoStatus }

// Kill implements Contender: it kills the scripts that run, with what they have started.
func (s *Script) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, cancel := range s.cancel {
		cancel()
	}
}

// Start implements Contender: a script isn't started before it is asked.
func (*Script) Start(context.Context) error { return nil }

// PID implements Contender.
func (*Script) PID() int { return 0 }

// Left implements Contender.
func (*Script) Left(context.Context) ([]string, error) { return nil, nil }

// Close implements Contender.
func (s *Script) Close() {
	s.Kill()
	s.close()
}
