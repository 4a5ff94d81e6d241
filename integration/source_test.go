//go:build integration || edge

package integration_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/qemutest"
)

// source is a web server on loopback with the files of a directory. By the first part of
// a path it is a good one or a bad one:
//
//	/FILE       as it is
//	/slow/FILE  a piece of 32 KiB every 20 ms, that is 1.6 MiB/s at most, until hurry
//	/cut/FILE   breaks off in the middle when the file is asked for first
//	/page/FILE  a web page, as a portal that wants a login sends it
//	/moved/FILE a redirect to /FILE
type source struct {
	*httptest.Server
	dir     string
	hurried chan struct{} // closed when nothing is slow any more

	mu     sync.Mutex // guards below
	cut    map[string]bool
	ranges []string // "PATH RANGE" of each request that has a Range
}

// openSource serves dir until close.
func openSource(dir string) *source {
	s := &source{dir: dir, hurried: make(chan struct{}), cut: make(map[string]bool)}
	s.Server = httptest.NewServer(s)
	return s
}

// newSource serves dir until the test ends.
func newSource(t testing.TB, dir string) *source {
	s := openSource(dir)
	t.Cleanup(s.close)
	return s
}

func (s *source) close() {
	s.CloseClientConnections()
	s.Close()
}

// hurry ends all slowness, once.
func (s *source) hurry() { close(s.hurried) }

// asked are the requests for a part of a path since the last call.
func (s *source) asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.ranges
	s.ranges = nil
	return all
}

func (s *source) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	kind, name, ok := strings.Cut(strings.TrimPrefix(path.Clean(r.URL.Path), "/"), "/")
	if !ok {
		kind, name = "", kind
	}
	content, err := os.ReadFile(filepath.Join(s.dir, name))
	if err != nil {
		http.NotFound(w, r)
		return
	}
	s.mu.Lock()
	if part := r.Header.Get("Range"); part != "" {
		s.ranges = append(s.ranges, r.URL.Path+" "+part)
	}
	first := !s.cut[name]
	s.cut[name] = s.cut[name] || kind == "cut"
	s.mu.Unlock()
	switch kind {
	case "page":
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, "<html><body>Please log in</body></html>")
		return
	case "moved":
		http.Redirect(w, r, "/"+name, http.StatusFound)
		return
	case "slow":
		w = &slowWriter{w, r, s.hurried}
	case "cut":
		if first {
			w = &cutWriter{w, len(content) / 2}
		}
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("ETag", fmt.Sprintf("%q", fmt.Sprintf("%d-%x", len(content), content[len(content)-min(8, len(content)):])))
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
}

// slowWriter sends little at a time, until nobody listens any more.
type slowWriter struct {
	http.ResponseWriter
	r       *http.Request
	hurried chan struct{}
}

func (s *slowWriter) Write(b []byte) (n int, err error) {
	for n < len(b) {
		select {
		case <-s.r.Context().Done():
			return n, s.r.Context().Err()
		case <-s.hurried:
		case <-time.After(20 * time.Millisecond):
		}
		m, err := s.ResponseWriter.Write(b[n:min(n+32<<10, len(b))])
		if n += m; err != nil {
			return n, err
		}
		if f, ok := s.ResponseWriter.(http.Flusher); ok {
			f.Flush()
		}
	}
	return n, nil
}

// cutWriter ends the connection after left bytes.
type cutWriter struct {
	http.ResponseWriter
	left int
}

func (c *cutWriter) Write(b []byte) (int, error) {
	if len(b) >= c.left {
		_, _ = c.ResponseWriter.Write(b[:c.left]) // it is broken off anyway
		panic(http.ErrAbortHandler)
	}
	c.left -= len(b)
	return c.ResponseWriter.Write(b)
}

// writeLargeDisc writes a disc with size more bytes behind what its volume declares, which
// belong to it all the same. They are the same each time, and compress badly.
func writeLargeDisc(dir, name string, size int) (string, error) {
	file, err := qemutest.WriteDisc(dir, name)
	if err != nil {
		return "", err
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	tail := make([]byte, size)
	var seed [32]byte
	copy(seed[:], name)
	_, _ = rand.NewChaCha8(seed).Read(tail) // it has no error
	_, err = f.Write(tail)
	return file, err
}

func largeDisc(t testing.TB, dir, name string, size int) string {
	t.Helper()
	file, err := writeLargeDisc(dir, name, size)
	require.NoError(t, err)
	return file
}
