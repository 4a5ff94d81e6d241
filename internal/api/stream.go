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
	mayNoMore   = "the session, the token or the certificate counts no more"
	tooSlow     = "the client doesn't read what comes"
	notBinary   = "only binary frames"
	clientGone  = "the client has gone"
	clientEnded = "the client ended it"
	clientDead  = "the client answers no ping"
)

// streamLimits are how long a stream waits for its client.
type streamLimits struct {
	ping  time.Duration // between pings, and until one has to be answered
	write time.Duration // for the client to take one frame: 3 KiB/s, as 38400 baud
	close time.Duration // for the client to answer the end
}

// defaultLimits have a dead client gone in 40 s.
var defaultLimits = streamLimits{ping: keepAlive, write: slowReader, close: time.Second}

// maxFrame is the size of reads from a machine and of frames to a client, in bytes.
const maxFrame = 32 << 10

// stream carries bytes between a WebSocket and a machine.
//
// Neither side is read faster than the other takes it, so nothing piles up here. QEMU holds
// back a screen's updates for one viewer without the others noticing (ui/vnc.c,
// vnc_should_update). A guest's UART waits while its console isn't read: that is as with a
// slow line, and a client that is slower than limits.write allows, or doesn't read at all,
// loses the stream, so that the guest goes on.
type stream struct {
	ws     *websocket.Conn
	client net.Conn // what ws is on: a client that doesn't answer a close holds ws up for 10 s
	conn   net.Conn // the machine's
	limits streamLimits
	gone   string // what it means when QEMU closes conn

	end   context.CancelCauseFunc // ends it; the first cause counts
	moves atomic.Int64            // of what the client has sent: counts reads and writes
	stuck atomic.Bool             // the machine doesn't take what the client has sent
}

// ending is why a stream ends. It is an error for context.Cause.
type ending struct {
	code websocket.StatusCode
	why  string
}

func (e *ending) Error() string { return e.why }

// carry carries bytes until one end has gone, or allowed is done, and says why it ended. All
// that it started has ended then.
func (t *stream) carry(allowed context.Context) string {
	ctx, end := context.WithCancelCause(allowed)
	t.end = end
	t.ws.SetReadLimit(-1) // a frame is passed on as it comes, and not kept
	var parts sync.WaitGroup
	parts.Go(func() {
		if err := t.toMachine(); err != nil {
			end(err)
		}
	})
	parts.Go(func() { end(t.fromMachine()) })
	parts.Go(func() { end(t.ping(ctx)) })
	<-ctx.Done()
	var e *ending
	if !errors.As(context.Cause(ctx), &e) {
		e = &ending{websocket.StatusGoingAway, traydStops}
	}
	if errors.Is(context.Cause(ctx), errNotAllowed) {
		e = &ending{websocket.StatusPolicyViolation, mayNoMore}
	}
	t.conn.Close()
	limit := time.AfterFunc(t.limits.close, func() { t.client.Close() })
	defer limit.Stop()
	_ = t.ws.Close(e.code, e.why) // the client may have gone
	parts.Wait()
	return e.why
}

// toMachine returns nil when the machine has gone: what it has said before is yet to be sent.
func (t *stream) toMachine() error {
	buf := make([]byte, maxFrame)
	for {
		kind, r, err := t.ws.Reader(context.Background())
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
			t.moves.Add(1)
			if n == 0 {
				continue
			}
			t.stuck.Store(true)
			_, failed := t.conn.Write(buf[:n])
			t.moves.Add(1)
			t.stuck.Store(false)
			if failed != nil {
				return nil
			}
		}
		if err != io.EOF {
			return &ending{websocket.StatusNormalClosure, clientGone}
		}
	}
}

// write sends a frame. A client that doesn't take it in time has the stream ended.
func (t *stream) write(b []byte) error {
	limit := time.AfterFunc(t.limits.write, func() { t.end(&ending{websocket.StatusPolicyViolation, tooSlow}) })
	defer limit.Stop()
	if t.ws.Write(context.Background(), websocket.MessageBinary, b) != nil {
		return &ending{websocket.StatusNormalClosure, clientGone}
	}
	return nil
}

func (t *stream) fromMachine() error {
	buf := make([]byte, maxFrame)
	for {
		n, err := t.conn.Read(buf)
		if n > 0 {
			if err := t.write(buf[:n]); err != nil {
				return err
			}
		}
		if err != nil {
			return &ending{websocket.StatusNormalClosure, t.gone}
		}
	}
}

// ping asks the client regularly whether it is still there. As long as the machine doesn't
// take what the client has sent, its answer stands behind that: then it counts that pings can
// be written, which fails when the client has closed its end.
func (t *stream) ping(ctx context.Context) error {
	for tick := time.NewTicker(t.limits.ping); ; {
		select {
		case <-ctx.Done():
			tick.Stop()
			return ctx.Err()
		case <-tick.C:
		}
		before := t.moves.Load()
		limit, cancel := context.WithTimeout(context.Background(), t.limits.ping)
		stop := context.AfterFunc(ctx, cancel)
		err := t.ws.Ping(limit)
		stop()
		cancel()
		if err == nil || ctx.Err() != nil {
			continue
		}
		if late := errors.Is(err, context.DeadlineExceeded); late && (t.stuck.Load() || t.moves.Load() != before) {
			continue
		}
		return &ending{websocket.StatusPolicyViolation, clientDead}
	}
}
