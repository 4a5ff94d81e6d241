package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"
)

// maxIdleWrite is the memory for outgoing messages that a connection keeps.
const maxIdleWrite = 1 << 10

// A request is a command before it has an id.
type request struct {
	command string
	args    []byte // JSON, or nil
	object  []byte // the whole command as a JSON object without an id; command and args are not looked at then
}

// idBase makes ids short: five characters and the quotes.
const idBase = 36

// appendTo appends the message with its id.
//
// QEMU reads commands byte by byte (monitor_can_read in its monitor/monitor.c never asks for more than one), which takes
// 3.5 µs for each: 100 bytes more made a round trip of 0.17 ms take 0.53 ms (7.2). So the message is as short as it can
// be. The id is a string because go-qemu expects one. There is no newline, because QEMU executes a command at its last brace, and when that makes it exit, an unread newline would turn
// the end of the connection into a reset.
func (r *request) appendTo(buf []byte, id uint64) []byte {
	if r.object != nil {
		buf = append(buf, r.object[:len(r.object)-1]...)
	} else {
		buf = append(buf, `{"execute":`...)
		buf = appendName(buf, r.command)
		if r.args != nil && string(r.args) != "null" {
			buf = append(buf, `,"arguments":`...)
			buf = append(buf, r.args...)
		}
	}
	buf = append(buf, `,"id":"`...)
	buf = strconv.AppendUint(buf, id, idBase)
	return append(buf, `"}`...)
}

// appendName appends a JSON string. QEMU's own names need no escapes.
func appendName(buf []byte, name string) []byte {
	for i := range len(name) {
		if c := name[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			quoted, _ := json.Marshal(name) // a string cannot fail
			return append(buf, quoted...)
		}
	}
	buf = append(buf, '"')
	buf = append(buf, name...)
	return append(buf, '"')
}

// outgoing is what the writer of the moment works with; see Conn.writing. It lives in the Conn so that a write needs no
// memory of its own.
type outgoing struct {
	buf     []byte
	attempt func(fd uintptr) bool // Conn.attempt
	n       int
	err     error
}

// send sends a command and returns the call that its reply will come to.
func (c *Conn) send(ctx context.Context, req *request, file *os.File) (*Call, error) {
	if err := ctx.Err(); err != nil {
		return nil, notSentError(req.command, err)
	}
	select {
	case c.writing <- struct{}{}:
	case <-c.done:
		return nil, closedError(req.command, c.Err())
	case <-ctx.Done():
		return nil, notSentError(req.command, ctx.Err())
	}
	defer func() { <-c.writing }()

	call, err := c.register(req.command)
	if err != nil {
		return nil, err
	}
	o := &c.outgoing
	o.buf = req.appendTo(o.buf[:0], call.id)
	c.wire.out(o.buf, file)
	n, err := c.write(ctx, file)
	if cap(o.buf) > maxIdleWrite {
		o.buf = nil
	}
	switch {
	case err == nil:
		return call, nil
	case n > 0:
		err = fmt.Errorf("a command could be sent in part only: %w", err)
		c.fail(err)
		return nil, unansweredError(req.command, err)
	}
	c.forget(call)
	if isDead(err) {
		c.drain(err)
		select {
		case <-c.done:
			err = c.Err()
		case <-ctx.Done():
		}
		return nil, closedError(req.command, err)
	}
	return nil, notSentError(req.command, err)
}

// write writes c.outgoing.buf and returns how much of it has left.
func (c *Conn) write(ctx context.Context, file *os.File) (n int, err error) {
	o := &c.outgoing
	if file == nil {
		// Nearly always the socket has room, and neither a deadline nor somebody to watch the context is needed.
		o.n, o.err = 0, nil
		if err := c.raw.Write(o.attempt); err != nil {
			return 0, err
		}
		if n = o.n; o.err != nil || n == len(o.buf) {
			return n, o.err
		}
	}
	release := interrupt(ctx, c.nc.SetWriteDeadline)
	defer release()
	if file != nil {
		n, err = c.writeWithFile(file)
	}
	if err == nil && n < len(o.buf) {
		var more int
		more, err = c.nc.Write(o.buf[n:])
		n += more
	}
	if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil {
		err = ctx.Err()
	}
	return n, err
}

// attempt writes what the socket takes at once.
func (c *Conn) attempt(fd uintptr) bool {
	o := &c.outgoing
	for {
		n, err := syscall.Write(int(fd), o.buf)
		switch err {
		case nil:
			o.n = n
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
		default:
			o.err = os.NewSyscallError("write", err)
		}
		return true
	}
}

// isDead reports whether an error of a write means that the socket is of no use any more, and not that this one write
// was (a descriptor that cannot be passed, a context that ended).
func isDead(err error) bool {
	return errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.ENOTCONN) ||
		errors.Is(err, net.ErrClosed)
}

// interrupt makes the context's end interrupt I/O, by a deadline in the past. The returned function ends that; when it
// returns, no deadline is set any more.
func interrupt(ctx context.Context, setDeadline func(time.Time) error) (release func()) {
	if ctx.Done() == nil {
		return func() {}
	}
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		setDeadline(time.Unix(1, 0))
		close(fired)
	})
	return func() {
		if !stop() {
			<-fired // or it would hit whoever comes next
			setDeadline(time.Time{})
		}
	}
}
