package network

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Client asks a broker. Its methods are safe for concurrent use, and take 30 s at most where
// their context has no deadline.
type Client struct {
	Path string // of the broker's socket
}

// Resolve returns a name's addresses, in the order in which they should be tried. The error
// is a *net.DNSError (also when ctx's time is over), ctx's, or an *UnavailableError.
func (c *Client) Resolve(ctx context.Context, name string) ([]netip.Addr, error) {
	r, f, err := c.ask(ctx, request{Do: resolve, Name: name})
	if f != nil {
		f.Close()
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return nil, &net.DNSError{Err: err.Error(), Name: name, IsTimeout: true, IsTemporary: true}
	case err != nil:
		return nil, err
	}
	if err := r.Failure.error("lookup", nil); err != nil {
		return nil, err
	}
	if len(r.Addresses) == 0 {
		return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	}
	return r.Addresses, nil
}

// Listen returns a listener on an address; port 0 is any. The error is a *net.OpError with
// the system's, ctx's, or an *UnavailableError.
func (c *Client) Listen(ctx context.Context, at netip.AddrPort) (net.Listener, error) {
	f, err := c.socket(ctx, request{Do: listen, Address: at}, "listen", net.TCPAddrFromAddrPort(at))
	if err != nil {
		return nil, err
	}
	defer f.Close() // the listener has a duplicate
	return net.FileListener(f)
}

// Uevents returns the socket on which the kernel tells of devices (netlink(7),
// NETLINK_KOBJECT_UEVENT, group 1). Reads wait for a message.
func (c *Client) Uevents(ctx context.Context) (*os.File, error) {
	return c.socket(ctx, request{Do: uevents}, "listen", nil)
}

// connect returns a connection to one address.
func (c *Client) connect(ctx context.Context, at netip.AddrPort) (net.Conn, error) {
	f, err := c.socket(ctx, request{Do: connect, Address: at}, "dial", net.TCPAddrFromAddrPort(at))
	if err != nil {
		return nil, err
	}
	defer f.Close() // the connection has a duplicate
	return net.FileConn(f)
}

// socket asks for one. op and at are for the error.
func (c *Client) socket(ctx context.Context, r request, op string, at net.Addr) (*os.File, error) {
	answer, f, err := c.ask(ctx, r)
	switch {
	case err != nil:
		return nil, err
	case answer.Failure != nil:
		if f != nil {
			f.Close()
		}
		return nil, answer.Failure.error(op, at)
	case f == nil:
		return nil, &UnavailableError{c.Path, "it passed no socket"}
	}
	return f, nil
}

// ask asks once more when the broker ended in the middle: the next is there at once, and
// what the first had opened ended with it.
func (c *Client) ask(ctx context.Context, r request) (reply, *os.File, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	answer, f, err := c.once(ctx, r)
	var gone *UnavailableError
	if errors.As(err, &gone) && gone.Why == endedEarly {
		return c.once(ctx, r)
	}
	return answer, f, err
}

// endedEarly is why there is no answer when the broker is killed.
const endedEarly = "it ended before it answered"

func (c *Client) once(ctx context.Context, r request) (reply, *os.File, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", c.Path)
	if err != nil {
		return reply{}, nil, c.failed(ctx, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	broker := conn.(*net.UnixConn)
	var answer reply
	var f *os.File
	if err = send(broker, r, -1); err == nil {
		f, err = receive(broker, &answer)
	}
	if err != nil {
		return reply{}, nil, c.failed(ctx, err)
	}
	return answer, f, nil
}

// failed says what an error on the way to the broker means.
func (c *Client) failed(ctx context.Context, err error) error {
	var no unix.Errno
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, io.EOF), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		return &UnavailableError{c.Path, endedEarly}
	case errors.Is(err, unix.ECONNREFUSED):
		return &UnavailableError{c.Path, "nobody listens there"}
	case errors.As(err, &no):
		return &UnavailableError{c.Path, no.Error()}
	}
	return &UnavailableError{c.Path, err.Error()}
}
