package fetch

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// random is content that is nowhere like itself.
func random(n int) []byte {
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{7}).Read(p)
	return p
}

// options let us fetch from ourselves, with short waits.
func options() Options {
	return Options{
		AllowPrivate: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")},
		BackoffMin:   time.Millisecond, BackoffMax: 2 * time.Millisecond, Stall: 10 * time.Second,
	}
}

func newClient(t *testing.T, change ...func(*Options)) *Client {
	o := options()
	if os.Getenv(byBroker) != "" {
		o.Dial = broker(t).DialContext
	}
	for _, f := range change {
		f(&o)
	}
	c, err := New(o)
	require.NoError(t, err)
	return c
}

// disk is what a caller has: a file, and the last state that it was told.
type disk struct {
	t     *testing.T
	path  string
	file  *os.File
	opens []int64
	sum   hash.Hash
	sums  int // how often a beginning was made

	mu  sync.Mutex // guards all: progress comes from other goroutines
	all []Progress
}

func newDisk(t *testing.T) *disk {
	d := &disk{t: t, path: filepath.Join(t.TempDir(), "image")}
	t.Cleanup(func() {
		if d.file != nil {
			d.file.Close()
		}
	})
	return d
}

func (d *disk) open(size int64) (*os.File, error) {
	d.opens = append(d.opens, size)
	if d.file != nil {
		d.file.Close()
	}
	var err error
	d.file, err = os.OpenFile(d.path, os.O_RDWR|os.O_CREATE, 0o600)
	return d.file, err
}

func (d *disk) onto() ([]io.Writer, error) {
	d.sum = sha256.New()
	d.sums++
	return []io.Writer{d.sum}, nil
}

func (d *disk) progress(p Progress) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.all = append(d.all, p)
}

// state is the last one that was told.
func (d *disk) state() State {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.all[len(d.all)-1].State
}

func (d *disk) job(urls ...string) Job {
	return Job{URLs: urls, Open: d.open, Onto: d.onto, Progress: d.progress}
}

// has requires that the file, and the hash, are of just this content.
func (d *disk) has(want []byte) {
	d.t.Helper()
	got, err := os.ReadFile(d.path)
	require.NoError(d.t, err)
	require.True(d.t, bytes.Equal(want, got), "%d bytes are not the %d that were served", len(got), len(want))
	sum := sha256.Sum256(want)
	require.Equal(d.t, hex.EncodeToString(sum[:]), hex.EncodeToString(d.sum.Sum(nil)))
}

// requests are those that a server got.
type requests struct {
	mu  sync.Mutex // guards all
	all []*http.Request
}

func (r *requests) add(q *http.Request) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, q)
	return len(r.all)
}

func (r *requests) get(i int) *http.Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.all[i]
}

func (r *requests) len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.all)
}

// serve serves f; n is the request's number, from 1 on.
func serve(t *testing.T, f func(w http.ResponseWriter, r *http.Request, n int)) (*httptest.Server, *requests) {
	seen := &requests{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { f(w, r, seen.add(r)) }))
	t.Cleanup(s.Close)
	return s, seen
}

// file answers as a good server does.
func file(w http.ResponseWriter, r *http.Request, content []byte, tag string) {
	w.Header().Set("Content-Type", "application/octet-stream")
	if tag != "" {
		w.Header().Set("ETag", tag)
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
}

// cut breaks off an answer after n bytes of its body.
func cut(w http.ResponseWriter, r *http.Request, content []byte, tag string, n int) {
	file(&cutter{ResponseWriter: w, left: n}, r, content, tag)
}

type cutter struct {
	http.ResponseWriter
	left int
}

func (c *cutter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p[:min(len(p), c.left)])
	if c.left -= n; c.left == 0 && err == nil {
		_ = http.NewResponseController(c.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	return n, err
}

// raw serves a connection as f likes, and not as HTTP has it.
func raw(t *testing.T, f func(c net.Conn, n int)) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var running sync.WaitGroup
	running.Go(func() {
		for n := 1; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer c.Close()
				f(c, n)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		running.Wait()
	})
	return "http://" + l.Addr().String()
}

// request reads a request's head.
func request(c net.Conn) {
	p := make([]byte, 64<<10)
	_, _ = c.Read(p)
}

// chaos passes connections on to a server, and cuts each after as many bytes as next says.
func chaos(t *testing.T, to string, next func(n int) (bytes int64, reset bool)) string {
	return raw(t, func(c net.Conn, n int) {
		s, err := net.Dial("tcp", to)
		if err != nil {
			return
		}
		defer s.Close()
		most, reset := next(n) // before the server knows what is asked for
		go func() {
			_, _ = io.Copy(s, c)
			s.Close()
		}()
		_, _ = io.CopyN(c, s, most)
		if reset {
			_ = c.(*net.TCPConn).SetLinger(0)
		}
	})
}

func requireKind(t *testing.T, want Kind, err error) *Error {
	t.Helper()
	var e *Error
	require.ErrorAs(t, err, &e)
	require.Equal(t, want, e.Kind, "%v (%v)", err, e.Err)
	return e
}
