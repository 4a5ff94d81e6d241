package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/textproto"
	"net/url"
	"strconv"
	"strings"
	"syscall"

	"github.com/trayd/trayd/internal/wire"
)

// client talks to the agent's API over its unix socket, or to another host's over TLS: one
// request a connection, in HTTP/1.0, whose answer ends with the connection. This is not
// net/http: to bring that in and to start it takes the kernel and the runtime 1 ms, a fifth
// of what a change of disc takes as a whole (measured: `make bench`), and of all that it can
// do, this needs a line of text before each body.
type client struct {
	*host
}

func newClient(socket string) *client { return &client{&host{socket: socket}} }

// answer is a success, whose body the caller closes.
type answer struct {
	io.Reader
	io.Closer
	length int64 // of the body in bytes; -1: until the end
}

// do sends a request and decodes the answer into out. A refusal is a *wire.Problem,
// an agent that isn't there an *unreachableError.
func (c *client) do(ctx context.Context, method, path string, in, out any) error {
	var body []byte
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return err
		}
	}
	a, err := c.send(ctx, method, path, bytes.NewReader(body), int64(len(body)))
	if err != nil {
		return err
	}
	defer a.Close()
	if out == nil {
		return nil
	}
	b, err := c.read(ctx, a)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("the server at %s answered something else than was asked: is it trayd? %w", c.String(), err)
	}
	return nil
}

// read reads an answer whole. One that breaks off is an agent that died.
func (c *client) read(ctx context.Context, a *answer) ([]byte, error) {
	b, err := io.ReadAll(a)
	if err == nil && a.length >= 0 && int64(len(b)) != a.length {
		err = io.ErrUnexpectedEOF
	}
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		return nil, c.brokeOff(err)
	}
	return b, nil
}

func (c *client) brokeOff(err error) error {
	return &unreachableError{socket: c.String(), err: fmt.Errorf("its answer broke off: %w", err)}
}

// send sends a request with a body of size bytes, or, with -1, until its end. It ends with
// the context.
func (c *client) send(ctx context.Context, method, path string, body io.Reader, size int64) (*answer, error) {
	return c.sendWith(ctx, method, path, "", body, size)
}

