//go:build integration

package integration_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/internal/qemutest"
)

// The limits of internal/api, and what a host under load may add.
const (
	slowHead, slowBody, slowRead = 10 * time.Second, 30 * time.Second, 10 * time.Second
	slack                        = 8 * time.Second
)

// TestSlowClients: clients that send slowly, or don't read, lose their connections after their
// time, and nobody waits for them meanwhile.
func TestSlowClients(t *testing.T) {
	r := newRig(t)
	pool := filepath.Join(r.dir, "pool")
	require.NoError(t, os.Mkdir(pool, 0o755))
	r.extra = "[[pool]]\nname = \"local\"\ntype = \"dir\"\npath = \"" + pool + "\"\n"
	r.vm("vm1", qemutest.SATA.With("")...)
	r.start("")
	r.ready()
	a := r.local()
	disc, err := os.ReadFile(r.disc("DEBIAN"))
	require.NoError(t, err)
	a.want(201, "PUT", "/v1/pools/local/images/disc", string(append(disc, make([]byte, 32<<20)...)))

	const events = "GET /v1/events HTTP/1.1\r\nHost: trayd\r\n\r\n"
	var all sync.WaitGroup
	for name, row := range map[string]struct {
		send  string
		reads bool
		limit time.Duration
	}{
		"nothing":                            {"", true, slowHead},
		"half a head":                        {"GET /v1/version HTTP/1.1\r\nHost: tr", true, slowHead},
		"half a body":                        {"POST /v1/vms/vm1/drives/cd0/insert HTTP/1.1\r\nHost: trayd\r\nContent-Length: 100\r\n\r\n{", true, slowBody},
		"half a body, with a key":            {"POST /v1/vms/vm1/drives/cd0/insert HTTP/1.1\r\nHost: trayd\r\nIdempotency-Key: k\r\nContent-Length: 100\r\n\r\n{", true, slowBody},
		"half a body that nobody reads":      {"POST /v1/vms/nope/kill HTTP/1.1\r\nHost: trayd\r\nContent-Length: 100\r\n\r\n{", true, slowBody},
		"half a body for no page":            {"POST /nope HTTP/1.1\r\nHost: trayd\r\nContent-Length: 100\r\n\r\n{", true, slowBody},
		"half an image":                      {"PUT /v1/pools/local/images/half HTTP/1.1\r\nHost: trayd\r\nContent-Length: 100000\r\n\r\n" + strings.Repeat("x", 100), true, slowBody},
		"half a body for Harvester":          {"POST /v1/harvester/vm/vm1?action=ejectCdRomVolume HTTP/1.1\r\nHost: trayd\r\nContent-Length: 100\r\n\r\n{", true, slowBody},
		"doesn't read an image":              {"GET /v1/pools/local/images/disc/content HTTP/1.1\r\nHost: trayd\r\n\r\n", false, slowRead},
		"doesn't read many answers":          {strings.Repeat("GET /v1/openapi.yaml HTTP/1.1\r\nHost: trayd\r\n\r\n", 1000), false, slowRead},
		"doesn't read many lists":            {strings.Repeat("GET /v1/vms HTTP/1.1\r\nHost: trayd\r\n\r\n", 2000), false, slowRead},
		"doesn't read events, and asks more": {events + strings.Repeat("GET /v1/vms HTTP/1.1\r\nHost: trayd\r\n\r\n", 100), false, 0},
	} {
		all.Go(func() {
			took, err := ended(r.socket(), row.send, row.reads)
			assert.NoError(t, err, name)
			if row.limit > 0 {
				assert.Less(t, took, row.limit+slack, name)
				assert.Greater(t, took, row.limit-2*time.Second, "%s: it has its time", name)
			}
		})
	}
	slowest := time.Duration(0)
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	for asking := true; asking; time.Sleep(50 * time.Millisecond) {
		began := time.Now()
		a.want(200, "GET", "/v1/vms", "")
		slowest = max(slowest, time.Since(began))
		select {
		case <-done:
			asking = false
		default:
		}
	}
	require.Less(t, slowest, slowHead/2, "others have waited")
}

// ended is how long a connection lasts on which something is sent, and no more. One that isn't
// read is looked at by writing.
func ended(socket, send string, reads bool) (time.Duration, error) {
	c, err := net.Dial("unix", socket)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	began := time.Now()
	if reads {
		if _, err := io.WriteString(c, send); err != nil {
			return 0, err
		}
		if err := c.SetReadDeadline(began.Add(2 * slowBody)); err != nil {
			return 0, err
		}
		if _, err := io.Copy(io.Discard, c); isTimeout(err) {
			return 0, fmt.Errorf("after %s the connection is still there", time.Since(began))
		} // an end or a reset
		return time.Since(began), nil
	}
	go func() { _, _ = io.WriteString(c, send) }() // trayd reads as long as it can answer
	if strings.Contains(send, "/v1/events") {
		time.Sleep(2 * slowRead) // the stream goes on, with the comments that keep it alive
		return 0, nil
	}
	for time.Since(began) < 2*slowBody {
		time.Sleep(200 * time.Millisecond)
		if gone(c) {
			return time.Since(began), nil
		}
	}
	return 0, fmt.Errorf("after %s the connection is still there", time.Since(began))
}

// TestManyConnections: one address, or one user, doesn't take what others need.
func TestManyConnections(t *testing.T) {
	r := newRig(t)
	at := r.secured("")
	r.vm("vm1", qemutest.SATA.With("")...)
	r.start("")
	r.ready()
	token := r.newToken("ci", "view", "1h")
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP("127.0.2.1")}}
	var open []net.Conn
	for range 600 {
		c, err := d.Dial("tcp", at)
		require.NoError(t, err)
		defer c.Close()
		open = append(open, c)
	}
	refused := 0
	for _, c := range open {
		require.NoError(t, c.SetReadDeadline(time.Now().Add(5*time.Millisecond)))
		if _, err := c.Read(make([]byte, 1)); err != nil && !isTimeout(err) {
			refused++
		}
	}
	require.Equal(t, 88, refused, "512 for one")
	require.Equal(t, 200, r.remote(at, "127.0.2.2", token, nil).ask("GET", "/v1/vms", "").status, "another address")
	r.local().want(200, "GET", "/v1/vms", "")
	for _, c := range open {
		c.Close()
	}
	require.Eventually(t, func() bool {
		req, err := http.NewRequestWithContext(t.Context(), "GET", "https://"+at+"/healthz", nil)
		require.NoError(t, err)
		resp, err := r.remote(at, "127.0.2.1", "", nil).client.Do(req)
		if err != nil {
			return false
		}
		resp.Body.Close()
		return true
	}, 10*time.Second, 50*time.Millisecond, "they are counted although they have ended")

	// All that there may be, from a few addresses: who is root on this host still gets in.
	for i := range 5 {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(fmt.Sprintf("127.0.3.%d", i+1))}}
		for range 500 {
			c, err := d.Dial("tcp", at)
			require.NoError(t, err)
			defer c.Close()
		}
	}
	r.local().want(200, "GET", "/v1/vms", "")
	r.must("vms")
}

func isTimeout(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded)
}

// gone reports whether the other end has closed a connection that isn't read.
func gone(c net.Conn) bool {
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return true
	}
	hung := false
	_ = raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, err := unix.Poll(p, 0)
		hung = err == nil && n > 0 && p[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
	})
	return hung
}
