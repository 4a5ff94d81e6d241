package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"time"

	"github.com/trayd/trayd/internal/wire"
)

// viewerWait is how long a viewer is waited for.
const viewerWait = time.Minute

// viewers are the programs that show a screen, the best first, and what each calls a port of
// loopback.
var viewers = []struct {
	program string
	address func(host string, port int) string
}{
	{"remote-viewer", screenURL},
	{"vncviewer", func(host string, port int) string { return host + "::" + strconv.Itoa(port) }}, // one colon: a display
	{"gvncviewer", func(host string, port int) string { return host + ":" + strconv.Itoa(port-firstDisplay) }},
	{"vinagre", screenURL},
}

// firstDisplay is the port of VNC's display 0.
const firstDisplay = 5900

func screenURL(host string, port int) string {
	return "vnc://" + net.JoinHostPort(host, strconv.Itoa(port))
}

// findViewer is the command that shows what listens at an address; nil where there is none, or
// no display for it.
func findViewer(host string, port int) *exec.Cmd {
	if os.Getenv("DISPLAY") == "" && os.Getenv("WAYLAND_DISPLAY") == "" {
		return nil
	}
	for _, v := range viewers {
		if path, err := exec.LookPath(v.program); err == nil {
			return exec.Command(path, v.address(host, port))
		}
	}
	return nil
}

// screen listens for a viewer of a machine's screen, starts one unless the address is the
// user's own, and ends when no viewer is connected any more.
func (c *cli) screen(ctx context.Context, name, listen string) error {
	address, err := loopback(listen)
	if err != nil {
		return usageError{err}
	}
	path := vmPath(name, "console")
	// What is wrong with the machine is said here, rather than by a viewer that can't connect.
	var p *wire.Problem
	if err := c.client.do(ctx, "GET", path, nil, nil); !errors.As(err, &p) || p.Code != upgradeRequired {
		if err == nil {
			err = fmt.Errorf("the server at %s doesn't speak WebSocket: is it trayd?", c.client.String())
		}
		return err
	}
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(address))
	if err != nil {
		return &wire.Problem{Code: "no-listener", VM: name, Detail: "no viewer can be listened for: " + err.Error(), Next: "use another port; 0 is a free one"}
	}
	defer l.Close()
	at := l.Addr().(*net.TCPAddr)
	var ended <-chan error // of the viewer; nil without
	if v := findViewer(at.IP.String(), at.Port); v != nil && listen == "" {
		if ended, err = start(v, c.stderr); err != nil {
			return err
		}
	} else {
		url := screenURL(at.IP.String(), at.Port)
		if err := c.print(map[string]string{"vm": name, "url": url}, func(w io.Writer) { fmt.Fprintln(w, url) }); err != nil {
			return err
		}
		fmt.Fprintf(c.stderr, "waiting for a viewer; it has %s to connect\n", viewerWait)
	}
	t := &tunnel{c: c, name: name, path: path, l: l, wait: viewerWait}
	return t.run(ctx, ended)
}

// upgradeRequired is trayd's answer to a request for a console that isn't a WebSocket's, and
// that would have been granted.
const upgradeRequired = "upgrade-required"

// start starts a viewer. It isn't ended with this command: it may have something to say.
func start(v *exec.Cmd, stderr io.Writer) (<-chan error, error) {
	v.Stderr = stderr
	if err := v.Start(); err != nil {
		return nil, fmt.Errorf("the viewer can't be started: %w", err)
	}
	ended := make(chan error, 1)
	go func() {
		if err := v.Wait(); err != nil {
			ended <- fmt.Errorf("%s: %w", v.Args[0], err)
			return
		}
		ended <- fmt.Errorf("%s ended", v.Args[0])
	}()
	return ended, nil
}

// loopback is the address to listen at: a free port without one. No other than loopback,
// since VNC has neither a password nor encryption.
func loopback(listen string) (netip.AddrPort, error) {
	if listen == "" {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0), nil
	}
	host, port, err := net.SplitHostPort(listen)
	if host == "localhost" {
		host = "127.0.0.1"
	}
	if err == nil {
		var a netip.AddrPort
		if a, err = netip.ParseAddrPort(net.JoinHostPort(host, port)); err == nil && a.Addr().IsLoopback() {
			return a, nil
		}
	}
	return netip.AddrPort{}, fmt.Errorf("--listen %q: use a port of loopback, such as 127.0.0.1:5901; from elsewhere, `ssh -L 5901:127.0.0.1:5901 HOST` leads there", listen)
}
