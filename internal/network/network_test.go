package network

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/blockdev/volume"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a broker with its client.
type rig struct {
	*Client
	end    func()     // ends it, and waits
	served chan error // what Serve returned
}

func newRig(t *testing.T, change ...func(*Broker)) *rig {
	t.Helper()
	path := filepath.Join(t.TempDir(), "network.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	b := &Broker{Listener: l, Uevents: volume.ListenUevents, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	for _, f := range change {
		f(b)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &rig{Client: &Client{Path: path}, served: make(chan error, 1)}
	var done sync.WaitGroup
	done.Go(func() { r.served <- b.Serve(ctx) })
	r.end = sync.OnceFunc(func() { cancel(); done.Wait() })
	t.Cleanup(r.end)
	return r
}

// echo is a server that says what it hears, and its address.
func echo(t *testing.T, at string) (address string) {
	l, err := net.Listen("tcp", at)
	require.NoError(t, err)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { defer c.Close(); _, _ = io.Copy(c, c) })
		}
	})
	t.Cleanup(func() { l.Close(); serving.Wait() })
	return l.Addr().String()
}

func requireEcho(t *testing.T, c net.Conn) {
	t.Helper()
	_, err := c.Write([]byte("hello"))
	require.NoError(t, err)
	got := make([]byte, 5)
	_, err = io.ReadFull(c, got)
	require.NoError(t, err)
	require.Equal(t, "hello", string(got))
}

// option is a socket option of a connection.
func option(t *testing.T, c net.Conn, level, name int) (value int) {
	raw, err := c.(*net.TCPConn).SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) { value, err = unix.GetsockoptInt(int(fd), level, name) }))
	require.NoError(t, err)
	return value
}

// silent is a port that takes no connection and refuses none: its queue is full.
func silent(t *testing.T) string {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	require.NoError(t, unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	require.NoError(t, unix.Listen(fd, 0))
	at, err := unix.Getsockname(fd)
	require.NoError(t, err)
	address := "127.0.0.1:" + strconv.Itoa(at.(*unix.SockaddrInet4).Port)
	for {
		c, err := net.DialTimeout("tcp", address, 200*time.Millisecond)
		if err != nil {
			return address
		}
		t.Cleanup(func() { c.Close() })
	}
}

func TestDial(t *testing.T) {
	r := newRig(t)
	at := echo(t, "127.0.0.1:0")
	_, port, _ := net.SplitHostPort(at)
	for _, address := range []string{at, "localhost:" + port, "[::ffff:127.0.0.1]:" + port} {
		var checked []netip.Addr
		c, err := r.DialContext(t.Context(), "tcp", address, func(a netip.Addr) error { checked = append(checked, a); return nil })
		require.NoError(t, err, address)
		requireEcho(t, c)
		require.Equal(t, at, c.RemoteAddr().String())
		require.Contains(t, checked, netip.MustParseAddr("127.0.0.1"))
		own, err := net.Dial("tcp", at)
		require.NoError(t, err)
		for _, name := range []int{unix.TCP_KEEPIDLE, unix.TCP_KEEPINTVL, unix.TCP_KEEPCNT, unix.TCP_NODELAY} {
			require.Equal(t, option(t, own, unix.IPPROTO_TCP, name), option(t, c, unix.IPPROTO_TCP, name))
		}
		require.Equal(t, 1, option(t, c, unix.SOL_SOCKET, unix.SO_KEEPALIVE))
		require.NoError(t, own.Close())
		require.NoError(t, c.SetDeadline(time.Now().Add(-time.Second)))
		_, err = c.Read(make([]byte, 1))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded, "it is non-blocking")
		require.NoError(t, c.Close())
	}
	c, err := r.DialContext(t.Context(), "tcp", at, nil)
	require.NoError(t, err)
	defer c.Close()
	r.end()
	requireEcho(t, c)
}

