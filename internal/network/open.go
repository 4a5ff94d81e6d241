package network

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
)

// socket is one that was opened, or nil.
type socket interface {
	io.Closer
	syscall.Conn
}

// opened is a socket on its way to the client; the zero value has none.
type opened struct{ socket socket }

// pass sends the answer, with the socket if there is one.
func (o opened) pass(c *net.UnixConn, answer reply) error {
	if o.socket == nil {
		return send(c, answer, -1)
	}
	raw, err := o.socket.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	// Not File(), which would make it blocking, for its receiver too.
	if err := raw.Control(func(fd uintptr) { sent = send(c, answer, int(fd)) }); err != nil {
		return err
	}
	return sent
}

func (o opened) close() {
	if o.socket != nil {
		o.socket.Close()
	}
}

// open does what was asked for.
func (b *Broker) open(ctx context.Context, r request) (reply, opened) {
	var s socket
	var err error
	switch r.Do {
	case resolve:
		addresses, err := lookUp(ctx, r.Name)
		return reply{Addresses: addresses, Failure: failureOf(err)}, opened{}
	case connect:
		s, err = dialTCP(ctx, r.Address)
	case listen:
		s, err = listenTCP(ctx, r.Address)
	case uevents:
		if b.Uevents == nil {
			err = fmt.Errorf("this broker has no %s", uevents)
			break
		}
		if f, failed := b.Uevents(); failed != nil {
			err = failed
		} else {
			s = f
		}
	default:
		err = fmt.Errorf("%.20q is nothing that can be asked for", r.Do)
	}
	if err != nil {
		return reply{Failure: failureOf(err)}, opened{}
	}
	return reply{}, opened{s}
}

// lookUp resolves a name by /etc/hosts and DNS, in the order in which the addresses should
// be tried (RFC 6724).
func lookUp(ctx context.Context, name string) ([]netip.Addr, error) {
	if len(name) > maxName || name == "" {
		return nil, &net.DNSError{Err: "no such host", Name: fmt.Sprintf("%.40s", name), IsNotFound: true}
	}
	all, err := new(net.Resolver).LookupNetIP(ctx, "ip", name)
	return all[:min(len(all), maxAddresses)], err
}

// dialTCP has the keep-alive of every connection of Go's.
func dialTCP(ctx context.Context, at netip.AddrPort) (socket, error) {
	if !at.IsValid() {
		return nil, fmt.Errorf("no address to connect to was named")
	}
	c, err := new(net.Dialer).DialContext(ctx, "tcp", at.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func listenTCP(ctx context.Context, at netip.AddrPort) (socket, error) {
	if !at.IsValid() {
		return nil, fmt.Errorf("no address to listen on was named")
	}
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", at.String())
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}
