package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/trayd/trayd/internal/wire"
)

// tunnel passes viewers on to a machine's screen.
type tunnel struct {
	c          *cli
	name, path string
	l          *net.TCPListener
	wait       time.Duration // for the first viewer
}

// run accepts viewers until the last one has gone. ended gives why a viewer that was started
// has ended; nil without one.
func (t *tunnel) run(ctx context.Context, ended <-chan error) error {
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	defer work.Wait()
	defer t.l.Close()
	defer cancel()
	accepted, gone := make(chan net.Conn), make(chan error)
	work.Go(func() { t.accept(ctx, accepted) })
	first := time.NewTimer(t.wait)
	defer first.Stop()
	for connected := 0; ; {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-first.C:
			return &wire.Problem{Code: "no-viewer", VM: t.name, Detail: fmt.Sprintf("no viewer has connected to %s in %s", t.l.Addr(), t.wait), Next: "connect one sooner; `trayctl vm screenshot " + t.name + "` needs none"}
		case err := <-ended:
			ended = nil
			if connected == 0 {
				return &wire.Problem{Code: "no-viewer", VM: t.name, Detail: fmt.Sprintf("the viewer has not connected: %v", err), Next: "see what it said, or connect another one: --listen 127.0.0.1:0"}
			}
		case conn, open := <-accepted:
			if !open {
				return fmt.Errorf("no viewer can connect to %s", t.l.Addr())
			}
			first.Stop()
			connected++
			work.Go(func() {
				err := t.carry(ctx, conn)
				select {
				case gone <- err:
				case <-ctx.Done():
				}
			})
		case err := <-gone:
			if connected--; connected == 0 {
				return err
			}
			if err != nil {
				t.c.report(ranError{err})
			}
		}
	}
}

// accept accepts connections of this user.
func (t *tunnel) accept(ctx context.Context, to chan<- net.Conn) {
	defer close(to)
	for {
		conn, err := t.l.AcceptTCP()
		if err != nil {
			return // closed
		}
		if err := fromUser(conn); err != nil {
			fmt.Fprintf(t.c.stderr, "trayctl: warning: a connection was refused: %v\n", err)
			conn.Close()
			continue
		}
		select {
		case to <- conn:
		case <-ctx.Done():
			conn.Close()
			return
		}
	}
}

// carry passes bytes between a viewer and the screen until either ends it; its error is that
// the viewer didn't.
func (t *tunnel) carry(ctx context.Context, viewer net.Conn) error {
	defer viewer.Close()
	w, err := t.c.client.webSocket(ctx, t.path)
	if err != nil {
		return err
	}
	shown, typed := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := io.Copy(viewer, w)
		shown <- err
	}()
	go func() {
		_, err := io.Copy(w, viewer)
		typed <- err
	}()
	var gone *unreachableError
	var ended *endedError
	select {
	case err = <-shown:
		w.Close()
		viewer.Close()
		<-typed
	case err = <-typed:
		if !errors.As(err, &gone) { // else trayd has said why
			w.Close()
		}
		err = <-shown
		if gone == nil {
			return nil
		}
		w.Close()
	}
	if errors.As(err, &gone) || errors.As(err, &ended) {
		return t.c.ended(ctx, t.name, err)
	}
	return nil
}

// fromUser refuses a connection from a process of another user of this host: loopback is
// everybody's. The kernel's table has the owner of the peer's socket.
func fromUser(conn *net.TCPConn) error {
	peer, here := conn.RemoteAddr().(*net.TCPAddr).AddrPort(), conn.LocalAddr().(*net.TCPAddr).AddrPort()
	for _, path := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		f, err := os.Open(path)
		if err != nil {
			continue // without IPv6
		}
		uid, found := ownerOf(f, peer, here)
		f.Close()
		switch {
		case !found:
		case uid == os.Getuid(), os.Getuid() == 0 && strconv.Itoa(uid) == os.Getenv("SUDO_UID"):
			return nil
		default:
			return fmt.Errorf("it is from a process of uid %d, and not of your own", uid)
		}
	}
	return fmt.Errorf("whose process %s is can't be found out", peer)
}

// ownerOf finds the user id of a socket by its two ends in a table of the kernel
// (Documentation/networking/proc_net_tcp.rst): sl local remote st queues timer retransmits
// uid. A socket of IPv6 may have a mapped address of IPv4.
func ownerOf(table io.Reader, local, remote netip.AddrPort) (uid int, found bool) {
	v4 := tableAddress(local, false) + " " + tableAddress(remote, false)
	v6 := tableAddress(local, true) + " " + tableAddress(remote, true)
	lines := bufio.NewScanner(table)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 8 {
			continue
		}
		if ends := f[1] + " " + f[2]; ends == v4 || ends == v6 {
			uid, err := strconv.Atoi(f[7])
			return uid, err == nil
		}
	}
	return 0, false
}

// tableAddress is an address as those tables have it: words of 32 bits in the host's order.
func tableAddress(a netip.AddrPort, wide bool) string {
	b := a.Addr().Unmap().AsSlice()
	if wide {
		all := a.Addr().As16()
		b = all[:]
	}
	var s strings.Builder
	for ; len(b) >= 4; b = b[4:] {
		fmt.Fprintf(&s, "%08X", binary.NativeEndian.Uint32(b))
	}
	fmt.Fprintf(&s, ":%04X", a.Port())
	return s.String()
}
