package systemd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const soon = 10 * time.Second

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// manager is the service manager's end of the notify socket.
func manager(t *testing.T) *net.UnixConn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return c
}

func heard(t *testing.T, c *net.UnixConn) string {
	t.Helper()
	require.NoError(t, c.SetReadDeadline(time.Now().Add(soon)))
	b := make([]byte, 4096)
	n, err := c.Read(b)
	require.NoError(t, err)
	return string(b[:n])
}

func heardNothing(t *testing.T, c *net.UnixConn, d time.Duration) {
	t.Helper()
	require.NoError(t, c.SetReadDeadline(time.Now().Add(d)))
	b := make([]byte, 4096)
	n, err := c.Read(b)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded, string(b[:n]))
}

func TestNotifierSaysWhatTheManagerUnderstands(t *testing.T) {
	m := manager(t)
	n, err := NewNotifier()
	require.NoError(t, err)
	assert.Empty(t, os.Getenv("NOTIFY_SOCKET"), "a child could speak for us")

	require.NoError(t, n.Ready("attached to 2 of 3\nmachines"))
	assert.Equal(t, "READY=1\nSTATUS=attached to 2 of 3 machines", heard(t, m))
	require.NoError(t, n.Status("fine"))
	assert.Equal(t, "STATUS=fine", heard(t, m))
	require.NoError(t, n.Stopping("on request"))
	assert.Equal(t, "STOPPING=1\nSTATUS=on request", heard(t, m))

	var before, after unix.Timespec
	require.NoError(t, unix.ClockGettime(unix.CLOCK_MONOTONIC, &before))
	require.NoError(t, n.Reloading())
	require.NoError(t, unix.ClockGettime(unix.CLOCK_MONOTONIC, &after))
	var at int64
	_, err = fmt.Sscanf(heard(t, m), "RELOADING=1\nMONOTONIC_USEC=%d", &at)
	require.NoError(t, err)
	assert.GreaterOrEqual(t, at, before.Nano()/1000)
	assert.LessOrEqual(t, at, after.Nano()/1000)
}

func TestNotifierOnAnAbstractSocket(t *testing.T) {
	name := fmt.Sprintf("@systemd-test-%d", os.Getpid())
	m, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	require.NoError(t, err)
	defer m.Close()
	t.Setenv("NOTIFY_SOCKET", name)
	n, err := NewNotifier()
	require.NoError(t, err)
	require.NoError(t, n.Status("here"))
	assert.Equal(t, "STATUS=here", heard(t, m))
}

func TestNotifierWithoutAManager(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	t.Setenv("WATCHDOG_USEC", "1000")
	for _, n := range []*Notifier{nil, must(NewNotifier())} {
		assert.NoError(t, n.Ready("x"))
		assert.NoError(t, n.Reloading())
		assert.NoError(t, n.Stopping("x"))
		n.Watch(t.Context(), func(context.Context) error { panic("asked") }, quiet)
	}
}

func must(n *Notifier, err error) *Notifier {
	if err != nil {
		panic(err)
	}
	return n
}

func TestNotifierInAnEnvironmentThatMakesNoSense(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "vsock:2:1234")
	n, err := NewNotifier()
	require.ErrorContains(t, err, "NOTIFY_SOCKET=vsock:2:1234")
	require.NoError(t, n.Ready("x"))

	m := manager(t)
	t.Setenv("WATCHDOG_USEC", "soon")
	n, err = NewNotifier()
	require.ErrorContains(t, err, "WATCHDOG_USEC")
	require.NoError(t, n.Ready("x"))
	assert.Contains(t, heard(t, m), "READY=1")
}

func TestNotifierReportsAManagerThatIsGone(t *testing.T) {
	m := manager(t)
	n := must(NewNotifier())
	m.Close()
	assert.ErrorContains(t, n.Ready("x"), "tell the service manager")
}

func TestNotifierDoesNotWaitForAManagerThatIsStuck(t *testing.T) {
	manager(t)
	n := must(NewNotifier())
	begin := time.Now()
	var err error
	for i := 0; err == nil && i < 10_000; i++ { // until the socket's queue is full
		err = n.Status("x")
	}
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	assert.Less(t, time.Since(begin), soon)
}

func TestWatchPingsForAsLongAsTheServiceIsHealthy(t *testing.T) {
	m := manager(t)
	t.Setenv("WATCHDOG_USEC", "200000")
	t.Setenv("WATCHDOG_PID", fmt.Sprint(os.Getpid()))
	n := must(NewNotifier())
	var state atomic.Value // of an error, or a channel that hangs
	state.Store(func() error { return nil })
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		n.Watch(ctx, func(context.Context) error { return state.Load().(func() error)() }, quiet)
		close(ended)
	}()
	assert.Equal(t, "WATCHDOG=1", heard(t, m))
	assert.Equal(t, "WATCHDOG=1", heard(t, m))

	state.Store(func() error { return errors.New("ill") })
	settle(t, m)
	heardNothing(t, m, 500*time.Millisecond)

	hang := make(chan struct{})
	state.Store(func() error { <-hang; return nil })
	heardNothing(t, m, 500*time.Millisecond)
	close(hang)
	assert.Equal(t, "WATCHDOG=1", heard(t, m), "it came back")

	cancel()
	<-ended
}

// settle reads what was on its way.
func settle(t *testing.T, c *net.UnixConn) {
	t.Helper()
	require.NoError(t, c.SetReadDeadline(time.Now().Add(150*time.Millisecond)))
	b := make([]byte, 4096)
	for {
		if _, err := c.Read(b); err != nil {
			return
		}
	}
}

func TestWatchAsksTwiceInTheIntervalAndNeverTwiceAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &Notifier{watchdog: 20 * time.Second} // without an address nothing is sent
		var calls, running, most atomic.Int32
		hang := make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		go n.Watch(ctx, func(ctx context.Context) error {
			most.Store(max(most.Load(), running.Add(1)))
			defer running.Add(-1)
			if calls.Add(1) == 4 {
				limit, _ := ctx.Deadline()
				assert.Equal(t, 5*time.Second, time.Until(limit))
				<-hang
			}
			return nil
		}, quiet)
		time.Sleep(25 * time.Second)
		assert.EqualValues(t, 3, calls.Load()) // at 0, 10 and 20 s
		time.Sleep(time.Minute)
		assert.EqualValues(t, 4, calls.Load(), "it hangs and isn't asked again")
		close(hang)
		time.Sleep(time.Minute)
		assert.Greater(t, calls.Load(), int32(8))
		assert.EqualValues(t, 1, most.Load())
		cancel()
		synctest.Wait()
	})
}

func TestStatusIsOneLine(t *testing.T) {
	assert.Equal(t, "STATUS=a b READY=1", statusLine(" a\nb\r\nREADY=1 "))
	assert.NotContains(t, statusLine(strings.Repeat("\n", 5)), "\n")
}
