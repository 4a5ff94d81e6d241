package peer

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"

	"github.com/trayd/trayd/integration/raw"
	"github.com/trayd/trayd/internal/wire"
)

// Floor is the commands themselves that trayd sends, over a connection that stays, with
// nothing made durable and nothing remembered.
type Floor struct {
	// Program is the same as a command (integration/compare/floor); "" for none. It goes over the
	// second monitor, since the connection that stays has the first. Before are words that it
	// is run by: strace, say.
	Program string
	Before  []string

	fleet
	conns map[string]*raw.Conn
	log   *os.File // of Durable
	nodes atomic.Int64
}

// NewFloor is a contender whose machines' sockets lie beneath dir, a short path.
func NewFloor(dir string) *Floor {
	return &Floor{fleet: newFleet(dir), conns: make(map[string]*raw.Conn)}
}

// Name implements Contender.
func (*Floor) Name() string { return "floor" }

// Boot implements Contender.
func (f *Floor) Boot(ctx context.Context, names ...string) error {
	if err := f.boot(ctx, names...); err != nil {
		return err
	}
	if f.log == nil {
		log, err := os.OpenFile(filepath.Join(f.side, "durable.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			return err
		}
		f.log = log
	}
	for _, name := range names {
		conn, err := raw.Dial(f.Machine(name).Monitor, "")
		if err != nil {
			return err
		}
		f.conns[name] = conn
	}
	return nil
}

// Persistent implements Contender.
func (f *Floor) Persistent() Ask {
	return f.ask(func(vm string) *raw.Conn { return f.conns[vm] })
}

// Durable is Persistent with two durable appends for each change, to one file of all
// machines, as trayd's state file is. Boot makes the file.
func (f *Floor) Durable() Ask {
	return f.ask(func(vm string) *raw.Conn { return f.conns[vm].Durable(f.log) })
}

func (f *Floor) ask(conn func(vm string) *raw.Conn) Ask {
	return func(_ context.Context, verb, vm, disc string) error {
		switch verb {
		case wire.Insert, wire.Replace:
			return conn(vm).Change(driveID, disc, f.node())
		case wire.Eject:
			return conn(vm).Eject(driveID)
		default:
			return errVerb(verb)
		}
	}
}

func (f *Floor) node() string { return fmt.Sprintf("floor-%06d", f.nodes.Add(1)) }

// Reconnect connects to all machines anew, at once, and asks each whether it runs and which
// disc is in.
func (f *Floor) Reconnect() error {
	names := slices.Sorted(maps.Keys(f.conns))
	conns := make([]*raw.Conn, len(names))
	err := Together(len(names), func(i int) error {
		_ = f.conns[names[i]].Close() // nothing is on its way
		conn, err := raw.Dial(f.Machine(names[i]).Monitor, "")
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

// Command implements Contender, by Program.
func (f *Floor) Command() Ask {
	if f.Program == "" {
		return nil
	}
	return func(ctx context.Context, verb, vm, disc string) error {
		words := append(slices.Clone(f.Before), f.Program, f.Machine(vm).Side, verb, driveID, disc, f.node())
		_, err := run(ctx, nil, words[0], words[1:]...)
		return err
	}
}

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
	if f.log != nil {
		_ = f.log.Close() // it is read by nobody
	}
	f.close()
}
