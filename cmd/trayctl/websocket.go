package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/textproto"
	"strings"
	"sync"
)

// webSocket is a client's end of a WebSocket (RFC 6455) as trayd serves consoles: binary
// frames whose borders mean nothing. It is not a library's, as those begin with net/http and
// crypto: that is 4 MB more of trayctl, which has neither.
//
// One goroutine may read and others write at the same time.
type webSocket struct {
	client *client
	conn   net.Conn
	r      *bufio.Reader
	stop   func() bool // takes conn from its context
	left   uint64      // bytes of the frame that is being read

	mu  sync.Mutex // guards out: a pong may stand between two frames
	out []byte
}

// The nonce of RFC 6455 1.2, and the answer to it. It is to show that no cache answers, and
// on a unix socket there is none; a fixed one needs no SHA-1.
const (
	nonce   = "dGhlIHNhbXBsZSBub25jZQ=="
	nonceOK = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
)

// The opcodes (RFC 6455 5.2), and the bits beside them.
const (
	opContinuation = 0
	opBinary       = 2
	opClose        = 8
	opPing         = 9
	opPong         = 10

	finBit     = 0x80
	maskBit    = 0x80
	maxControl = 125      // bytes of a control frame
	maxOut     = 32 << 10 // bytes of a frame that is sent
)

// The status codes (RFC 6455 7.4.1) with which trayd ends a console.
const (
	closeNormal = 1000
	closeAway   = 1001 // trayd stops
)

// endedError is the end of a WebSocket as the server gave it.
type endedError struct {
	code   int
	reason string
}

func (e *endedError) Error() string { return "trayd ended the console: " + e.reason }

// webSocket opens the one at a path of the API. It is closed when the context ends. A
// refusal is a *wire.Problem, as it is with do.
func (c *client) webSocket(ctx context.Context, path string) (*webSocket, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, &unreachableError{socket: c.String(), remote: c.tls != nil, err: err}
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	w, err := c.upgrade(conn, path)
	if err == nil {
		w.stop = stop
		return w, nil
	}
	stop()
	conn.Close()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return nil, err
}

func (c *client) upgrade(conn net.Conn, path string) (*webSocket, error) {
	_, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\n%sConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %s\r\n\r\n", path, c.fields(), nonce)
	if err != nil {
		return nil, c.brokeOff(err)
	}
	r := bufio.NewReaderSize(conn, maxOut)
	text := textproto.NewReader(r)
	line, err := text.ReadLine()
	if err != nil {
		return nil, c.brokeOff(err)
	}
	if !strings.HasPrefix(line, "HTTP/1.1 101") {
		if _, err := c.answered(line, r); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("the server at %s answered %q to a request for a WebSocket: is it trayd?", c.String(), line)
	}
	header, err := text.ReadMIMEHeader()
	switch {
	case err != nil:
		return nil, c.brokeOff(err)
	case header.Get("Sec-Websocket-Accept") != nonceOK:
		return nil, fmt.Errorf("the server at %s doesn't speak WebSocket: is it trayd?", c.String())
	}
	return &webSocket{client: c, conn: conn, r: r}, nil
}

// Read reads what comes. Its error is an *endedError when trayd ended it with a reason, and
// an *unreachableError when it broke off.
func (w *webSocket) Read(p []byte) (int, error) {
	for w.left == 0 {
		if err := w.next(); err != nil {
			return 0, err
		}
	}
	n, err := w.r.Read(p[:min(uint64(len(p)), w.left)])
	w.left -= uint64(n)
	if err != nil {
		return n, w.client.brokeOff(noEOF(err))
	}
	return n, nil
}

// next reads the head of a frame, and sees to one that isn't data.
func (w *webSocket) next() error {
	var h [8]byte
	if _, err := io.ReadFull(w.r, h[:2]); err != nil {
		return w.client.brokeOff(noEOF(err))
	}
	op, size, long := h[0]&0xf, uint64(h[1]), 0
	switch size { // a server's frames have no mask
	case 126:
		long = 2
	case 127:
		long = 8
	}
	if long > 0 {
		clear(h[:])
		if _, err := io.ReadFull(w.r, h[8-long:]); err != nil {
			return w.client.brokeOff(noEOF(err))
		}
		size = binary.BigEndian.Uint64(h[:])
	}
	if op == opBinary || op == opContinuation {
		w.left = size
		return nil
	}
	if size > maxControl {
		return w.garbled()
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(w.r, b); err != nil {
		return w.client.brokeOff(noEOF(err))
	}
	switch op {
	case opPing:
		return w.frame(opPong, b)
	case opPong:
		return nil
	case opClose:
		e := &endedError{code: closeNormal}
		if len(b) >= 2 {
			e.code, e.reason = int(binary.BigEndian.Uint16(b)), string(b[2:])
		}
		_ = w.frame(opClose, b) // it may have gone
		return e
	}
	return w.garbled()
}

func (w *webSocket) garbled() error {
	return fmt.Errorf("the server at %s sent something that is no frame of a console: is it trayd?", w.client.String())
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Write sends p in frames.
func (w *webSocket) Write(p []byte) (n int, err error) {
	for n < len(p) {
		piece := p[n:min(n+maxOut, len(p))]
		if err := w.frame(opBinary, piece); err != nil {
			return n, err
		}
		n += len(piece)
	}
	return n, nil
}

// frame sends one frame, in one write.
func (w *webSocket) frame(op byte, p []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	b := append(w.out[:0], finBit|op)
	if len(p) <= maxControl {
		b = append(b, maskBit|byte(len(p)))
	} else {
		b = append(b, maskBit|126)
		b = binary.BigEndian.AppendUint16(b, uint16(len(p)))
	}
	// The mask keeps a page's script from writing what an old proxy takes for a request;
	// trayd wants it, whatever it is.
	b = binary.BigEndian.AppendUint32(b, rand.Uint32())
	mask := b[len(b)-4:]
	head := len(b)
	b = append(b, p...)
	for i := range p {
		b[head+i] ^= mask[i%4]
	}
	w.out = b
	if _, err := w.conn.Write(b); err != nil {
		return w.client.brokeOff(err)
	}
	return nil
}

// Close says that it is over, and doesn't wait for the answer.
func (w *webSocket) Close() error {
	_ = w.frame(opClose, []byte{closeNormal >> 8, closeNormal & 0xff}) // it may be over already
	w.stop()
	return w.conn.Close()
}