// TestDialFails: the errors are those of a net.Dialer.
func TestDialFails(t *testing.T) {
	r := newRig(t)
	for _, address := range []string{"127.0.0.1:1", "[::1]:1", "255.255.255.255:80", "localhost:1"} {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		_, want := new(net.Dialer).DialContext(ctx, "tcp", address)
		cancel()
		ctx, cancel = context.WithTimeout(t.Context(), 2*time.Second)
		_, err := r.DialContext(ctx, "tcp", address, nil)
		cancel()
		var op, wantOp *net.OpError
		var no unix.Errno
		require.ErrorAs(t, err, &op, address)
		require.ErrorAs(t, want, &wantOp, address)
		require.Equal(t, wantOp.Op, op.Op, address)
		require.Equal(t, wantOp.Timeout(), op.Timeout(), address)
		if errors.As(want, &no) {
			require.ErrorIs(t, err, no, address)
			require.Equal(t, want.Error(), err.Error())
		}
	}
	for address, says := range map[string]string{"a..b:80": "no such host", "localhost": "missing port", "localhost:nope": "unknown port", "localhost:99999": "invalid port"} {
		_, err := r.DialContext(t.Context(), "tcp", address, nil)
		require.ErrorContains(t, err, says)
	}
	_, err := r.DialContext(t.Context(), "udp", "127.0.0.1:53", nil)
	require.ErrorContains(t, err, "unknown network udp")
	_, err = r.DialContext(t.Context(), "tcp6", "127.0.0.1:80", nil)
	require.ErrorContains(t, err, "no suitable address")
}

