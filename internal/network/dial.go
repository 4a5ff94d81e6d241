package network

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"
)

const (
	// mostWait bounds a call whose context has no deadline.
	mostWait = 30 * time.Second
	// leastShare is the least time that an address gets, as long as there is so much, as
	// net.Dialer has it: a retransmission takes one second, the next two more (RFC 6298).
	leastShare = 2 * time.Second
)

// DialContext connects to address, which is host:port, as a net.Dialer does: the name is
// resolved, and its addresses are tried in turn, each for a fair share of the time that ctx
// leaves (30 s where it has no deadline). network is tcp, tcp4 or tcp6. Each address is
// given to check, which says why it must not be dialled (nil check: all may be), right before it is dialled; one that it refuses is
// passed over. The error is that of the first address: a *net.OpError with the system's or
// check's, or one of Resolve's.
func (c *Client) DialContext(ctx context.Context, network, address string, check func(netip.Addr) error) (net.Conn, error) {
	ctx, cancel := bounded(ctx)
	defer cancel()
	all, port, err := c.targets(ctx, network, address)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: err}
	}
	var first error
	for i, a := range all {
		conn, err := c.dialOne(ctx, netip.AddrPortFrom(a, port), len(all)-i, check)
		if err == nil {
			return conn, nil
		}
		if first == nil {
			first = err
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, first
}

// bounded gives a context a deadline that has none.
func bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, has := ctx.Deadline(); has {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, mostWait)
}

// targets are the addresses to try, in order.
func (c *Client) targets(ctx context.Context, network, address string) ([]netip.Addr, uint16, error) {
	if network != "tcp" && network != "tcp4" && network != "tcp6" {
		return nil, 0, net.UnknownNetworkError(network)
	}
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return nil, 0, err
	}
	port, err := new(net.Resolver).LookupPort(ctx, "tcp", service) // by /etc/services
	if err != nil {
		return nil, 0, err
	}
	var all []netip.Addr
	if a, err := netip.ParseAddr(host); err == nil {
		all = []netip.Addr{a}
	} else if all, err = c.Resolve(ctx, host); err != nil {
		return nil, 0, err
	}
	all = interleave(all, network)
	if len(all) == 0 {
		return nil, 0, &net.AddrError{Err: "no suitable address", Addr: host}
	}
	return all, uint16(port), nil
}

// interleave takes the addresses that a network has, of both families in turn, beginning
// with that of the first: when one of them is broken, the other's turn comes soon.
func interleave(all []netip.Addr, network string) []netip.Addr {
	var families [2][]netip.Addr
	for _, a := range all {
		a = a.Unmap()
		if network == "tcp4" && !a.Is4() || network == "tcp6" && !a.Is6() {
			continue
		}
		i := 0
		if len(families[0]) > 0 && families[0][0].Is4() != a.Is4() {
			i = 1
		}
		families[i] = append(families[i], a)
	}
	var mixed []netip.Addr
	for i := range max(len(families[0]), len(families[1])) {
		for _, f := range families {
			if i < len(f) {
				mixed = append(mixed, f[i])
			}
		}
	}
	return mixed
}

// dialOne dials one of so many addresses that are left.
func (c *Client) dialOne(ctx context.Context, at netip.AddrPort, left int, check func(netip.Addr) error) (net.Conn, error) {
	failed := func(err error) error {
		return &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(at), Err: err}
	}
	if check != nil {
		if err := check(at.Addr()); err != nil {
			return nil, failed(err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, share(ctx, left))
	defer cancel()
	conn, err := c.connect(ctx, at)
	var op *net.OpError
	if err != nil && !errors.As(err, &op) {
		err = failed(err)
	}
	return conn, err
}

// share is an address's part of the time that ctx, which has a deadline, leaves.
func share(ctx context.Context, left int) time.Duration {
	end, _ := ctx.Deadline()
	all := time.Until(end)
	return max(all/time.Duration(left), min(all, leastShare))
}
