package fetch

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/internal/network"
)

// byBroker is set in the environment of the process that runs all tests with a broker.
const byBroker = "TRAYD_TEST_BROKER"

// broker is a client of a broker that serves until the test ends.
func broker(t *testing.T) *network.Client {
	path := filepath.Join(t.TempDir(), "network.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() {
		b := network.Broker{Listener: l, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
		ended <- b.Serve(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
	})
	return &network.Client{Path: path}
}

// TestByBroker runs all tests of this package once more, in a process whose connections a
// broker makes.
func TestByBroker(t *testing.T) {
	if os.Getenv(byBroker) != "" {
		return // it is that process
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.count=1", "-test.timeout=5m")
	cmd.Env = append(os.Environ(), byBroker+"=1")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
}

// TestNotLetOut: that this host keeps trayd from somebody is not said of the server.
// The kernel says so for some firewalls, which a test can't set up.
func TestNotLetOut(t *testing.T) {
	c := newClient(t, func(o *Options) {
		o.Dial = func(context.Context, string, string, func(netip.Addr) error) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", unix.EPERM)}
		}
		o.Attempts = 1
	})
	_, err := c.Run(t.Context(), newDisk(t).job("http://192.0.2.1/x"))
	e := requireKind(t, Unreachable, err)
	require.Contains(t, e.Detail, "this host doesn't let trayd speak to 192.0.2.1")
}

// TestNoBroker: that there is no broker is not said of the server.
func TestNoBroker(t *testing.T) {
	c := newClient(t, func(o *Options) {
		o.Dial = (&network.Client{Path: filepath.Join(t.TempDir(), "none")}).DialContext
		o.Attempts = 1
	})
	_, err := c.Run(t.Context(), newDisk(t).job("http://127.0.0.1:1/x"))
	e := requireKind(t, Unreachable, err)
	require.Contains(t, e.Next, "systemctl status trayd-network")
	require.Contains(t, e.Detail, "no such file")
}
