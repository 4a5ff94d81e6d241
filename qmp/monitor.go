package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"slices"

	goqmp "github.com/digitalocean/go-qemu/qmp"
)

var _ goqmp.Monitor = (*Conn)(nil)

// monitorBuffer is how many events wait for a consumer of [Conn.Events].
const monitorBuffer = 64

// Connect is for go-qemu's Monitor. A Conn is connected from the beginning, so that Connect only reports whether it
// still is.
func (c *Conn) Connect() error {
	if err := c.Err(); err != nil {
		return closedError("connect", err)
	}
	return nil
}

// Disconnect is Close under the name that go-qemu's Monitor has for it.
func (c *Conn) Disconnect() error { return c.Close() }

// Run is for go-qemu's Monitor: it sends a whole command and returns the whole reply, envelope included, in memory that
// is the caller's. The command's id, if it has one, is replaced by the connection's own. It waits without limit; new
// code calls [Conn.Execute]. Errors are those of Execute.
//
// With Run, Events and the rest a Conn takes the place of go-qemu's own SocketMonitor, which does not serve a program
// that runs for months (v0.0.0-20250212194115-ee9b0668d242; each point was reproduced against a real QEMU): the reply
// that its Run returns aliases the buffer that the next one is read into; a line above 64 KiB ends its reader, and
// query-qmp-schema has 207 kB; an event that nobody reads blocks Run and Disconnect for ever; nothing has a deadline;
// commands have no ids, so that a late reply is taken for the next command's; the class of an error is lost; the
// decoder of its handshake swallows what QEMU sends right behind it.
func (c *Conn) Run(command []byte) ([]byte, error) {
	var object map[string]json.RawMessage
	if err := json.Unmarshal(command, &object); err != nil {
		return nil, notSentError("command", err)
	}
	var req request
	if err := json.Unmarshal(object["execute"], &req.command); err != nil || req.command == "" {
		return nil, notSentError("command", errors.New(`it has no "execute"`))
	}
	delete(object, "id")
	var err error
	if req.object, err = json.Marshal(object); err != nil {
		return nil, notSentError(req.command, err)
	}
	ctx := context.Background()
	call, err := c.send(ctx, &req, nil)
	if err != nil {
		return nil, err
	}
	if err := call.Wait(ctx, nil); err != nil {
		return nil, err
	}
	return slices.Clip(call.reply), nil
}

// Events is for go-qemu's Monitor: it returns a channel of events that is closed when the context or the connection
// ends. It holds 64 events; what comes while it is full is dropped, because go-qemu has no way to say so. New code
// calls [Conn.Subscribe].
func (c *Conn) Events(ctx context.Context) (<-chan goqmp.Event, error) {
	if err := c.Connect(); err != nil {
		return nil, err
	}
	f := &feed{c: make(chan goqmp.Event, monitorBuffer)}
	f.stop = context.AfterFunc(ctx, func() { c.events.remove(f) })
	c.events.add(f)
	if ctx.Err() != nil {
		c.events.remove(f) // the context may have ended before there was something to remove
	}
	return f.c, nil
}

// A feed is a sink that speaks go-qemu's types.
type feed struct {
	c    chan goqmp.Event
	stop func() bool // forgets the context
}

func (f *feed) deliver(e Event) {
	event := goqmp.Event{Event: e.Name}
	if e.Data != nil && json.Unmarshal(e.Data, &event.Data) != nil {
		return // data that is not an object has no place in go-qemu's type, and in QEMU's neither
	}
	if !e.Time.IsZero() {
		event.Timestamp.Seconds = e.Time.Unix()
		event.Timestamp.Microseconds = int64(e.Time.Nanosecond() / 1000)
	}
	select {
	case f.c <- event:
	default:
	}
}

func (f *feed) end() {
	f.stop()
	close(f.c)
}
