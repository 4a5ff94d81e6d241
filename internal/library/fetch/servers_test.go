package fetch

import (
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestServersThatAreNone(t *testing.T) {
	few := func(o *Options) { o.Attempts = 2 }
	t.Run("nobody listens", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		l.Close()
		_, err = newClient(t, few).Run(t.Context(), newDisk(t).job("http://"+l.Addr().String()))
		requireKind(t, Refused, err)
	})
	t.Run("it closes without a word", func(t *testing.T) {
		_, err := newClient(t, few).Run(t.Context(), newDisk(t).job(raw(t, func(c net.Conn, _ int) { request(c) })))
		requireKind(t, Truncated, err)
	})
	t.Run("it isn't HTTP", func(t *testing.T) {
		_, err := newClient(t, few).Run(t.Context(), newDisk(t).job(raw(t, func(c net.Conn, _ int) {
			_, _ = c.Write([]byte("220 mail.example.com ESMTP\r\n\r\n"))
			request(c)
		})))
		requireKind(t, ServerError, err)
	})
	t.Run("there is no such name", func(t *testing.T) {
		_, err := newClient(t, few).Run(t.Context(), newDisk(t).job("http://nowhere.invalid/x"))
		requireKind(t, DNS, err)
	})
	t.Run("its header has no end", func(t *testing.T) {
		_, err := newClient(t, few).Run(t.Context(), newDisk(t).job(raw(t, func(c net.Conn, _ int) {
			request(c)
			_, _ = c.Write([]byte("HTTP/1.1 200 OK\r\n"))
			for {
				if _, err := c.Write([]byte("X-A: " + strings.Repeat("a", 1000) + "\r\n")); err != nil {
					return
				}
			}
		})))
		requireKind(t, ServerError, err)
	})
	t.Run("it announces more than it sends", func(t *testing.T) {
		_, err := newClient(t, few).Run(t.Context(), newDisk(t).job(raw(t, func(c net.Conn, _ int) {
			request(c)
			_, _ = c.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nshort"))
		})))
		requireKind(t, Truncated, err)
	})
	t.Run("its chunks break off", func(t *testing.T) {
		_, err := newClient(t, few).Run(t.Context(), newDisk(t).job(raw(t, func(c net.Conn, _ int) {
			request(c)
			_, _ = c.Write([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n"))
		})))
		requireKind(t, Truncated, err)
	})
	t.Run("it sends more than it announces", func(t *testing.T) {
		d := newDisk(t)
		_, err := newClient(t, few).Run(t.Context(), d.job(raw(t, func(c net.Conn, _ int) {
			request(c)
			_, _ = c.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nshort and more"))
		})))
		require.NoError(t, err)
		d.has([]byte("short"))
	})
}

func TestServersThatAreTooSlow(t *testing.T) {
	head := "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\nETag: \"a\"\r\n\r\n"
	quick := func(o *Options) {
		o.Attempts, o.Stall, o.HeaderTimeout, o.RateWindow, o.MinRate = 2, 200*time.Millisecond, 200*time.Millisecond, 400*time.Millisecond, 1000
	}
	for title, f := range map[string]func(c net.Conn){
		"it never answers":     func(c net.Conn) { request(c); request(c) },
		"it stops":             func(c net.Conn) { request(c); _, _ = c.Write([]byte(head + "some")); request(c) },
		"a byte now and again": func(c net.Conn) { request(c); _, _ = c.Write([]byte(head)); drip(c) },
		"a header by bytes":    func(c net.Conn) { request(c); _, _ = c.Write([]byte("HTTP/1.1 200 OK\r\nX-A:")); drip(c) },
	} {
		t.Run(title, func(t *testing.T) {
			began := time.Now()
			_, err := newClient(t, quick).Run(t.Context(), newDisk(t).job(raw(t, func(c net.Conn, _ int) { f(c) })))
			requireKind(t, Stalled, err)
			require.ErrorContains(t, err, "(2 attempts)")
			require.Less(t, time.Since(began), 5*time.Second)
		})
	}
}

// slow is a hash, or a disk, that takes its time once.
type slow struct{ time.Duration }

func (s *slow) Write(p []byte) (int, error) {
	time.Sleep(s.Duration)
	s.Duration = 0
	return len(p), nil
}

func TestADiskThatIsSlowIsNotTheServersFault(t *testing.T) {
	want := random(20 << 20)
	s, seen := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) { file(w, r, want, `"a"`) })
	d := newDisk(t)
	j := d.job(s.URL)
	j.Onto = func() ([]io.Writer, error) {
		all, err := d.onto()
		return append(all, &slow{3 * time.Second}), err
	}
	_, err := newClient(t, func(o *Options) {
		o.Attempts, o.Stall, o.RateWindow, o.MinRate = 1, 1500*time.Millisecond, 1500*time.Millisecond, 8<<20
	}).Run(t.Context(), j)
	require.NoError(t, err)
	d.has(want)
	require.Equal(t, 1, seen.len())
}

func drip(c net.Conn) {
	for {
		if _, err := c.Write([]byte("x")); err != nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestAServerMayAskToWait(t *testing.T) {
	s, _ := serve(t, func(w http.ResponseWriter, r *http.Request, n int) {
		if n == 1 {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		file(w, r, []byte("x"), "")
	})
	began := time.Now()
	_, err := newClient(t).Run(t.Context(), newDisk(t).job(s.URL))
	require.NoError(t, err)
	require.GreaterOrEqual(t, time.Since(began), time.Second)
}

func TestPauses(t *testing.T) {
	c, err := New(Options{})
	require.NoError(t, err)
	for _, row := range []struct {
		row    int
		after  time.Duration
		random float64
		want   time.Duration
	}{
		{1, 0, 0, time.Second},
		{1, 0, 1, time.Second / 2},
		{2, 0, 0, 2 * time.Second},
		{4, 0, 0.5, 6 * time.Second},
		{7, 0, 0, time.Minute},
		{1000, 0, 0, time.Minute},
		{1, 30 * time.Second, 0, 30 * time.Second},
		{7, 30 * time.Second, 0, time.Minute},
		{1, 24 * time.Hour, 0, 5 * time.Minute},
	} {
		require.Equal(t, row.want, c.pause(row.row, row.after, row.random), "%+v", row)
	}
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for text, want := range map[string]time.Duration{
		"": 0, "120": 2 * time.Minute, "-5": 0, "soon": 0, "99999999999999999999": 0,
		"Fri, 02 Jan 2026 03:05:05 GMT": time.Minute, "Fri, 02 Jan 2026 03:03:05 GMT": 0,
	} {
		require.Equal(t, want, retryAfter(text, now), text)
	}
}
