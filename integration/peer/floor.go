package peer

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"

	"github.com/trayd/trayd/internal/wire"
)

// Floor is the commands themselves that trayd sends, over a connection that stays, with
// nothing made durable and nothing remembered.
type Floor struct {
	fleet
	conns map[string]*Raw
	nodes atomic.Int64
}

// NewFloor is a contender whose machines' sockets lie beneath dir, a short path.
func NewFloor(dir string) *Floor {
	return &Floor{fleet: newFleet(dir), conns: make(map[string]*Raw)}
}

// Name implements Contender.
func (*Floor) Name() string { return "floor" }

// Boot implements Contender.
func (f *Floor) Boot(ctx context.Context, names ...string) error {
	if err := f.boot(ctx, names...); err != nil {
		return err
	}
	for _, name := range names {
		conn, err := DialRaw(f.Machine(name).Monitor, "")
		if err != nil {
			return err
		}
		f.conns[name] = conn
	}
	return nil
}

// Persistent implements Contender.
func (f *Floor) Persistent() Ask {
	return func(_ context.Context, verb, vm, disc string) error {
		switch verb {
		case wire.Insert, wire.Replace:
			return f.conns[vm].Change(driveID, disc, fmt.Sprintf("floor-%06d", f.nodes.Add(1)))
		case wire.Eject:
			return f.conns[vm].Eject(driveID)
		default:
			return errVerb(verb)
		}
	}
}

// Reconnect connects to all machines anew, at once, and asks each whether it runs and which
// disc is in.
func (f *Floor) Reconnect() error {
	names := slices.Sorted(maps.Keys(f.conns))
	conns := make([]*Raw, len(names))
	err := Together(len(names), func(i int) error {
		_ = f.conns[names[i]].Close() // nothing is on its way
		conn, err := DialRaw(f.Machine(names[i]).Monitor, "")
		if err != nil {
			return err
		}
		conns[i] = conn
		for _, question := range []string{`{"execute":"query-block"}`, `{"execute":"query-status"}`} {
			if _, err := conn.Command(question, nil); err != nil {
				return err
			}
		}
		return nil
	})
	for i, conn := range conns {
		if conn != nil {
			f.conns[names[i]] = conn
		}
	}
	return err
}

// Command implements Contender: there is none.
func (*Floor) Command() Ask { return nil }

// Says implements Contender.
func (*Floor) Says(context.Context) (map[string]Status, error) { return nil, ErrNoStatus }

// Kill implements Contender: nothing stays.
func (*Floor) Kill() {}

// Start implements Contender.
func (*Floor) Start(context.Context) error { return nil }

// PID implements Contender.
func (*Floor) PID() int { return 0 }

// Left implements Contender.
func (*Floor) Left(context.Context) ([]string, error) { return nil, nil }

// Close implements Contender.
func (f *Floor) Close() {
	for _, c := range f.conns {
		_ = c.Close() // nothing is on its way
	}
	f.close()
}
