package api

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"
)

// console is a stream between a client and a machine that the test plays.
type console struct {
	machine net.Conn // QEMU's end
	ws      *websocket.Conn
	raw     net.Conn    // what ws is on
	ended   chan string // why the stream ended
	stop    func()      // trayd stops
	began   time.Time
}

// quick are the limits where a test waits for them.
var quick = streamLimits{ping: 200 * time.Millisecond, write: 500 * time.Millisecond, close: 200 * time.Millisecond}

func newConsole(t *testing.T, limits streamLimits) *console {
	dir := t.TempDir()
	qemu, err := net.Listen("unix", filepath.Join(dir, "q"))
	require.NoError(t, err)
	defer qemu.Close()
	conn, err := net.Dial("unix", filepath.Join(dir, "q"))
	require.NoError(t, err)
	c := &console{ended: make(chan string, 1)}
	c.machine, err = qemu.Accept()
	require.NoError(t, err)
	closing, stop := context.WithCancel(context.Background())
	c.stop = stop
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	require.NoError(t, err)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{binary}})
		if err == nil {
			s := &stream{ws: ws, client: connection(r), conn: conn, limits: limits, gone: serialGone}
			c.ended <- s.carry(closing)
		}
	}), ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
		return context.WithValue(ctx, connKey{}, conn)
	}}
	served := make(chan struct{})
	go func() { defer close(served); _ = srv.Serve(l) }() // ends with Close
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		c.raw, err = d.DialContext(ctx, "unix", filepath.Join(dir, "s"))
		return c.raw, err
	}}
	c.ws, _, err = websocket.Dial(t.Context(), "ws://trayd/", &websocket.DialOptions{HTTPClient: &http.Client{Transport: transport}, Subprotocols: []string{binary}})
	require.NoError(t, err)
	require.Equal(t, binary, c.ws.Subprotocol())
	c.ws.SetReadLimit(-1)
	c.began = time.Now()
	t.Cleanup(func() {
		stop()
		c.ws.CloseNow()
		c.machine.Close()
		require.NoError(t, srv.Close())
		<-served
		transport.CloseIdleConnections()
	})
	return c
}

// over waits for the end of the stream.
func (c *console) over(t *testing.T) string {
	t.Helper()
	select {
	case why := <-c.ended:
		return why
	case <-time.After(10 * time.Second): // beyond all of its limits
		require.FailNow(t, "the stream does not end")
		return ""
	}
}

// follow reads on, as a client does that answers pings, and gives what it got and its end.
func (c *console) follow() (all func() []byte, end chan error) {
	var got bytes.Buffer
	end = make(chan error, 1)
	go func() {
		for {
			_, b, err := c.ws.Read(context.Background())
			got.Write(b)
			if err != nil {
				end <- err
				return
			}
		}
	}()
	return got.Bytes, end
}

// TestStream: the bytes are carried as they are, both ways, and its client learns that the
// machine has ended only after all that it said.
func TestStream(t *testing.T) {
	c := newConsole(t, defaultLimits)
	all, end := c.follow()
	up := bytes.Repeat([]byte("\x00\xff\x1b[m\r\n up"), 50<<10)
	go func() { _ = c.ws.Write(context.Background(), websocket.MessageBinary, up) }()
	got := make([]byte, len(up))
	_, err := io.ReadFull(c.machine, got)
	require.NoError(t, err)
	require.Equal(t, up, got)
	down := bytes.Repeat([]byte("down"), 40<<10)
	_, err = c.machine.Write(down)
	require.NoError(t, err)
	require.NoError(t, c.machine.Close())
	err = <-end
	require.Equal(t, websocket.StatusNormalClosure, websocket.CloseStatus(err), "%v", err)
	require.ErrorContains(t, err, serialGone)
	require.Equal(t, down, all())
	require.Equal(t, serialGone, c.over(t))
}

// TestStreamEnds: whoever ends it, the other side is told, nothing is left, and it is soon.
func TestStreamEnds(t *testing.T) {
	for _, row := range []struct {
		name string
		do   func(t *testing.T, c *console)
		why  string
	}{
		{"the client says so", func(t *testing.T, c *console) { _ = c.ws.Close(websocket.StatusNormalClosure, "") }, clientEnded},
		{"the client dies", func(t *testing.T, c *console) { require.NoError(t, c.raw.Close()) }, clientGone},
		{"the client answers no ping", func(*testing.T, *console) {}, clientDead},
		{"a text frame", func(t *testing.T, c *console) {
			require.NoError(t, c.ws.Write(t.Context(), websocket.MessageText, []byte("aGVsbG8=")))
		}, notBinary},
		{"trayd stops", func(t *testing.T, c *console) {
			_, end := c.follow()
			c.stop()
			require.Equal(t, websocket.StatusGoingAway, websocket.CloseStatus(<-end))
		}, traydStops},
		{"trayd stops, and the client is dead", func(_ *testing.T, c *console) { c.stop() }, traydStops},
		{"the machine ends", func(t *testing.T, c *console) { require.NoError(t, c.machine.Close()) }, serialGone},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := newConsole(t, quick)
			row.do(t, c)
			require.Equal(t, row.why, c.over(t))
			_, _ = io.Copy(io.Discard, c.machine) // closed, or reset: but it ends
		})
	}
}

