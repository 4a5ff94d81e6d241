package fetch

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"
)

// targetError is of an address that is not dialled.
type targetError struct {
	addr netip.Addr
	what string
}

func (e *targetError) Error() string { return fmt.Sprintf("%s is %s", e.addr, e.what) }

// nat64 has an IPv4 address in its last four bytes (RFC 6052).
var nat64 = netip.MustParsePrefix("64:ff9b::/96")

// thisNetwork is of RFC 1122, 3.2.1.3; Linux takes 0.0.0.0 for itself.
var thisNetwork = netip.MustParsePrefix("0.0.0.0/8")

// metadata are the services of clouds that give a machine its credentials, as far as they
// aren't link-local: Amazon's by IPv6, Alibaba's.
var metadata = []netip.Addr{netip.MustParseAddr("fd00:ec2::254"), netip.MustParseAddr("100.100.100.200")}

// forbidden says what an address is that must not be dialled; empty when it may be.
func forbidden(a netip.Addr, allow []netip.Prefix) string {
	a = a.WithZone("").Unmap()
	for _, p := range allow {
		if p.Contains(a) {
			return ""
		}
	}
	if nat64.Contains(a) {
		b := a.As16()
		a = netip.AddrFrom4([4]byte(b[12:]))
	}
	for _, m := range metadata {
		if a == m {
			return "a cloud's metadata service"
		}
	}
	switch {
	case a.IsLoopback():
		return "this host itself (loopback)"
	case a.IsUnspecified(), thisNetwork.Contains(a):
		return "this host itself (unspecified)"
	case a.IsLinkLocalUnicast():
		return "link-local"
	case a.IsMulticast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return "multicast or broadcast"
	}
	return ""
}

// guard sees an address that is about to be dialled, after the name was resolved, so that no
// name server can change its mind in between.
func (c *Client) guard(a netip.Addr) error {
	if what := forbidden(a, c.o.AllowPrivate); what != "" {
		return &targetError{addr: a.WithZone("").Unmap(), what: what}
	}
	return nil
}

// dial is the ordinary way.
func dial(ctx context.Context, network, address string, check func(netip.Addr) error) (net.Conn, error) {
	var d net.Dialer
	if check != nil {
		d.Control = func(_, address string, _ syscall.RawConn) error {
			ap, err := netip.ParseAddrPort(address)
			if err != nil {
				return fmt.Errorf("the address %q can't be checked: %w", address, err)
			}
			return check(ap.Addr())
		}
	}
	return d.DialContext(ctx, network, address)
}