// TestDialForbidden: nothing is said to an address that is refused.
func TestDialForbidden(t *testing.T) {
	r := newRig(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	no := errors.New("not that one")
	_, port, _ := net.SplitHostPort(l.Addr().String())
	for _, host := range []string{"127.0.0.1", "localhost", "::ffff:127.0.0.1"} {
		_, err = r.DialContext(t.Context(), "tcp", net.JoinHostPort(host, port), func(netip.Addr) error { return no })
		require.ErrorIs(t, err, no)
	}
	require.NoError(t, l.(*net.TCPListener).SetDeadline(time.Now().Add(50*time.Millisecond)))
	_, err = l.Accept()
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
}

func TestInterleave(t *testing.T) {
	for all, row := range map[string]struct{ network, want string }{
		"10.0.0.1 10.0.0.2 fd00::1 fd00::2 fd00::3": {"tcp", "10.0.0.1 fd00::1 10.0.0.2 fd00::2 fd00::3"},
		"fd00::1 fd00::2 10.0.0.1":                  {"tcp", "fd00::1 10.0.0.1 fd00::2"},
		"fd00::1 10.0.0.1 ::ffff:10.0.0.2":          {"tcp4", "10.0.0.1 10.0.0.2"},
		"fd00::1 10.0.0.1":                          {"tcp6", "fd00::1"},
	} {
		var in []netip.Addr
		for _, a := range strings.Fields(all) {
			in = append(in, netip.MustParseAddr(a))
		}
		var got []string
		for _, a := range interleave(in, row.network) {
			got = append(got, a.String())
		}
		require.Equal(t, row.want, strings.Join(got, " "))
	}
}

func TestShare(t *testing.T) {
	for _, row := range []struct {
		left int
		all  time.Duration
		want time.Duration
	}{{1, 10 * time.Second, 10 * time.Second}, {4, 12 * time.Second, 3 * time.Second}, {10, 10 * time.Second, leastShare}, {10, time.Second, time.Second}} {
		ctx, cancel := context.WithTimeout(t.Context(), row.all)
		require.InDelta(t, row.want.Seconds(), share(ctx, row.left).Seconds(), 0.1)
		cancel()
	}
}

func TestDialIsCancelled(t *testing.T) {
	at := silent(t)
	r := newRig(t, func(b *Broker) { b.Idle = 50 * time.Millisecond })
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(100*time.Millisecond, cancel)
	began := time.Now()
	_, err := r.DialContext(ctx, "tcp", at, nil)
	require.ErrorIs(t, err, context.Canceled)
	require.Less(t, time.Since(began), 5*time.Second)
	select { // it stays as long as it works, and the working ends with the client
	case err := <-r.served:
		require.NoError(t, err)
	case <-time.After(5 * time.Second):
		require.Fail(t, "the broker goes on connecting")
	}
	require.GreaterOrEqual(t, time.Since(began), 100*time.Millisecond)
}

func TestDialTimeout(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err := r.DialContext(ctx, "tcp", silent(t), nil)
	var op *net.OpError
	require.ErrorAs(t, err, &op)
	require.True(t, op.Timeout())
	require.Equal(t, "dial", op.Op)
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

// TestEndInTheMiddle: the broker ends while it connects.
func TestEndInTheMiddle(t *testing.T) {
	r := newRig(t)
	time.AfterFunc(100*time.Millisecond, r.end)
	_, err := r.DialContext(t.Context(), "tcp", silent(t), nil)
	var gone *UnavailableError
	require.ErrorAs(t, err, &gone)
}

func TestResolve(t *testing.T) {
	r := newRig(t)
	all, err := r.Resolve(t.Context(), "localhost")
	require.NoError(t, err)
	want, err := net.DefaultResolver.LookupNetIP(t.Context(), "ip", "localhost")
	require.NoError(t, err)
	require.Equal(t, want, all)
	var dns *net.DNSError
	for _, name := range []string{"a..b", "", strings.Repeat("a.", 200)} {
		_, err = r.Resolve(t.Context(), name)
		require.ErrorAs(t, err, &dns, name)
		require.True(t, dns.IsNotFound, name)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	_, err = r.Resolve(ctx, "localhost")
	require.ErrorAs(t, err, &dns)
	require.True(t, dns.IsTimeout)
}

// TestFailures: what callers decide on gets over.
func TestFailures(t *testing.T) {
	for _, e := range []net.DNSError{
		{Err: "no such host", Name: "x", Server: "192.0.2.1:53", IsNotFound: true},
		{Err: "server misbehaving", Name: "x", IsTemporary: true},
		{Err: "i/o timeout", Name: "x", IsTimeout: true, IsTemporary: true},
	} {
		err := failureOf(&net.OpError{Op: "dial", Err: &e}).error("dial", nil)
		require.Equal(t, &e, err)
	}
	require.Nil(t, failureOf(nil))
	require.NoError(t, failureOf(nil).error("dial", nil))
	err := failureOf(context.DeadlineExceeded).error("dial", nil)
	require.True(t, err.(*net.OpError).Timeout())
	err = failureOf(errors.New("this and that")).error("listen", nil)
	require.ErrorContains(t, err, "listen tcp: this and that")
}

func TestListen(t *testing.T) {
	r := newRig(t)
	l, err := r.Listen(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"))
	require.NoError(t, err)
	at := netip.MustParseAddrPort(l.Addr().String())
	require.NotZero(t, at.Port())
	_, err = r.Listen(t.Context(), at)
	require.ErrorIs(t, err, unix.EADDRINUSE)
	require.ErrorContains(t, err, at.String())
	r.end()
	var served sync.WaitGroup
	served.Go(func() {
		c, err := l.Accept()
		if err == nil {
			_, _ = io.CopyN(c, c, 5)
			c.Close()
		}
	})
	c, err := net.Dial("tcp", at.String())
	require.NoError(t, err)
	requireEcho(t, c)
	require.NoError(t, c.Close())
	served.Wait()
	time.AfterFunc(50*time.Millisecond, func() { l.Close() })
	_, err = l.Accept()
	require.ErrorIs(t, err, net.ErrClosed)
}

func TestUevents(t *testing.T) {
	r := newRig(t)
	f, err := r.Uevents(t.Context())
	require.NoError(t, err)
	raw, err := f.SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) {
		at, err := unix.Getsockname(int(fd))
		require.NoError(t, err)
		require.Equal(t, uint32(1), at.(*unix.SockaddrNetlink).Groups)
		protocol, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PROTOCOL)
		require.NoError(t, err)
		require.Equal(t, unix.NETLINK_KOBJECT_UEVENT, protocol)
	}))
	time.AfterFunc(50*time.Millisecond, func() { f.Close() })
	_, err = io.Copy(io.Discard, f)
	require.ErrorIs(t, err, os.ErrClosed)

	r = newRig(t, func(b *Broker) { b.Uevents = func() (*os.File, error) { return nil, unix.EAFNOSUPPORT } })
	_, err = r.Uevents(t.Context())
	require.ErrorIs(t, err, unix.EAFNOSUPPORT)
}

func TestNobodyThere(t *testing.T) {
	r := newRig(t)
	r.end()
	for _, path := range []string{r.Path, filepath.Join(t.TempDir(), "none")} {
		_, err := (&Client{path}).DialContext(t.Context(), "tcp", "127.0.0.1:1", nil)
		var gone *UnavailableError
		require.ErrorAs(t, err, &gone)
		require.NotErrorIs(t, err, unix.ECONNREFUSED, "that would be said of the other host")
		require.ErrorContains(t, err, "systemctl status trayd-network")
		require.ErrorContains(t, err, path)
	}
}

