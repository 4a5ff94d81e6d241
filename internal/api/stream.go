package api

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
)

// The reasons for which a stream ends that its client is told, at most 123 bytes (RFC 6455
// 5.5); trayctl knows them by their status codes.
const (
	serialGone  = "the machine has ended"
	screenGone  = "the machine has ended, or its QEMU couldn't make sense of the viewer"
	traydStops  = "trayd stops"
	tooSlow     = "the client doesn't read; what it missed is in the machine's log"
	notBinary   = "only binary frames"
	clientGone  = "the client has gone"
	clientEnded = "the client ended it"
	clientDead  = "the client answers no ping"
)

// streamLimits are how long a stream waits for its client.
type streamLimits struct {
	ping    time.Duration // between pings, and until one has to be answered
	write   time.Duration // for the client to take one write
	close   time.Duration // for the client to answer the end
	backlog int           // bytes of a serial console that wait for the client
}

// defaultLimits have a dead client gone in 40 s.
var defaultLimits = streamLimits{ping: keepAlive, write: slowReader, close: time.Second, backlog: 256 << 10}

// maxFrame is the size of reads from a machine and of frames to a client, in bytes.
const maxFrame = 32 << 10

// stream carries bytes between a WebSocket and a machine.
//
// From a screen no more is read than the client takes: QEMU holds back updates for one viewer
// without the others noticing (ui/vnc.c, vnc_should_update). A serial console is always read,
// since a guest waits for its UART, and a client that is too slow loses the stream.
type stream struct {
	ws     *websocket.Conn
	conn   net.Conn
	limits streamLimits
	lossy  bool   // a serial console
	gone   string // what it means when QEMU closes conn

	frames atomic.Int64 // that have come from the client
	stuck  atomic.Bool  // the machine doesn't take what the client has sent
}

// ending is why a stream ends. It is an error for context.Cause.
type ending struct {
	code websocket.StatusCode
	why  string
}

func (e *ending) Error() string { return e.why }

// carry carries bytes until one end has gone, or closing is done, and says why it ended. All
// that it started has ended then.
func (t *stream) carry(closing context.Context) string {
	ctx, end := context.WithCancelCause(closing)
	// A cancelled read or write of ws closes it without a word; so they have a context of
	// their own, which ends last.
	hard, abort := context.WithCancel(context.Background())
	defer abort()
	t.ws.SetReadLimit(-1) // a frame is passed on as it comes, and not kept
	var parts sync.WaitGroup
	parts.Go(func() { end(t.toMachine(hard)) })
	if t.lossy {
		b := newBacklog(t.limits.backlog)
		parts.Go(func() {
			defer close(b.more)
			if err := t.collect(b); err != nil {
				end(err)
			}
		})
		parts.Go(func() { end(t.send(ctx, hard, b)) })
	} else {
		parts.Go(func() { end(t.fromMachine(hard)) })
	}
	parts.Go(func() { end(t.ping(ctx, hard)) })
	<-ctx.Done()
	var e *ending
	if !errors.As(context.Cause(ctx), &e) {
		e = &ending{websocket.StatusGoingAway, traydStops}
	}
	t.conn.Close()
	limit := time.AfterFunc(t.limits.close, abort)
	defer limit.Stop()
	_ = t.ws.Close(e.code, e.why) // the client may have gone
	parts.Wait()
	return e.why
}

func (t *stream) toMachine(ctx context.Context) error {
	buf := make([]byte, maxFrame)
	for {
		kind, r, err := t.ws.Reader(ctx)
		switch {
		case websocket.CloseStatus(err) != -1:
			return &ending{websocket.StatusNormalClosure, clientEnded}
		case err != nil:
			return &ending{websocket.StatusNormalClosure, clientGone}
		case kind != websocket.MessageBinary:
			return &ending{websocket.StatusUnsupportedData, notBinary}
		}
		for err == nil {
			var n int
			n, err = r.Read(buf)
			t.frames.Add(1)
			t.stuck.Store(true)
			_, failed := t.conn.Write(buf[:n])
			t.stuck.Store(false)
			if failed != nil {
				return &ending{websocket.StatusNormalClosure, t.gone}
			}
		}
		if err != io.EOF {
			return &ending{websocket.StatusNormalClosure, clientGone}
		}
	}
}

