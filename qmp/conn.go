package qmp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	goqmp "github.com/digitalocean/go-qemu/qmp"
)

const (
	// defaultTimeout is a hundred times what a busy host was seen to take for a handshake.
	defaultTimeout = 5 * time.Second

	// connectPause is the time between two attempts at a socket whose queue is full.
	connectPause = 20 * time.Millisecond

	// maxSocketPath is sizeof(sun_path) less the terminating zero, unix(7).
	maxSocketPath = 107
)

// Options change how a connection is made. The zero value is good.
type Options struct {
	// Timeout limits connect, greeting and capabilities together; 0 means 5 s. A context that ends earlier wins.
	Timeout time.Duration

	// Wire, when set, receives every message in both directions as one line each, in one Write each. It must not
	// block for long: the connection waits for it. When it is nil, the messages go to stderr if the environment
	// says TRAYD_QMP_WIRE=1, and nowhere otherwise.
	Wire io.Writer
}

// A Conn is a connection to one QEMU monitor. Its methods may be called from any number of goroutines at once, and
// QEMU executes the commands in the order in which they were sent. A Conn that is no longer needed must be closed.
type Conn struct {
	nc      *net.UnixConn
	raw     syscall.RawConn
	path    string
	version goqmp.Version
	peer    Peer
	wire    *wire // nil when nobody watches

	// writing holds a token while somebody writes to the socket; it guards the fields of outgoing. It is a channel
	// and not a mutex because the wait for it ends with the waiting caller's context.
	writing  chan struct{}
	outgoing outgoing

	// mu guards what follows. It is held for moments only, never during I/O, so that the reader and the writers
	// cannot hold each other up.
	mu         sync.Mutex
	lastID     uint64
	pending    map[uint64]*Call // by id; nil value: given up by its caller; nil map: the connection has ended
	idle       []*Call          // to be used again
	late       uint64
	unanswered int
	err        error // why the connection ended
	writeErr   error // what a writer met when the socket died, before the reader did

	events hub
	seq    uint64 // of the last event; the reader's own

	done   chan struct{} // closed when the connection has ended
	reader chan struct{} // closed when the reading goroutine has ended
}

// Dial connects to the monitor that listens on the unix socket at path, reads the greeting and negotiates
// capabilities (none). opts may be nil. The error is an [OpError]; it matches [ErrHeld] when no greeting came, and
// fs.ErrNotExist or syscall.ECONNREFUSED when nobody listens. The context is for connecting only.
func Dial(ctx context.Context, path string, opts *Options) (*Conn, error) {
	ctx, limit, cancel := opts.limit(ctx)
	defer cancel()
	if len(path) > maxSocketPath {
		return nil, newOpError("connect", path, fmt.Errorf("%w: the name of a socket has at most %d bytes",
			syscall.ENAMETOOLONG, maxSocketPath))
	}
	nc, err := connect(ctx, limit, path)
	if err != nil {
		return nil, newOpError("connect", path, err)
	}
	return handshake(ctx, limit, nc, path, opts)
}

// NewConn does what [Dial] does on a socket that is connected already. The socket belongs to the Conn from then on, and
// is closed when NewConn fails.
func NewConn(ctx context.Context, nc *net.UnixConn, opts *Options) (*Conn, error) {
	ctx, limit, cancel := opts.limit(ctx)
	defer cancel()
	path := ""
	if addr := nc.RemoteAddr(); addr != nil {
		path = addr.String()
	}
	return handshake(ctx, limit, nc, path, opts)
}

// limit returns a context for the handshake, and how long it lasts.
func (o *Options) limit(ctx context.Context) (context.Context, time.Duration, context.CancelFunc) {
	timeout := defaultTimeout
	if o != nil && o.Timeout > 0 {
		timeout = o.Timeout
	}
	if deadline, ok := ctx.Deadline(); ok {
		timeout = min(timeout, time.Until(deadline))
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	return ctx, timeout, cancel
}

// connect connects, and goes on trying while the queue of the socket is full: QEMU listens with a backlog of one, so
// that behind its client and two more that wait the kernel answers EAGAIN instead of letting a fourth wait.
func connect(ctx context.Context, limit time.Duration, path string) (*net.UnixConn, error) {
	for {
		var d net.Dialer
		nc, err := d.DialContext(ctx, "unix", path)
		if err == nil {
			return nc.(*net.UnixConn), nil
		}
		if !errors.Is(err, syscall.EAGAIN) {
			var op *net.OpError
			if errors.As(err, &op) {
				err = op.Err // without the address, which our own error says
			}
			return nil, err
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return nil, heldError(limit, ctx.Err())
			}
			return nil, ctx.Err()
		case <-time.After(connectPause):
		}
	}
}

// handshake makes a Conn of a connected socket. The decoder that reads the greeting goes on to read everything else:
// what stands behind the reply to qmp_capabilities in the same read is the first event.
func handshake(
	ctx context.Context, limit time.Duration, nc *net.UnixConn, path string, opts *Options,
) (*Conn, error) {
	raw, err := nc.SyscallConn()
	if err != nil {
		nc.Close()
		return nil, newOpError("connect", path, err)
	}
	c := &Conn{
		nc:      nc,
		raw:     raw,
		path:    path,
		peer:    peerOf(raw),
		wire:    newWire(opts, path),
		writing: make(chan struct{}, 1),
		// A reply may be left over from an earlier client of the monitor. Ids that begin at a random number keep it from
		// being taken for one of ours.
		lastID:  uint64(rand.Uint32N(1 << 24)),
		pending: make(map[uint64]*Call),
		done:    make(chan struct{}),
		reader:  make(chan struct{}),
	}
	c.outgoing.attempt = c.attempt
	dec := newDecoder(nc)
	if err := c.greet(ctx, limit, dec); err != nil {
		nc.Close()
		return nil, newOpError("greeting", path, err)
	}
	go c.read(dec)
	if err := c.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		c.Close()
		return nil, newOpError("capabilities", path, err)
	}
	return c, nil
}

