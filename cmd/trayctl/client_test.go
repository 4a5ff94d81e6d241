package main

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"
)

// TestSendCutOff: a file that can't be read to its end ends the upload; the server isn't
// waited for, which waits for the rest.
func TestSendCutOff(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	got := make(chan error, 1)
	s := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		got <- err
	})}
	go func() { _ = s.Serve(l) }()
	t.Cleanup(func() { s.Close() })
	disk := errors.New("input/output error")
	for name, c := range map[string]struct {
		body io.Reader
		size int64
		says string
	}{
		"shorter than it was":      {strings.NewReader("abc"), 1 << 20, "ended after 3 of 1048576 bytes"},
		"a disk that fails":        {io.MultiReader(strings.NewReader("abc"), iotest.ErrReader(disk)), 1 << 20, "input/output error"},
		"a disk that fails, piped": {io.MultiReader(strings.NewReader("abc"), iotest.ErrReader(disk)), -1, "input/output error"},
	} {
		t.Run(name, func(t *testing.T) {
			ended := make(chan error, 1)
			go func() {
				_, err := newClient(socket).send(t.Context(), "PUT", "/", c.body, c.size)
				ended <- err
			}()
			select {
			case err := <-ended:
				require.ErrorContains(t, err, c.says)
			case <-time.After(5 * time.Second):
				t.Fatal("it hangs")
			}
			require.Error(t, <-got, "and the server knows that it isn't whole")
		})
	}
}

// TestSendRefused: who doesn't want the rest of a body says why.
func TestSendRefused(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		r := bufio.NewReader(conn)
		_, _ = http.ReadRequest(r)
		body := `{"code":"no-space","detail":"it is full"}`
		_, _ = io.WriteString(conn, "HTTP/1.1 100 Continue\r\n\r\n")
		_, _ = io.CopyN(io.Discard, r, 1<<16)
		_, _ = io.WriteString(conn, "HTTP/1.1 507 No\r\nContent-Length: 41\r\n\r\n"+body)
		_, _ = io.CopyN(io.Discard, r, 8<<20-1<<16) // net/http does so, too, before it closes
		conn.Close()
	}()
	_, err = newClient(socket).send(t.Context(), "PUT", "/", io.LimitReader(zeroes{}, 8<<20), 8<<20)
	require.ErrorContains(t, err, "it is full")
}

type zeroes struct{}

func (zeroes) Read(b []byte) (int, error) { clear(b); return len(b), nil }
