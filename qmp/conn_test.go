package qmp_test

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/qmp"
	"github.com/trayd/trayd/qmp/qmptest"
)

func TestDialReadsTheGreeting(t *testing.T) {
	srv := qmptest.New(t, qmptest.Version(7, 2, 22))
	c := dial(t, srv.Path())
	assert.Equal(t, "7.2.22", c.Version().String())
	assert.Equal(t, "qmptest", c.Version().Package)
	assert.NoError(t, c.Err())
	if runtime.GOOS == "linux" {
		assert.Equal(t, qmp.Peer{PID: os.Getpid(), UID: os.Getuid(), GID: os.Getgid()}, c.Peer())
	}
}

func TestDialWithoutAGreeting(t *testing.T) {
	srv := qmptest.New(t, qmptest.Greeting(""))
	begin := time.Now()
	_, err := qmp.Dial(context.Background(), srv.Path(), &qmp.Options{Timeout: 100 * time.Millisecond})
	require.ErrorIs(t, err, qmp.ErrHeld)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	assert.Less(t, time.Since(begin), soon)
	assert.Equal(t, "monitor "+srv.Path()+": no greeting within 100ms: another client holds this monitor", err.Error())
	var op *qmp.OpError
	require.ErrorAs(t, err, &op)
	assert.Equal(t, "greeting", op.Op)
	assert.True(t, op.Timeout())

	_, err = qmp.Dial(within(t, 50*time.Millisecond), srv.Path(), nil)
	require.ErrorIs(t, err, qmp.ErrHeld, "the context's deadline is earlier than 5 s")

	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(50*time.Millisecond, cancel)
	_, err = qmp.Dial(ctx, srv.Path(), nil)
	require.ErrorIs(t, err, context.Canceled)
	require.NotErrorIs(t, err, qmp.ErrHeld, "who cancelled does not know whether a greeting would have come")
}

func TestDialBehindAnotherClient(t *testing.T) {
	srv := qmptest.New(t, returning("stop", nil))
	first := dial(t, srv.Path())
	_, err := qmp.Dial(context.Background(), srv.Path(), &qmp.Options{Timeout: 50 * time.Millisecond})
	require.ErrorIs(t, err, qmp.ErrHeld)

	second := make(chan *qmp.Conn)
	go func() {
		c, err := qmp.Dial(context.Background(), srv.Path(), &qmp.Options{Timeout: soon})
		assert.NoError(t, err)
		second <- c
	}()
	time.Sleep(20 * time.Millisecond)
	first.Close()
	c := <-second
	defer c.Close()
	require.NoError(t, c.Execute(within(t, soon), "stop", nil, nil))
}

func TestDialWhereNobodyListens(t *testing.T) {
	_, err := qmp.Dial(context.Background(), filepath.Join(t.TempDir(), "none"), nil)
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.NotErrorIs(t, err, qmp.ErrHeld)

	srv := qmptest.New(t)
	srv.Close()
	_, err = qmp.Dial(context.Background(), srv.Path(), nil)
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
	assert.Equal(t, "monitor "+srv.Path()+": connect: connection refused", err.Error())

	_, err = qmp.Dial(context.Background(), "/"+strings.Repeat("x", 107), nil)
	require.ErrorIs(t, err, syscall.ENAMETOOLONG)

	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = qmp.Dial(ctx, srv.Path(), nil)
	require.Error(t, err)
}

func TestDialSomethingElse(t *testing.T) {
	for name, greeting := range map[string]string{
		"human monitor":  "QEMU 7.2.22 monitor - type 'help' for more information\r\n(qemu) ",
		"event first":    `{"event":"RESET","timestamp":{"seconds":1,"microseconds":2}}`,
		"not a greeting": `{"hello":"world"}`,
		"no version":     `{"QMP":[]}`,
	} {
		t.Run(name, func(t *testing.T) {
			srv := qmptest.New(t, qmptest.Greeting(greeting))
			_, err := qmp.Dial(context.Background(), srv.Path(), nil)
			require.ErrorContains(t, err, "not a QMP message")
		})
	}
}

