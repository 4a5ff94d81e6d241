package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
)

const (
	// maxIdle calls are kept for reuse, with replies up to maxIdleReply: enough for a poller and a change at the same
	// time, and at most 4 KiB per connection.
	maxIdle      = 4
	maxIdleReply = 1 << 10
)

// A Call is a command that was sent and whose reply is to be waited for.
type Call struct {
	conn    *Conn
	command string
	id      uint64

	// done receives one token when the fields below are set; whoever holds the token may read them.
	done    chan struct{}
	reply   []byte // the whole message; the call's own memory
	body    []byte // the part of it that is the returned value or the error
	refused bool
	events  uint64 // how many events stood before the reply
	err     error  // instead of a reply
}

// Execute sends a command and waits for its reply. args is anything that encoding/json turns into an object, or nil;
// result is where the returned value is decoded to, or nil. Any number of goroutines may call it. Long arguments take
// time, 3.5 µs a byte, because QEMU reads them one by one.
//
// The error is an *[Error] when QEMU refused, matches [ErrClosed] or [ErrUnanswered] as these say, and otherwise comes
// from encoding args (nothing was sent), from a context that ended before anything was sent, or from decoding into
// result (QEMU did execute the command).
func (c *Conn) Execute(ctx context.Context, command string, args, result any) error {
	call, err := c.Send(ctx, command, args, nil)
	if err != nil {
		return err
	}
	err = call.Wait(ctx, result)
	c.recycle(call)
	return err
}

// Send sends a command and does not wait for its reply, so that several can be on their way; QEMU executes them in
// order. When file is not nil QEMU receives a duplicate of its descriptor together with the command, which should be
// one that takes it (add-fd, getfd); file stays the caller's and can be closed once Send returned. Errors are those of
// [Conn.Execute].
func (c *Conn) Send(ctx context.Context, command string, args any, file *os.File) (*Call, error) {
	req := request{command: command}
	if args != nil {
		var err error
		if req.args, err = json.Marshal(args); err != nil {
			return nil, notSentError(command, err)
		}
	}
	return c.send(ctx, &req, file)
}

// Wait waits for the reply and decodes the returned value into result, which may be nil. When the context ends first
// the command is given up for good. Wait may be called again, with the same outcome, but not by two goroutines at once.
// Errors are those of [Conn.Execute].
func (call *Call) Wait(ctx context.Context, result any) error {
	if err := call.wait(ctx); err != nil {
		return err
	}
	if result == nil {
		result = new(ignored)
	}
	err := json.Unmarshal(call.body, result)
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &syntax):
		return call.garbled(err)
	case err != nil:
		return fmt.Errorf("%s: unexpected reply: %w", call.command, err)
	}
	return nil
}

// Events returns how many events of the connection stood before the reply: one whose Seq is not larger had happened when
// QEMU answered, so that the reply says what became of it. It is valid once Wait has returned without an error.
func (call *Call) Events() uint64 { return call.events }

// wait returns when call.body is a returned value.
func (call *Call) wait(ctx context.Context) error {
	select {
	case <-call.done:
	default:
		select {
		case <-call.done:
		case <-ctx.Done():
			if !call.conn.giveUp(call) {
				<-call.done // it is just being answered
				break
			}
			call.err = unansweredError(call.command, ctx.Err())
		}
	}
	call.done <- struct{}{} // for the next Wait
	if call.err != nil {
		return call.err
	}
	if !call.refused {
		return nil
	}
	refusal := &Error{Command: call.command}
	var answer struct{ Class, Desc string }
	if err := json.Unmarshal(call.body, &answer); err != nil {
		return call.garbled(err)
	}
	refusal.Class, refusal.Desc = answer.Class, answer.Desc
	return refusal
}

// garbled ends the connection, because a QEMU that writes broken JSON cannot be followed any further. It is found here
// and not by the reader so that large replies are not read twice.
func (call *Call) garbled(err error) error {
	err = fmt.Errorf("%w: reply to %s: %w", errNotQMP, call.command, err)
	call.conn.fail(err)
	call.err = unansweredError(call.command, err)
	return call.err
}

// ignored is a result that nobody wants; the JSON is checked nevertheless.
type ignored struct{}

func (*ignored) UnmarshalJSON([]byte) error { return nil }

// register gives a command its id and makes the connection expect a reply.
func (c *Conn) register(command string) (*Call, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil, closedError(command, c.err)
	}
	var call *Call
	if n := len(c.idle); n > 0 {
		call, c.idle = c.idle[n-1], c.idle[:n-1]
	} else {
		call = &Call{conn: c, done: make(chan struct{}, 1)}
	}
	c.lastID++
	call.command, call.id = command, c.lastID
	c.pending[call.id] = call
	return call, nil
}

// forget takes back a command of which nothing was sent.
func (c *Conn) forget(call *Call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pending == nil {
		c.unanswered-- // fail has just counted it
		return
	}
	delete(c.pending, call.id)
}

// giveUp makes the connection drop the reply when it comes. It returns false when the call is already being answered.
func (c *Conn) giveUp(call *Call) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pending[call.id] != call {
		return false
	}
	c.pending[call.id] = nil
	c.unanswered++
	return true
}

// recycle keeps a call whose reply has come and been decoded.
func (c *Conn) recycle(call *Call) {
	if call.err != nil {
		return
	}
	<-call.done
	if cap(call.reply) > maxIdleReply {
		call.reply = nil
	}
	call.body = nil
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil && len(c.idle) < maxIdle {
		c.idle = append(c.idle, call)
	}
}
