package qmptest_test

import (
	"bufio"
	"encoding/json"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/trayd/trayd/qmp/qmptest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A client is the plainest one that there can be, so that these tests depend on nothing else.
type client struct {
	t  *testing.T
	nc *net.UnixConn
	r  *bufio.Reader
}

func connect(t *testing.T, srv *qmptest.Server) *client {
	nc, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: srv.Path(), Net: "unix"})
	require.NoError(t, err)
	t.Cleanup(func() { nc.Close() })
	require.NoError(t, nc.SetDeadline(time.Now().Add(10*time.Second)))
	return &client{t, nc, bufio.NewReader(nc)}
}

func (c *client) send(text string) {
	_, err := c.nc.Write([]byte(text))
	require.NoError(c.t, err)
}

func (c *client) line() string {
	line, err := c.r.ReadString('\n')
	require.NoError(c.t, err)
	return strings.TrimSpace(line)
}

func (c *client) ask(text string) string {
	c.send(text)
	return c.line()
}

func negotiated(t *testing.T, srv *qmptest.Server) *client {
	c := connect(t, srv)
	require.Contains(t, c.line(), `"QMP"`)
	require.Equal(t, `{"return":{}}`, c.ask(`{"execute":"qmp_capabilities"}`))
	return c
}

func TestBehavesLikeQEMU(t *testing.T) {
	srv := qmptest.New(t, qmptest.Version(5, 2, 1))
	c := connect(t, srv)
	assert.Contains(t, c.line(), `"major":5`)
	assert.False(t, srv.Event("EARLY", nil))
	assert.Contains(t, c.ask(`{"execute":"query-version"}`), "Expecting capabilities negotiation")
	assert.JSONEq(t, `{"return":{},"id":[1]}`, c.ask(`{"execute":"qmp_capabilities","id":[1]}`))
	assert.Contains(t, c.ask(`{"execute":"query-version","id":2}`), `"major":5`)
	assert.JSONEq(t, `{"id":"x","error":{"class":"CommandNotFound","desc":"The command nope has not been found"}}`,
		c.ask(`{"execute":"nope","id":"x"}`))
	assert.Contains(t, c.ask(`{"id":3}`), `"id":3`)
	assert.True(t, srv.Event("RESET", map[string]bool{"guest": true}))
	assert.Contains(t, c.line(), `"RESET"`)
	assert.Equal(t, []string{"query-version", "query-version", "nope"}, srv.Commands())
	assert.Len(t, srv.Requests(), 4)
	assert.Contains(t, c.ask(`{"execute":]`), "JSON parse error")
}

func TestOneClientAtATime(t *testing.T) {
	srv := qmptest.New(t)
	first := negotiated(t, srv)
	second := connect(t, srv)
	require.NoError(t, second.nc.SetReadDeadline(time.Now().Add(30*time.Millisecond)))
	_, err := second.r.Peek(1)
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	first.nc.Close()
	require.NoError(t, second.nc.SetReadDeadline(time.Now().Add(10*time.Second)))
	assert.Contains(t, second.line(), "QMP")
}

func TestFaults(t *testing.T) {
	srv := qmptest.New(t,
		qmptest.On("torn", func(r *qmptest.Request) { r.Torn("abcdef", 5); r.Write("\n") }),
		qmptest.On("anonymous", func(r *qmptest.Request) { r.ErrorWithoutID("C", "d") }),
		qmptest.On("dribble", func(r *qmptest.Request) { r.Dribble("abc", 3, time.Millisecond) }),
		qmptest.On("die", func(r *qmptest.Request) { r.Hangup() }),
		qmptest.On("*", func(r *qmptest.Request) { r.ReturnAnd("other "+r.Command, "more\n") }),
	)
	c := negotiated(t, srv)
	assert.Equal(t, `{"ret`, c.ask(`{"execute":"torn","id":1}`))
	assert.Equal(t, `{"error":{"class":"C","desc":"d"}}`, c.ask(`{"execute":"anonymous","id":1}`))
	assert.Equal(t, `{"return":"abc","id":1}`, c.ask(`{"execute":"dribble","id":1}`))
	assert.Equal(t, `{"return":"other x","id":1}`, c.ask(`{"execute":"x","id":1}`))
	assert.Equal(t, "more", c.line())
	srv.Handle("x", func(r *qmptest.Request) { r.Return(nil) })
	assert.Equal(t, `{"return":{},"id":1}`, c.ask(`{"execute":"x","id":1}`))
	srv.Write("garbage\n")
	assert.Equal(t, "garbage", c.line())
	c.send(`{"execute":"die"}`)
	_, err := c.r.ReadByte()
	require.Error(t, err)

	c = negotiated(t, srv)
	srv.Hangup()
	_, err = c.r.ReadByte()
	require.Error(t, err)
}

func TestSilentServer(t *testing.T) {
	srv := qmptest.New(t, qmptest.Greeting(""))
	c := connect(t, srv)
	require.NoError(t, c.nc.SetReadDeadline(time.Now().Add(30*time.Millisecond)))
	_, err := c.r.ReadByte()
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
}

func TestFileComesWithItsCommand(t *testing.T) {
	srv := qmptest.New(t, qmptest.On("add-fd", func(r *qmptest.Request) { r.Return(r.File != nil) }))
	c := negotiated(t, srv)
	path := t.TempDir() + "/file"
	require.NoError(t, os.WriteFile(path, []byte("content"), 0o600))
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	_, _, err = c.nc.WriteMsgUnix([]byte(`{"execute":"add-fd"}`), syscall.UnixRights(int(f.Fd())), nil)
	require.NoError(t, err)
	assert.Equal(t, `{"return":true}`, c.line())
	assert.Equal(t, `{"return":false}`, c.ask(`{"execute":"add-fd"}`))
	received := make([]byte, 7)
	_, err = srv.Wait("add-fd", 1).File.ReadAt(received, 0)
	require.NoError(t, err)
	assert.Equal(t, "content", string(received))
}

func TestRequestsHoldWhatCame(t *testing.T) {
	srv := qmptest.New(t)
	c := negotiated(t, srv)
	c.ask(`{"execute":"x","arguments":{"a":5},"id":"i"}`)
	r := srv.Wait("x", 1)
	var args struct{ A int }
	r.Decode(&args)
	assert.Equal(t, 5, args.A)
	assert.Equal(t, json.RawMessage(`"i"`), r.ID)
	assert.JSONEq(t, `{"execute":"x","arguments":{"a":5},"id":"i"}`, string(r.Raw))
}

func TestCloseReleasesABlockedHandler(t *testing.T) {
	srv := qmptest.New(t, qmptest.On("x", func(r *qmptest.Request) {
		assert.False(t, r.Sleep(time.Minute))
		<-r.Done()
	}))
	c := negotiated(t, srv)
	c.send(`{"execute":"x"}`)
	srv.Wait("x", 1)
	srv.Close()
	srv.Close()
	_, err := c.r.ReadByte()
	require.Error(t, err)
	_, err = net.Dial("unix", srv.Path())
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
}