// greet reads the greeting.
func (c *Conn) greet(ctx context.Context, limit time.Duration, dec *decoder) error {
	release := interrupt(ctx, c.nc.SetReadDeadline)
	msg, err := dec.next()
	release()
	switch {
	case err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded):
		return heldError(limit, ctx.Err())
	case err != nil && ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, io.EOF):
		return fmt.Errorf("the monitor closed the connection before its greeting: %w", err)
	case err != nil:
		return err
	}
	c.wire.in(msg)
	m, err := parseMessage(msg)
	if err != nil {
		return err
	}
	var greeting struct{ Version goqmp.Version }
	if m.kind != kindGreeting || json.Unmarshal(m.body, &greeting) != nil {
		return fmt.Errorf("%w: expected a greeting, got %q", errNotQMP, msg[:min(len(msg), 200)])
	}
	c.version = greeting.Version
	return nil
}

// read is the connection's one goroutine and the only one that reads from the socket.
func (c *Conn) read(dec *decoder) {
	defer close(c.reader)
	c.fail(c.stream(dec))
	c.events.end()
}

// stream takes messages to where they belong until the connection ends, and returns why it did.
func (c *Conn) stream(dec *decoder) error {
	for {
		msg, err := dec.next()
		if err != nil {
			return c.reason(err)
		}
		c.wire.in(msg)
		m, err := parseMessage(msg)
		if err != nil {
			return err
		}
		switch m.kind {
		case kindEvent:
			e, err := m.event()
			if err != nil {
				return err
			}
			c.seq++
			e.Seq = c.seq
			c.events.deliver(e)
		case kindReturn, kindError:
			if m.id == nil {
				// All of our commands have an id. QEMU leaves it out when it could not even parse one, and then
				// nobody knows which one it was.
				return fmt.Errorf("QEMU answered without saying to which command: %q", msg[:min(len(msg), 200)])
			}
			c.answer(&m, msg, dec)
		default:
			return fmt.Errorf("%w: unexpected %q", errNotQMP, msg[:min(len(msg), 200)])
		}
	}
}

// answer hands a reply to the call that waits for it.
func (c *Conn) answer(m *message, msg []byte, dec *decoder) {
	id, ours := m.number()
	c.mu.Lock()
	call, known := c.pending[id]
	if !ours || call == nil {
		c.late++
		if ours && known {
			delete(c.pending, id)
			c.unanswered--
		}
		c.mu.Unlock()
		return
	}
	delete(c.pending, id)
	c.mu.Unlock()

	call.refused, call.events = m.kind == kindError, c.seq
	call.reply = dec.own(msg, call.reply)
	call.body = call.reply[m.at : m.at+len(m.body)]
	call.done <- struct{}{}
}

// fail ends the connection because of err, unless it has ended. Whoever waits for a reply is told so.
func (c *Conn) fail(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = err
	pending := c.pending
	c.pending, c.idle = nil, nil
	for _, call := range pending {
		if call != nil {
			c.unanswered++
		}
	}
	c.mu.Unlock()

	c.nc.Close()
	for _, call := range pending {
		if call != nil {
			call.err = unansweredError(call.command, err)
			call.done <- struct{}{}
		}
	}
	close(c.done)
}

// drain lets the reader read what a QEMU that no longer listens has still sent, and end the connection thereafter. A
// writer meets the end of a QEMU before the reader has seen its last words.
func (c *Conn) drain(err error) {
	const patience = time.Second
	c.mu.Lock()
	if c.writeErr == nil {
		c.writeErr = err
	}
	c.mu.Unlock()
	c.nc.SetReadDeadline(time.Now().Add(patience))
}

// reason says why the reader could not go on.
func (c *Conn) reason(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.writeErr != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("writing to the monitor: %w", c.writeErr)
	}
	return endError(err)
}

// Close ends the connection and waits until nothing of it runs any more. Commands without a reply fail with
// [ErrUnanswered]; QEMU goes on running. Closing twice is fine. The error is always nil.
func (c *Conn) Close() error {
	c.fail(errOwnClose)
	<-c.reader
	return nil
}

// Done returns a channel that is closed when the connection has ended, for whatever reason.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err returns why the connection ended: an error that matches io.EOF when QEMU closed it, net.ErrClosed when Close did.
// It is nil while the connection is alive.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Version returns QEMU's version as the greeting said it. Whether QEMU can do something is better asked of its schema,
// see [Conn.QuerySchema]: distributions backport.
func (c *Conn) Version() goqmp.Version { return c.version }

// Peer returns who listened on the socket.
func (c *Conn) Peer() Peer { return c.peer }

// Late returns how many replies came that nobody waited for any more. They are replies to commands that a caller had
// given up, or that an earlier client of the monitor had left behind.
func (c *Conn) Late() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.late
}

// Unanswered returns how many commands have been sent, and been given up by their caller, without their reply having
// come. At zero nothing is left in QEMU that could still happen because of this connection. When the connection ends
// with commands pending they count, for good.
func (c *Conn) Unanswered() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.unanswered
}
