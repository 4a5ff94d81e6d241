// Package network lets trayd use the network without being able to open a socket to it.
//
// trayd reads discs as root may and has the kernel map block devices. So its unit takes
// every address family but AF_UNIX from it, and a process of its own, the broker, which
// may nothing but that, opens sockets for it: it resolves names, connects, listens, and
// hears the kernel's messages about devices. The socket is passed over (SCM_RIGHTS), and
// from then on it is trayd's: the broker sees nothing of what is said, and its end doesn't
// end connections.
//
// Which addresses may be dialled is trayd's to say: DialContext asks its caller for each
// address, after the name was resolved and before it is dialled, so that no name server can
// change its mind in between. What the broker by itself keeps to is its unit's
// (trayd-network.service).
//
// # What goes over the socket
//
// A unix stream socket, one request per connection: a line of JSON each way, the second
// with a descriptor where one was asked for. Closing the connection cancels. Only the
// user whose the socket is, and root, are answered (SO_PEERCRED).
package network

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// maxLine is the longest request or reply, in bytes. A name has at most 253, and an answer
// of DNS over TCP has 64 KiB at most, hence some 4000 addresses; maxAddresses are passed on.
const maxLine = 64 << 10

// maxAddresses is how many addresses of a name are passed on.
const maxAddresses = 256

// maxName is the longest name of a host, in bytes (RFC 1035, 2.3.4).
const maxName = 255

// operation is what is asked for.
type operation string

const (
	resolve operation = "resolve" // of Name; the reply has Addresses
	connect operation = "connect" // to Address; the reply has a TCP socket
	listen  operation = "listen"  // on Address; the reply has a listening TCP socket
	uevents operation = "uevents" // the reply has a netlink socket (NETLINK_KOBJECT_UEVENT)
)

type request struct {
	Do      operation      `json:"do"`
	Name    string         `json:"name,omitempty"`
	Address netip.AddrPort `json:"address,omitzero"`
}

type reply struct {
	Addresses []netip.Addr `json:"addresses,omitempty"`
	Failure   *failure     `json:"failure,omitempty"`
}

// send writes a line, and passes a descriptor along if there is one (not -1).
func send(c *net.UnixConn, v any, fd int) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	line = append(line, '\n')
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	n, _, err := c.WriteMsgUnix(line, rights, nil) // the descriptor goes with the first byte
	if err == nil && n < len(line) {
		_, err = c.Write(line[n:])
	}
	return err
}

// receive reads a line, and the descriptor that came along, if one did; it is the caller's
// to close. io.EOF says that there was no whole line.
func receive(c *net.UnixConn, v any) (*os.File, error) {
	var line []byte
	var passed *os.File
	fail := func(err error) (*os.File, error) {
		if passed != nil {
			passed.Close()
		}
		return nil, err
	}
	// CmsgSpace would be rounded up to room for two.
	buf, rights := make([]byte, 4<<10), make([]byte, unix.CmsgLen(4))
	for !bytes.HasSuffix(line, []byte{'\n'}) {
		n, m, _, _, err := c.ReadMsgUnix(buf, rights)
		if f := descriptor(rights[:m]); f != nil && passed == nil {
			passed = f
		} else if f != nil {
			f.Close()
		}
		switch {
		case err != nil && !errors.Is(err, io.EOF):
			return fail(err)
		case n == 0:
			return fail(io.EOF)
		}
		if line = append(line, buf[:n]...); len(line) > maxLine {
			return fail(fmt.Errorf("more than %d bytes", maxLine))
		}
	}
	if err := json.Unmarshal(line, v); err != nil {
		return fail(err)
	}
	return passed, nil
}

// descriptor is the one in a control message: there is room for one, and the kernel closes
// what finds none.
func descriptor(control []byte) *os.File {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil || len(messages) == 0 {
		return nil
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) == 0 {
		return nil
	}
	return os.NewFile(uintptr(fds[0]), "passed")
}