// TestAsksAgain: a broker that was killed is asked again, and not for ever.
func TestAsksAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	var serving sync.WaitGroup
	defer serving.Wait()
	defer l.Close()
	answers := []bool{false, true, false, false}
	serving.Go(func() {
		for _, answer := range answers {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			var r request
			_, _ = receive(c, &r)
			if answer {
				_ = send(c, reply{Addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}}, -1)
			}
			c.Close()
		}
	})
	all, err := (&Client{path}).Resolve(t.Context(), "x")
	require.NoError(t, err)
	require.Len(t, all, 1)
	_, err = (&Client{path}).Resolve(t.Context(), "x")
	var gone *UnavailableError
	require.ErrorAs(t, err, &gone)
	require.Equal(t, endedEarly, gone.Why)
}

// TestStrangers: whoever gets at the socket is asked who it is.
func TestStrangers(t *testing.T) {
	r := newRig(t)
	require.Zero(t, os.Getuid(), "run as root, who can be another")
	require.NoError(t, os.Chmod(r.Path, 0o666))
	for dir := filepath.Dir(r.Path); dir != os.TempDir(); dir = filepath.Dir(dir) {
		require.NoError(t, os.Chmod(dir, 0o755))
	}
	var err error
	var done sync.WaitGroup
	done.Go(func() {
		runtime.LockOSThread() // for good: the thread, which is another user's from here on, ends
		if _, _, no := unix.RawSyscall(unix.SYS_SETRESUID, 65534, 65534, 65534); no != 0 {
			err = no
			return
		}
		_, err = r.Resolve(context.Background(), "localhost")
	})
	done.Wait()
	var gone *UnavailableError
	require.ErrorAs(t, err, &gone)
}

// TestNonsense: what isn't a request ends the connection, or says what is wrong, and leaves
// no descriptor.
func TestNonsense(t *testing.T) {
	r := newRig(t)
	before := descriptors(t)
	for text, says := range map[string]string{
		"nonsense\n": "", "": "", "{}\n": "nothing that can be asked for", `{"do":"exec"}` + "\n": "nothing that can be asked for",
		`{"do":"connect"}` + "\n": "no address", `{"do":"listen"}` + "\n": "no address", `{"do":"connect","address":"x"}` + "\n": "",
		strings.Repeat("a", 2*maxLine): "",
	} {
		c, err := net.Dial("unix", r.Path)
		require.NoError(t, err)
		_, _, _ = c.(*net.UnixConn).WriteMsgUnix([]byte(text), unix.UnixRights(0, 1), nil)
		if says == "" { // it has gone, as far as the broker sees, which may cancel an answer
			require.NoError(t, c.(*net.UnixConn).CloseWrite())
		}
		got, _ := io.ReadAll(c)
		if says == "" {
			require.Empty(t, string(got), "%.40q", text)
		}
		require.Contains(t, string(got), says, "%.40q", text)
		require.NoError(t, c.Close())
	}
	require.Eventually(t, func() bool { return descriptors(t) == before }, 5*time.Second, 10*time.Millisecond)
}

func descriptors(t *testing.T) int {
	all, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(all)
}

func TestIdle(t *testing.T) {
	r := newRig(t, func(b *Broker) { b.Idle = 200 * time.Millisecond })
	for range 3 {
		time.Sleep(100 * time.Millisecond)
		_, err := r.Resolve(t.Context(), "localhost")
		require.NoError(t, err)
	}
	select {
	case err := <-r.served:
		require.NoError(t, err)
	case <-time.After(5 * time.Second):
		require.Fail(t, "it stays")
	}
}

// TestMany: more at once than are served at once.
func TestMany(t *testing.T) {
	r := newRig(t)
	at := echo(t, "127.0.0.1:0")
	var all sync.WaitGroup
	errs := make(chan error, 3*maxRequests)
	for range cap(errs) {
		all.Go(func() {
			c, err := r.DialContext(t.Context(), "tcp", at, nil)
			if err == nil {
				err = c.Close()
			}
			errs <- err
		})
	}
	all.Wait()
	for range cap(errs) {
		require.NoError(t, <-errs)
	}
}