// write sends a frame. A client that doesn't take it is closed.
func (t *stream) write(ctx context.Context, b []byte) error {
	ctx, cancel := context.WithTimeout(ctx, t.limits.write)
	defer cancel()
	err := t.ws.Write(ctx, websocket.MessageBinary, b)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return &ending{websocket.StatusPolicyViolation, tooSlow}
	case err != nil:
		return &ending{websocket.StatusNormalClosure, clientGone}
	}
	return nil
}

func (t *stream) fromMachine(ctx context.Context) error {
	buf := make([]byte, maxFrame)
	for {
		n, err := t.conn.Read(buf)
		if n > 0 {
			if err := t.write(ctx, buf[:n]); err != nil {
				return err
			}
		}
		if err != nil {
			return &ending{websocket.StatusNormalClosure, t.gone}
		}
	}
}

// collect reads from a serial console at once what comes; nil means that it has ended.
func (t *stream) collect(b *backlog) error {
	buf := make([]byte, maxFrame)
	for {
		n, err := t.conn.Read(buf)
		if !b.add(buf[:n]) {
			return &ending{websocket.StatusPolicyViolation, tooSlow}
		}
		if err != nil {
			return nil // send says so, when it has sent the rest
		}
	}
}

// send sends what was collected.
func (t *stream) send(ctx, hard context.Context, b *backlog) error {
	for {
		var open bool
		select {
		case _, open = <-b.more:
		case <-ctx.Done():
			return ctx.Err()
		}
		for all := b.take(); len(all) > 0; {
			n := min(len(all), maxFrame)
			if err := t.write(hard, all[:n]); err != nil {
				return err
			}
			all = all[n:]
		}
		if !open {
			return &ending{websocket.StatusNormalClosure, t.gone}
		}
	}
}

// ping asks the client regularly whether it is still there. As long as the machine doesn't
// take what the client has sent, its answer stands behind that: then it counts that pings can
// be written, which fails when the client has closed its end.
func (t *stream) ping(ctx, hard context.Context) error {
	for tick := time.NewTicker(t.limits.ping); ; {
		select {
		case <-ctx.Done():
			tick.Stop()
			return ctx.Err()
		case <-tick.C:
		}
		before := t.frames.Load()
		limit, cancel := context.WithTimeout(hard, t.limits.ping)
		stop := context.AfterFunc(ctx, cancel)
		err := t.ws.Ping(limit)
		stop()
		cancel()
		if err == nil || ctx.Err() != nil {
			continue
		}
		if late := errors.Is(err, context.DeadlineExceeded); late && (t.stuck.Load() || t.frames.Load() != before) {
			continue
		}
		return &ending{websocket.StatusPolicyViolation, clientDead}
	}
}

// backlog is what a machine has said and its client hasn't been sent yet.
type backlog struct {
	more  chan struct{} // holds one when something was added; closed when nothing will be
	limit int

	mu    sync.Mutex // guards below
	bytes []byte
	spare []byte // the other of two buffers
}

func newBacklog(limit int) *backlog { return &backlog{more: make(chan struct{}, 1), limit: limit} }

// add reports whether there was room.
func (b *backlog) add(p []byte) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.bytes)+len(p) > b.limit {
		return false
	}
	b.bytes = append(b.bytes, p...)
	select {
	case b.more <- struct{}{}:
	default:
	}
	return true
}

// take takes everything; it is valid until the next take.
func (b *backlog) take() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := b.bytes
	b.bytes, b.spare = b.spare[:0], all
	return all
}
