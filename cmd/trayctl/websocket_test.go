package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"
)

// serveSocket serves a handler at a socket, whose path it gives.
func serveSocket(t *testing.T, h http.HandlerFunc) string {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	s := &http.Server{Handler: h}
	served := make(chan struct{})
	go func() { defer close(served); _ = s.Serve(l) }() // ends with Close
	t.Cleanup(func() { s.Close(); <-served })
	return socket
}

// TestWebSocket: a server that isn't ours understands what is sent, and is understood, with
// frames of all sizes and pings between them.
func TestWebSocket(t *testing.T) {
	sizes := []int{0, 1, 125, 126, 127, 65535, 65536, 300 << 10}
	socket := serveSocket(t, func(w http.ResponseWriter, r *http.Request) {
		ws, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer ws.CloseNow()
		ws.SetReadLimit(-1)
		all := websocket.NetConn(r.Context(), ws, websocket.MessageBinary)
		for _, n := range sizes {
			b := make([]byte, n)
			if _, err := io.ReadFull(all, b); err != nil {
				t.Error(err)
				return
			}
			if err := ws.Write(r.Context(), websocket.MessageBinary, b); err != nil {
				t.Error(err)
				return
			}
		}
		reading := ws.CloseRead(r.Context())
		if err := ws.Ping(reading); err != nil {
			t.Error(err)
		}
		_ = ws.Close(websocket.StatusPolicyViolation, "enough")
	})
	w, err := newClient(socket).webSocket(t.Context(), "/x")
	require.NoError(t, err)
	defer w.Close()
	for _, n := range sizes {
		b := bytes.Repeat([]byte{0, 0xff, 'a'}, n/3+1)[:n]
		_, err := w.Write(b)
		require.NoError(t, err)
		got := make([]byte, n)
		_, err = io.ReadFull(w, got)
		require.NoError(t, err)
		require.Equal(t, b, got)
	}
	_, err = w.Read(make([]byte, 1))
	require.Equal(t, &endedError{code: 1008, reason: "enough"}, err)
}

// TestWebSocketRefused: what isn't trayd is said to be something else, one that dies is
// unreachable, and nothing hangs.
func TestWebSocketRefused(t *testing.T) {
	var gone *unreachableError
	upgraded := "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: " + nonceOK + "\r\n\r\n"
	for name, row := range map[string]struct {
		answer string
		gone   bool
		says   string
	}{
		"a page":           {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", false, "is it trayd?"},
		"no HTTP":          {"+OK POP3\r\n\r\n", false, "is it trayd?"},
		"another nonce":    {strings.Replace(upgraded, nonceOK, "x", 1), false, "is it trayd?"},
		"nothing":          {"", true, "broke off"},
		"half an answer":   {upgraded[:40], true, "broke off"},
		"half a head":      {upgraded + "\x82", true, "broke off"},
		"half a length":    {upgraded + "\x82\x7e\x01", true, "broke off"},
		"half a frame":     {upgraded + "\x82\x05abc", true, "broke off"},
		"a reserved code":  {upgraded + "\x83\x00", false, "no frame of a console"},
		"text":             {upgraded + "\x81\x02hi", false, "no frame of a console"},
		"too long a ping":  {upgraded + "\x89\x7e\x01\x00", false, "no frame of a console"},
		"a huge, long one": {upgraded + "\x88\x7f\xff\xff\xff\xff\xff\xff\xff\xff", false, "no frame of a console"},
		"closed":           {upgraded + "\x88\x00", false, "ended the console"},
	} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "s")
			l, err := net.Listen("unix", socket)
			require.NoError(t, err)
			defer l.Close()
			go func() {
				conn, err := l.Accept()
				if err == nil {
					_, _ = conn.Read(make([]byte, 4096))
					_, _ = io.WriteString(conn, row.answer)
					conn.Close()
				}
			}()
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			w, err := newClient(socket).webSocket(ctx, "/x")
			if err == nil {
				_, err = io.Copy(io.Discard, w)
				w.Close()
			}
			require.ErrorContains(t, err, row.says)
			require.Equal(t, row.gone, errors.As(err, &gone))
		})
	}
}

// TestPass: the key that leaves is a terminal's only, and what was typed before it is sent.
func TestPass(t *testing.T) {
	for _, row := range []struct {
		in   string
		keys bool
		want string
	}{
		{"ab\x1dcd", true, "ab"},
		{"\x1d", true, ""},
		{"ab\x1dcd", false, "ab\x1dcd"},
		{"\x03\x04\x1a", true, "\x03\x04\x1a"},
	} {
		var got bytes.Buffer
		require.NoError(t, pass(&got, strings.NewReader(row.in), row.keys))
		require.Equal(t, row.want, got.String())
	}
}

// TestLoopback: VNC has no password, so nobody from elsewhere may connect.
func TestLoopback(t *testing.T) {
	for _, right := range []string{"", "127.0.0.1:0", "127.0.0.1:5901", "127.1.2.3:1", "[::1]:5901", "localhost:5901"} {
		a, err := loopback(right)
		require.NoError(t, err, right)
		require.True(t, a.Addr().IsLoopback())
	}
	for _, wrong := range []string{"0.0.0.0:5901", ":5901", "5901", "127.0.0.1", "10.0.0.1:5901", "[::]:5901", "example.org:5901", "127.0.0.1:99999", "127.0.0.1:x"} {
		_, err := loopback(wrong)
		require.ErrorContains(t, err, "such as 127.0.0.1:5901", wrong)
	}
}

// TestFromUser: the kernel says whose a connection is, by whichever family it came.
func TestFromUser(t *testing.T) {
	for _, at := range []string{"127.0.0.1:0", "[::1]:0"} {
		l, err := net.Listen("tcp", at)
		require.NoError(t, err)
		defer l.Close()
		client, err := net.Dial("tcp", l.Addr().String())
		require.NoError(t, err)
		defer client.Close()
		server, err := l.Accept()
		require.NoError(t, err)
		defer server.Close()
		require.NoError(t, fromUser(server.(*net.TCPConn)))
		peer, here := server.RemoteAddr().(*net.TCPAddr).AddrPort(), server.LocalAddr().(*net.TCPAddr).AddrPort()
		table := map[string]string{"127.0.0.1:0": "/proc/net/tcp", "[::1]:0": "/proc/net/tcp6"}[at]
		text, err := os.ReadFile(table)
		require.NoError(t, err)
		uid, found := ownerOf(bytes.NewReader(text), peer, here)
		require.True(t, found)
		require.Equal(t, os.Getuid(), uid)
		_, found = ownerOf(bytes.NewReader(text), peer, peer)
		require.False(t, found)
	}
}

// TestNoViewer: what waits for a viewer doesn't do so forever.
func TestNoViewer(t *testing.T) {
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	c := &cli{stderr: io.Discard}
	err = (&tunnel{c: c, name: "m1", l: l, wait: 50 * time.Millisecond}).run(t.Context(), nil)
	require.ErrorContains(t, err, "no viewer has connected")
	_, err = net.Dial("tcp", l.Addr().String())
	require.Error(t, err, "it still listens")
}
