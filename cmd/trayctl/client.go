package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"syscall"
	"time"

	"github.com/trayd/trayd/internal/api"
)

// client talks to the agent's API over its unix socket.
type client struct {
	socket string
	http   *http.Client
}

// continueTimeout is how long an upload waits to be asked for its bytes.
const continueTimeout = time.Second

func newClient(socket string) *client {
	var d net.Dialer
	return &client{socket: socket, http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return d.DialContext(ctx, "unix", socket)
		},
		ExpectContinueTimeout: continueTimeout,
	}}}
}

// do sends a request and decodes the answer into out. A refusal is an *api.Problem,
// an agent that isn't there an *unreachableError.
func (c *client) do(ctx context.Context, method, path string, in, out any) error {
	resp, err := c.send(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out == nil {
		return nil
	}
	b, err := c.read(ctx, resp)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("the server at %s answered something else than was asked: is it trayd? %w", c.socket, err)
	}
	return nil
}

// read reads an answer whole. One that breaks off is an agent that died.
func (c *client) read(ctx context.Context, resp *http.Response) ([]byte, error) {
	b, err := io.ReadAll(resp.Body)
	switch {
	case err == nil:
		return b, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	}
	return nil, &unreachableError{socket: c.socket, err: fmt.Errorf("its answer broke off: %w", err)}
}

// upload sends a file as the request's body and decodes the answer into out.
func (c *client) upload(ctx context.Context, path string, file io.Reader, size int64, out any) error {
	resp, err := c.sendBody(ctx, http.MethodPut, path, file, size)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := c.read(ctx, resp)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, out)
}

// send sends a request; the answer is a success whose body the caller closes.
func (c *client) send(ctx context.Context, method, path string, in any) (*http.Response, error) {
	if in == nil {
		return c.sendBody(ctx, method, path, nil, 0)
	}
	b, err := json.Marshal(in)
	if err != nil {
		return nil, err
	}
	return c.sendBody(ctx, method, path, bytes.NewReader(b), int64(len(b)))
}

func (c *client) sendBody(ctx context.Context, method, path string, body io.Reader, size int64) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://trayd"+path, body)
	if err != nil {
		return nil, err
	}
	req.ContentLength = size
	if method == http.MethodPut {
		req.Header.Set("Expect", "100-continue") // a refusal comes before the bytes are sent
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, &unreachableError{socket: c.socket, err: err}
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	b, err := c.read(ctx, resp)
	if err != nil {
		return nil, err
	}
	var p api.Problem
	if json.Unmarshal(b, &p) != nil || p.Code == "" {
		return nil, fmt.Errorf("the server at %s answered %s: is it trayd?", c.socket, resp.Status)
	}
	return nil, &p
}

// drivePath is the API's path of a drive.
func drivePath(t target) string {
	drive := t.drive
	if drive == "" {
		drive = api.OnlyDrive
	}
	return "/v1/vms/" + url.PathEscape(t.vm) + "/drives/" + url.PathEscape(drive)
}

// unreachableError is an agent that can't be reached.
type unreachableError struct {
	socket string
	err    error
}

func (e *unreachableError) Error() string {
	cause := e.err
	var u *url.Error
	if errors.As(cause, &u) {
		cause = u.Err
	}
	return fmt.Sprintf("trayd can't be reached at %s: %v", e.socket, cause)
}

func (e *unreachableError) Unwrap() error { return e.err }

// connected reports whether trayd was there and went away before it had answered, so
// that nobody knows what became of the request.
func (e *unreachableError) connected() bool {
	var op *net.OpError
	return !errors.As(e.err, &op) || op.Op != "dial"
}

// next is what to check.
func (e *unreachableError) next() string {
	switch {
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