// TestSlowReader: a client that doesn't read makes the machine wait, takes no memory beyond
// the kernel's buffers, and is ended soon.
func TestSlowReader(t *testing.T) {
	limits := quick
	limits.ping = time.Minute // it is the write that ends it
	c := newConsole(t, limits)
	const flood = 8 << 20
	require.NoError(t, c.machine.SetWriteDeadline(time.Now().Add(5*time.Second)))
	n, _ := c.machine.Write(make([]byte, flood)) // broken when the stream ends
	require.Less(t, n, 1<<20)
	require.Equal(t, tooSlow, c.over(t))
	require.Less(t, time.Since(c.began), 10*time.Second)
}

// TestSlowMachine: a guest that doesn't read its console keeps what was typed waiting, for
// longer than pings may; nothing is lost, and a client that dies meanwhile is noticed.
func TestSlowMachine(t *testing.T) {
	pasted := bytes.Repeat([]byte("0123456789abcdef"), 128<<10)
	t.Run("later", func(t *testing.T) {
		c := newConsole(t, quick)
		_, end := c.follow()
		go func() { _ = c.ws.Write(context.Background(), websocket.MessageBinary, pasted) }()
		time.Sleep(5 * quick.ping)
		got := make([]byte, len(pasted))
		_, err := io.ReadFull(c.machine, got)
		if err != nil {
			require.NoError(t, err, c.over(t))
		}
		require.Equal(t, pasted, got)
		require.NoError(t, c.ws.Close(websocket.StatusNormalClosure, ""))
		<-end
		require.Equal(t, clientEnded, c.over(t))
	})
	t.Run("never", func(t *testing.T) {
		c := newConsole(t, quick)
		go func() { _ = c.ws.Write(context.Background(), websocket.MessageBinary, pasted) }()
		time.Sleep(3 * quick.ping)
		require.Empty(t, c.ended)
		require.NoError(t, c.raw.Close())
		require.Contains(t, []string{clientDead, clientGone}, c.over(t))
	})
}

// TestReasons: a close frame holds 125 bytes (RFC 6455 5.5), two of them the status.
func TestReasons(t *testing.T) {
	for _, why := range []string{serialGone, screenGone, traydStops, tooSlow, notBinary, clientGone, clientEnded, clientDead} {
		require.LessOrEqual(t, len(why), 123, why)
	}
}

// TestSameOrigin: pages of this host may, and what is no page.
func TestSameOrigin(t *testing.T) {
	for origin, want := range map[string]bool{
		"": true, "http://trayd": true, "https://TRAYD": true,
		"http://trayd:8080": false, "http://evil.example": false, "null": false, "trayd": false, "http://": false, "http://trayd.evil.example": false, "%": false,
	} {
		r := &http.Request{Host: "trayd", Header: http.Header{}}
		if origin != "" {
			r.Header.Set("Origin", origin)
		}
		require.Equal(t, want, sameOrigin(r), origin)
	}
}

// TestNotWebSocket: what is let through is what the library accepts.
func TestNotWebSocket(t *testing.T) {
	right := "Connection: keep-alive, Upgrade|Upgrade: WebSocket|Sec-WebSocket-Version: 13|Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
	for _, row := range []struct{ what, old, new, says string }{
		{"right", "", "", ""},
		{"no upgrade", "Upgrade: WebSocket", "Upgrade: h2c", "doesn't ask"},
		{"no connection", "keep-alive, Upgrade", "keep-alive", "doesn't ask"},
		{"old", ": 13", ": 8", "version"},
		{"no key", "|Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "", "Key"},
		{"short key", "dGhlIHNhbXBsZSBub25jZQ==", "dGhl", "Key"},
		{"no base64", "dGhlIHNhbXBsZSBub25jZQ==", "!GhlIHNhbXBsZSBub25jZQ==", "Key"},
	} {
		r := &http.Request{ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{}}
		for line := range strings.SplitSeq(strings.Replace(right, row.old, row.new, 1), "|") {
			k, v, _ := strings.Cut(line, ": ")
			r.Header.Set(k, v)
		}
		got := notWebSocket(r)
		require.Contains(t, got, row.says, row.what)
		require.Equal(t, row.says == "", got == "", "%s: %s", row.what, got)
	}
	require.Contains(t, notWebSocket(&http.Request{ProtoMajor: 1}), "HTTP/1.1")
}