// sendWith is send with further fields of the head, each with the end of its line.
func (c *client) sendWith(ctx context.Context, method, path, fields string, body io.Reader, size int64) (*answer, error) {
	conn, err := c.dial(ctx)
	if err != nil {
		return nil, &unreachableError{socket: c.String(), remote: c.tls != nil, err: err}
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	a, err := c.exchange(conn, method, path, fields, body, size)
	if err == nil {
		a.Closer = closer(func() error { stop(); return conn.Close() })
		return a, nil
	}
	stop()
	conn.Close()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return nil, err
}

type closer func() error

func (f closer) Close() error { return f() }

// exchange writes the request and reads the answer's head (RFC 9112).
func (c *client) exchange(conn net.Conn, method, path, fields string, body io.Reader, size int64) (*answer, error) {
	head := fmt.Sprintf("%s %s HTTP/1.0\r\n%s%sContent-Length: %d\r\n\r\n", method, path, c.fields(), fields, size)
	r := bufio.NewReader(conn)
	text := textproto.NewReader(r)
	large := size > maxInline || size < 0
	if large {
		length := fmt.Sprintf("Content-Length: %d", size)
		if size < 0 {
			length = "Transfer-Encoding: chunked"
		}
		// HTTP/1.1, for its 100 Continue: a refusal comes before the bytes are sent. Its
		// answer is short, so it comes with its length and not in chunks.
		head = fmt.Sprintf("%s %s HTTP/1.1\r\n%sConnection: close\r\nExpect: 100-continue\r\n%s%s\r\n\r\n", method, path, c.fields(), fields, length)
	} else if body != nil { // in one write: trayd is woken once
		b, err := io.ReadAll(body)
		if err != nil {
			return nil, err
		}
		head += string(b)
	}
	if _, err := io.WriteString(conn, head); err != nil {
		return nil, c.brokeOff(err)
	}
	line, err := text.ReadLine()
	if err == nil && large && strings.HasPrefix(line, "HTTP/1.1 100") {
		if _, err = text.ReadLine(); err == nil { // the empty one behind it
			if err := sendBody(conn, body, size); err != nil {
				return nil, err
			}
			line, err = text.ReadLine()
		}
	}
	if err != nil {
		return nil, c.brokeOff(err)
	}
	return c.answered(line, r)
}

// answered reads an answer behind its first line.
func (c *client) answered(line string, r *bufio.Reader) (*answer, error) {
	header, e := textproto.NewReader(r).ReadMIMEHeader()
	proto, status, _ := strings.Cut(line, " ")
	code, _ := strconv.Atoi(status[:min(3, len(status))])
	switch {
	case !strings.HasPrefix(proto, "HTTP/1.") || code < 200:
		return nil, fmt.Errorf("the server at %s answered %q: is it trayd?", c.String(), line)
	case e != nil:
		return nil, c.brokeOff(e)
	}
	a := &answer{Reader: r, length: -1}
	if n, err := strconv.ParseInt(header.Get("Content-Length"), 10, 64); err == nil {
		// What follows may be a reset: trayd has refused a body before its end.
		a.length, a.Reader = n, io.LimitReader(r, n)
	}
	if code < 300 {
		return a, nil
	}
	b, e := c.read(context.Background(), a) // the connection ends with the request's context
	if e != nil {
		return nil, e
	}
	var p wire.Problem
	if json.Unmarshal(b, &p) != nil || p.Code == "" {
		return nil, fmt.Errorf("the server at %s answered %s: is it trayd?", c.String(), status)
	}
	return nil, &p
}

// sendBody sends size bytes, or all in chunks (RFC 9112 7.1). Its error is that the body
// can't be read to its end; then the connection is closed, since the server would wait for
// the rest. What the server doesn't want to have is said by its answer.
func sendBody(conn net.Conn, body io.Reader, size int64) error {
	b := make([]byte, 1<<18)
	for sent := int64(0); size < 0 || sent < size; {
		into := b
		if size >= 0 {
			into = b[:min(int64(len(b)), size-sent)]
		}
		n, err := body.Read(into)
		if n > 0 {
			sent += int64(n)
			form, args := "%s", []any{b[:n]}
			if size < 0 {
				form, args = "%x\r\n%s\r\n", []any{n, b[:n]}
			}
			if _, err := fmt.Fprintf(conn, form, args...); err != nil {
				return nil
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF) && size < 0:
			_, _ = io.WriteString(conn, "0\r\n\r\n")
			return nil
		case errors.Is(err, io.EOF) && sent == size:
		case errors.Is(err, io.EOF):
			conn.Close()
			return fmt.Errorf("the file ended after %d of %d bytes: is it still being written?", sent, size)
		default:
			conn.Close()
			return fmt.Errorf("the file can't be read after %d bytes: %w", sent, err)
		}
	}
	return nil
}

// maxInline is the largest body, in bytes, that is sent together with the head.
const maxInline = 4 << 10

// drivePath is the API's path of a drive.
func drivePath(t target) string {
	drive := t.drive
	if drive == "" {
		drive = wire.OnlyDrive
	}
	return "/v1/vms/" + url.PathEscape(t.vm) + "/drives/" + url.PathEscape(drive)
}

// unreachableError is an agent that can't be reached.
type unreachableError struct {
	socket string
	remote bool // it is another host's
	err    error
}

func (e *unreachableError) Error() string {
	return fmt.Sprintf("trayd can't be reached at %s: %v", e.socket, e.err)
}

func (e *unreachableError) Unwrap() error { return e.err }

// connected reports whether trayd was there and went away before it had answered, so
// that nobody knows what became of the request.
func (e *unreachableError) connected() bool {
	var op *net.OpError
	return !errors.As(e.err, &op) || op.Op != "dial"
}

// untrusted reports whether somebody answered whose certificate isn't the right one.
func (e *unreachableError) untrusted() bool {
	var wrong *tls.CertificateVerificationError
	return errors.As(e.err, &wrong) || errors.Is(e.err, errFingerprint)
}

// next is what to check.
func (e *unreachableError) next() string {
	switch {
	case e.untrusted():
		return "trayd says the fingerprint of its certificate when it starts (`journalctl -u trayd` on the host): give that with --fingerprint, or who has signed it with --ca-file"
	case e.remote && !e.connected():
		return "is the host up, and does its trayd listen there (api.listen in its trayd.toml)?"
	case errors.Is(e.err, fs.ErrPermission):
		return "become root or a member of the group trayd (`sudo usermod -aG trayd $USER`, then log in again)"
	case errors.Is(e.err, fs.ErrNotExist):
		return "is trayd running (`systemctl status trayd.socket trayd`)? another socket: --socket or $TRAYD_SOCKET"
	case errors.Is(e.err, syscall.ECONNREFUSED):
		return "trayd is not running: `systemctl start trayd`, and `journalctl -u trayd` says why it ended"
	case e.connected():
		return "trayd ended in the middle: `journalctl -u trayd` says why"
	}
	return "`systemctl status trayd`, and --socket or $TRAYD_SOCKET for another place"
}
