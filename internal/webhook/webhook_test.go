package webhook

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/trayd/trayd/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	patience = 15 * time.Second
	secret   = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
)

// receiver is a server that answers as told, and remembers what it took.
type receiver struct {
	*httptest.Server
	mu     sync.Mutex
	answer func(n int) int // the status of the nth request, from 1
	header http.Header
	got    []*http.Request
	bodies []string
}

func newReceiver(t *testing.T, start func(http.Handler) *httptest.Server) *receiver {
	r := &receiver{answer: func(int) int { return http.StatusNoContent }, header: http.Header{}}
	r.Server = start(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.got, r.bodies = append(r.got, req), append(r.bodies, string(body))
		for k, v := range r.header {
			w.Header()[k] = v
		}
		w.WriteHeader(r.answer(len(r.got)))
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) requests() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.got)
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

type rig struct {
	*Sender
	t    *testing.T
	log  safeBuffer
	file string // with the secret
	next uint64
}

func newRig(t *testing.T, edit ...func(*Options)) *rig {
	r := &rig{t: t, file: filepath.Join(t.TempDir(), "secret")}
	require.NoError(t, os.WriteFile(r.file, []byte(secret+"\n"), 0o600))
	o := Options{Version: "test", Log: slog.New(slog.NewTextHandler(&r.log, nil)), limits: ordinary()}
	o.limits.first, o.limits.most = 5*time.Millisecond, 20*time.Millisecond
	for _, f := range edit {
		f(&o)
	}
	r.Sender = New(o)
	t.Cleanup(r.Sender.Close)
	return r
}

func (r *rig) deliver(kind, vm string) {
	r.next++
	r.Deliver(wire.Event{ID: r.next, Type: kind, VM: vm, Time: time.Now()})
}

func (r *rig) counted(result string, n uint64) {
	r.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(2 * time.Millisecond) {
		counts, _ := r.Counts()
		if counts[result] == n {
			return
		}
		if time.Now().After(end) {
			require.FailNow(r.t, fmt.Sprintf("no %d %s", n, result), "%v\n%s", counts, r.log.String())
		}
	}
}

func ids(t *testing.T, bodies []string) (all []uint64) {
	for _, b := range bodies {
		var e wire.Event
		require.NoError(t, json.Unmarshal([]byte(b), &e))
		all = append(all, e.ID)
	}
	return all
}