func TestDialAndTheServerGoes(t *testing.T) {
	srv := qmptest.New(t, qmptest.On("qmp_capabilities", func(r *qmptest.Request) { r.Hangup() }))
	_, err := qmp.Dial(context.Background(), srv.Path(), nil)
	var op *qmp.OpError
	require.ErrorAs(t, err, &op)
	assert.Equal(t, "capabilities", op.Op)
	require.ErrorIs(t, err, qmp.ErrUnanswered)

	srv.Handle("qmp_capabilities", func(r *qmptest.Request) { r.Error("GenericError", "no") })
	_, err = qmp.Dial(context.Background(), srv.Path(), nil)
	var refusal *qmp.Error
	require.ErrorAs(t, err, &refusal)

	srv.Handle("qmp_capabilities", func(*qmptest.Request) {})
	_, err = qmp.Dial(context.Background(), srv.Path(), &qmp.Options{Timeout: 500 * time.Millisecond})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, err, qmp.ErrHeld)
}

func TestNothingBehindTheHandshakeIsLost(t *testing.T) {
	const shutdown = `{"event":"SHUTDOWN","timestamp":{"seconds":1700000000,"microseconds":5},"data":{"guest":false}}`
	srv := qmptest.New(t, qmptest.On("qmp_capabilities", func(r *qmptest.Request) {
		r.ReturnAnd(nil, shutdown)
		r.Hangup()
	}))
	c := dial(t, srv.Path())
	require.ErrorIs(t, requireEnded(t, c), io.EOF)
	s := c.Subscribe(1)
	e := next(t, s)
	assert.Equal(t, "SHUTDOWN", e.Name)
	assert.JSONEq(t, `{"guest":false}`, string(e.Data))
	assert.True(t, time.Unix(1700000000, 5000).Equal(e.Time))
	_, open := <-s.C
	assert.False(t, open)
}

func TestCloseEndsEverything(t *testing.T) {
	srv := qmptest.New(t, unanswered("stop"))
	c := dial(t, srv.Path())
	s := c.Subscribe(1)
	call, err := c.Send(context.Background(), "stop", nil, nil)
	require.NoError(t, err)
	srv.Wait("stop", 1)
	require.NoError(t, c.Close())
	require.NoError(t, c.Close())

	err = call.Wait(context.Background(), nil)
	require.ErrorIs(t, err, qmp.ErrUnanswered)
	require.NotErrorIs(t, err, qmp.ErrClosed, "the command was sent")
	require.ErrorIs(t, err, net.ErrClosed)
	require.ErrorIs(t, c.Err(), net.ErrClosed)
	_, open := <-s.C
	require.False(t, open)
	s.Close()
	_, open = <-c.Subscribe(1).C
	require.False(t, open)

	err = c.Execute(context.Background(), "cont", nil, nil)
	require.ErrorIs(t, err, qmp.ErrClosed)
	require.ErrorIs(t, err, net.ErrClosed)
	require.NotErrorIs(t, err, qmp.ErrUnanswered)
	assert.Equal(t, []string{"stop"}, srv.Commands())
	assert.Equal(t, 1, c.Unanswered())
}

// TestFatalAnswers has a server say, instead of a reply, what leaves no way to go on.
func TestFatalAnswers(t *testing.T) {
	tests := map[string]struct {
		handler qmptest.Handler
		cause   string
		is      error
	}{
		"error without id": {func(r *qmptest.Request) { r.ErrorWithoutID("GenericError", "JSON parse error") },
			"without saying to which command", nil},
		"return without id": {func(r *qmptest.Request) { r.Write(`{"return":{}}`) }, "without saying", nil},
		"garbage":           {func(r *qmptest.Request) { r.Write("\x00\xff\r\n") }, "not a QMP message", nil},
		"another greeting":  {func(r *qmptest.Request) { r.Write(`{"QMP":{}}`) }, "not a QMP message", nil},
		"torn, then closed": {func(r *qmptest.Request) { r.Torn(nil, 10); r.Hangup() }, "in the middle",
			io.ErrUnexpectedEOF},
		"closed":     {func(r *qmptest.Request) { r.Hangup() }, "QEMU closed the monitor", io.EOF},
		"broken":     {func(r *qmptest.Request) { r.Write(`{"return":{"a":tru},"id":` + string(r.ID) + `}`) }, "not a QMP", nil},
		"broken err": {func(r *qmptest.Request) { r.Write(`{"error":{"a":tru},"id":` + string(r.ID) + `}`) }, "not a QMP", nil},
		"bad event":  {func(r *qmptest.Request) { r.Write(`{"event":"E","data":{"a":tru}}`) }, "not a QMP message", nil},
		"too large": {func(r *qmptest.Request) {
			piece := strings.Repeat("x", 1<<20)
			r.Write(`{"return":"`)
			for range 11 {
				r.Write(piece)
			}
		}, "larger than 10 MiB", nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			srv := qmptest.New(t, qmptest.On("go", tt.handler), unanswered("before"))
			c := dial(t, srv.Path())
			before, err := c.Send(within(t, soon), "before", nil, nil)
			require.NoError(t, err)
			for _, err := range []error{
				c.Execute(within(t, soon), "go", nil, nil),
				before.Wait(within(t, soon), nil),
			} {
				require.ErrorIs(t, err, qmp.ErrUnanswered)
				require.ErrorContains(t, err, tt.cause)
				if tt.is != nil {
					require.ErrorIs(t, err, tt.is)
				}
			}
			requireEnded(t, c)
			err = c.Execute(within(t, soon), "go", nil, nil)
			require.ErrorIs(t, err, qmp.ErrClosed)
			require.ErrorContains(t, err, tt.cause)
		})
	}
}

func TestWireShowsOneLinePerMessage(t *testing.T) {
	srv := qmptest.New(t, qmptest.Pretty(), returning("stop", map[string]string{"a": "b\nc"}))
	var wire lockedBuilder
	c, err := qmp.Dial(within(t, soon), srv.Path(), &qmp.Options{Wire: &wire})
	require.NoError(t, err)
	require.NoError(t, c.Execute(within(t, soon), "stop", map[string]int{"x": 1}, nil))
	file := someFile(t, "")
	_, err = c.AddFD(within(t, soon), file, -1, "")
	require.Error(t, err)
	c.Close()
	lines := strings.Split(strings.TrimSuffix(wire.String(), "\n"), "\n")
	require.Len(t, lines, 7)
	assert.Contains(t, lines[0], srv.Path()+` <- {    "QMP"`)
	assert.Contains(t, lines[1], `-> {"execute":"qmp_capabilities","id":`)
	assert.Contains(t, lines[3], `-> {"execute":"stop","arguments":{"x":1},"id":`)
	assert.Contains(t, lines[4], `"b\nc"`)
	assert.Contains(t, lines[5], "(with descriptor of "+file.Name()+")")
	assert.Contains(t, lines[6], "CommandNotFound")
}

type lockedBuilder struct {
	mu sync.Mutex
	b  strings.Builder
}

func (b *lockedBuilder) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuilder) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func TestErrorTexts(t *testing.T) {
	srv := qmptest.New(t, unanswered("stop"))
	c := dial(t, srv.Path())
	err := c.Execute(within(t, soon), "eject", nil, nil)
	assert.EqualError(t, err, "QEMU refused eject: The command eject has not been found")
	call, err := c.Send(within(t, soon), "stop", nil, nil)
	require.NoError(t, err)
	err = call.Wait(within(t, time.Millisecond), nil)
	assert.EqualError(t, err,
		"stop was sent but not answered, QEMU may execute it nevertheless: context deadline exceeded")
	c.Close()
	err = c.Execute(context.Background(), "cont", nil, nil)
	assert.ErrorContains(t, err, "cont was not sent: monitor connection is closed: closed by its owner")
	assert.False(t, errors.Is(err, context.Canceled))
}

func TestNewConn(t *testing.T) {
	connect := func(srv *qmptest.Server) *net.UnixConn {
		nc, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: srv.Path(), Net: "unix"})
		require.NoError(t, err)
		return nc
	}
	srv := qmptest.New(t, returning("stop", nil))
	c, err := qmp.NewConn(within(t, soon), connect(srv), nil)
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.Execute(within(t, soon), "stop", nil, nil))

	silent := qmptest.New(t, qmptest.Greeting(""))
	nc := connect(silent)
	_, err = qmp.NewConn(within(t, 50*time.Millisecond), nc, nil)
	require.ErrorIs(t, err, qmp.ErrHeld)
	require.ErrorContains(t, err, silent.Path())
	_, err = nc.Write([]byte("x"))
	require.ErrorIs(t, err, net.ErrClosed, "the socket was handed over")
}