// TestSignature: the vector of the specification's own libraries, and one of a delivery.
func TestSignature(t *testing.T) {
	key, err := base64.StdEncoding.DecodeString("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
	require.NoError(t, err)
	require.Equal(t, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
		sign(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", []byte(`{"test": 2432232314}`)))

	server := newReceiver(t, httptest.NewServer)
	r := newRig(t)
	r.Configure([]Hook{{URL: server.URL + "/hook", SecretFile: r.file}})
	r.deliver(wire.EventLoaded, "vm1")
	r.counted(Delivered, 1)
	req := server.got[0]
	require.Equal(t, "application/json", req.Header.Get("Content-Type"))
	require.Equal(t, "trayd/test", req.UserAgent())
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(req.Header.Get("webhook-id") + "." + req.Header.Get("webhook-timestamp") + "." + server.bodies[0]))
	require.Equal(t, "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)), req.Header.Get("webhook-signature"))
	require.NotContains(t, r.log.String(), "/hook")
}

// TestTriedAgain: in order, with the same id, until it is taken.
func TestTriedAgain(t *testing.T) {
	server := newReceiver(t, httptest.NewServer)
	server.answer = func(n int) int {
		return map[int]int{1: 500, 2: 503, 3: 429, 4: 408}[n] + map[bool]int{true: 200}[n > 4]
	}
	r := newRig(t)
	r.Configure([]Hook{{URL: server.URL, SecretFile: r.file}})
	for range 3 {
		r.deliver(wire.EventLoaded, "vm1")
	}
	r.counted(Delivered, 3)
	require.Equal(t, []uint64{1, 1, 1, 1, 1, 2, 3}, ids(t, server.bodies))
	for i := range 5 {
		require.Equal(t, server.got[0].Header.Get("webhook-id"), server.got[i].Header.Get("webhook-id"))
	}
	require.NotEqual(t, server.got[0].Header.Get("webhook-id"), server.got[5].Header.Get("webhook-id"))
	counts, waiting := r.Counts()
	require.Equal(t, map[string]uint64{Delivered: 3, Retried: 4}, counts)
	require.Zero(t, waiting)
	require.Equal(t, 1, strings.Count(r.log.String(), "can't be posted yet"))
	require.Contains(t, r.log.String(), "tries=5")
}

// TestGivenUp: a refusal and a redirect are final, and so is a day.
func TestGivenUp(t *testing.T) {
	elsewhere := newReceiver(t, httptest.NewServer)
	for _, status := range []int{400, 401, 404, 410, 422, 302, 307} {
		server := newReceiver(t, httptest.NewServer)
		server.answer = func(int) int { return status }
		server.header.Set("Location", elsewhere.URL)
		r := newRig(t)
		r.Configure([]Hook{{URL: server.URL, SecretFile: r.file}})
		r.deliver(wire.EventLoaded, "vm1")
		r.counted(GivenUp, 1)
		require.Equal(t, 1, server.requests(), "%d", status)
		require.Contains(t, r.log.String(), fmt.Sprint(status))
	}
	require.Zero(t, elsewhere.requests())

	server := newReceiver(t, httptest.NewServer)
	server.answer = func(int) int { return 500 }
	r := newRig(t, func(o *Options) { o.limits.life = 100 * time.Millisecond })
	r.Configure([]Hook{{URL: server.URL, SecretFile: r.file}})
	r.deliver(wire.EventLoaded, "vm1")
	r.counted(GivenUp, 1)
	require.Greater(t, server.requests(), 2)
	require.Contains(t, r.log.String(), "couldn't be posted in time")
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	require.Equal(t, 120*time.Second, retryAfter("120", now))
	require.Equal(t, 55*time.Second, retryAfter("Fri, 02 Jan 2026 03:05:00 GMT", now))
	require.Zero(t, retryAfter("Fri, 02 Jan 2020 03:05:00 GMT", now))
	require.Zero(t, retryAfter("-5", now))
	require.Zero(t, retryAfter("soon", now))

	server := newReceiver(t, httptest.NewServer)
	server.answer = func(n int) int { return map[bool]int{true: 429, false: 200}[n == 1] }
	server.header.Set("Retry-After", "1")
	r := newRig(t)
	r.Configure([]Hook{{URL: server.URL, SecretFile: r.file}})
	began := time.Now()
	r.deliver(wire.EventLoaded, "vm1")
	r.counted(Delivered, 1)
	require.GreaterOrEqual(t, time.Since(began), time.Second)
}

// TestFilters: each hook gets what it wants; what was missed may have been of any kind.
func TestFilters(t *testing.T) {
	some, all := newReceiver(t, httptest.NewServer), newReceiver(t, httptest.NewServer)
	r := newRig(t)
	r.Configure([]Hook{
		{URL: some.URL, SecretFile: r.file, Types: []string{wire.EventLoaded, wire.EventEjected}, VMs: []string{"vm2"}},
		{URL: all.URL, SecretFile: r.file},
	})
	r.deliver(wire.EventLoaded, "vm1")
	r.deliver(wire.EventLoaded, "vm2")
	r.deliver(wire.EventStarted, "vm2")
	r.deliver(wire.EventMissed, "")
	r.deliver(wire.EventEjected, "vm2")
	r.counted(Delivered, 5+3)
	require.Equal(t, []uint64{2, 4, 5}, ids(t, some.bodies))
	require.Equal(t, []uint64{1, 2, 3, 4, 5}, ids(t, all.bodies))
}

// TestQueueIsBounded: the newest are kept, told once at the gap's beginning and once at its
// end; and a configuration that stays keeps what waits.
func TestQueueIsBounded(t *testing.T) {
	server := newReceiver(t, httptest.NewServer)
	var well atomic.Bool
	server.answer = func(int) int { return map[bool]int{true: 200, false: 500}[well.Load()] }
	r := newRig(t, func(o *Options) { o.limits.queue = 10 })
	hooks := []Hook{{URL: server.URL, SecretFile: r.file, Types: []string{wire.EventLoaded}}}
	r.Configure(hooks)
	r.deliver(wire.EventLoaded, "vm1")
	r.counted(Retried, 1) // the first is out of the queue
	for range 15 {
		r.deliver(wire.EventLoaded, "vm1")
	}
	r.Configure([]Hook{{URL: server.URL, SecretFile: r.file, Types: []string{wire.EventLoaded}}})
	well.Store(true)
	r.counted(Delivered, 11)
	got := ids(t, server.bodies)
	require.Equal(t, []uint64{1, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}, got[len(got)-11:])
	r.counted(Dropped, 5)
	require.Equal(t, 1, strings.Count(r.log.String(), "the oldest are dropped"))
	require.Equal(t, 1, strings.Count(r.log.String(), "dropped=5"))

	well.Store(false)
	r.deliver(wire.EventLoaded, "vm1")
	r.deliver(wire.EventLoaded, "vm1")
	r.Configure(nil)
	require.Contains(t, r.log.String(), "no longer configured")
}

// TestOneThatHangs holds up nobody: not who delivers, not the others, not the end.
func TestOneThatHangs(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // nobody accepts
	require.NoError(t, err)
	defer l.Close()
	good := newReceiver(t, httptest.NewServer)
	r := newRig(t)
	r.Configure([]Hook{{URL: "http://" + l.Addr().String(), SecretFile: r.file}, {URL: good.URL, SecretFile: r.file}})
	began := time.Now()
	for range 20 {
		r.deliver(wire.EventLoaded, "vm1")
	}
	require.Less(t, time.Since(began), 5*time.Second)
	r.counted(Delivered, 20)
	began = time.Now()
	r.Sender.Close()
	require.Less(t, time.Since(began), 5*time.Second)
}

// TestTLS: a certificate that nobody vouches for is refused; ca_file vouches.
func TestTLS(t *testing.T) {
	server := newReceiver(t, httptest.NewTLSServer)
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	r := newRig(t)
	r.Configure([]Hook{{URL: server.URL, SecretFile: r.file}})
	r.deliver(wire.EventLoaded, "vm1")
	r.counted(Retried, 2)
	require.Contains(t, r.log.String(), "x509")
	require.Zero(t, server.requests())

	ca := filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600))
	r.Configure([]Hook{{URL: server.URL, SecretFile: r.file, CAFile: ca}})
	r.deliver(wire.EventLoaded, "vm1")
	r.counted(Delivered, 1)
}

// TestSecret is read for each try; without one nothing is sent.
func TestSecret(t *testing.T) {
	server := newReceiver(t, httptest.NewServer)
	r := newRig(t)
	for text, want := range map[string]string{"short": "has 5 bytes", "whsec_&&&": "isn't base64"} {
		require.NoError(t, os.WriteFile(r.file, []byte(text), 0o600))
		_, err := readSecret(r.file)
		require.ErrorContains(t, err, want)
		require.NotContains(t, err.Error(), text)
	}
	require.NoError(t, os.Remove(r.file))
	r.Configure([]Hook{{URL: server.URL, SecretFile: r.file}})
	r.deliver(wire.EventLoaded, "vm1")
	r.counted(Retried, 2)
	require.Zero(t, server.requests())
	require.NoError(t, os.WriteFile(r.file+".new", []byte("sixteen bytes or more\n"), 0o600))
	require.NoError(t, os.Rename(r.file+".new", r.file))
	r.counted(Delivered, 1)
	require.Equal(t, sign([]byte("sixteen bytes or more"), server.got[0].Header.Get("webhook-id"), server.got[0].Header.Get("webhook-timestamp"), []byte(server.bodies[0])),
		server.got[0].Header.Get("webhook-signature"))
}

// TestDialer: every connection is made by the dialer that was given.
func TestDialer(t *testing.T) {
	server := newReceiver(t, httptest.NewServer)
	var dialled atomic.Value
	r := newRig(t, func(o *Options) {
		o.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
			dialled.Store(addr)
			return new(net.Dialer).DialContext(ctx, network, server.Listener.Addr().String())
		}
	})
	r.Configure([]Hook{{URL: "http://receiver.invalid/x", SecretFile: r.file}})
	r.deliver(wire.EventLoaded, "vm1")
	r.counted(Delivered, 1)
	require.Equal(t, "receiver.invalid:80", dialled.Load())
}
