package library

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/library/fetch"
	"github.com/trayd/trayd/internal/wire"
)

// loopback lets a library fetch from the servers of tests, and not wait long.
func loopback() fetch.Options {
	return fetch.Options{AllowPrivate: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}, Attempts: 2, BackoffMin: time.Millisecond, BackoffMax: 5 * time.Millisecond}
}

// server serves files by their path.
type server struct {
	*httptest.Server
	mu     sync.Mutex // guards below
	files  map[string][]byte
	asked  []string // "GET /debian.iso bytes=100-"
	before func(w http.ResponseWriter, r *http.Request) bool
}

func newServer(t *testing.T, files map[string][]byte) *server {
	s := &server{files: files}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		b, ok := s.files[r.URL.Path]
		s.asked = append(s.asked, strings.TrimSpace(r.URL.Path+" "+r.Header.Get("Range")))
		before := s.before
		s.mu.Unlock()
		if before != nil && before(w, r) {
			return
		}
		if !ok {
			http.NotFound(w, r)
			return
		}
		sum := sha256.Sum256(b)
		w.Header().Set("ETag", strconv.Quote(hex.EncodeToString(sum[:8])))
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *server) set(before func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.before = before
}

func (s *server) requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	asked := s.asked
	s.asked = nil
	return asked
}

// big is a disc that takes a while: its own bytes, and some behind them.
func big(t *testing.T, size int) []byte {
	b := append(disc(t, "BIG"), make([]byte, size)...)
	for i := len(b) - size; i < len(b); i += 512 {
		b[i] = byte(i >> 9)
	}
	return b
}

// part sends the first half and then breaks off.
func part(b []byte) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Range") != "" || !strings.HasSuffix(r.URL.Path, ".iso") {
			return false
		}
		sum := sha256.Sum256(b)
		w.Header().Set("ETag", strconv.Quote(hex.EncodeToString(sum[:8])))
		w.Header().Set("Content-Length", strconv.Itoa(len(b)))
		_, _ = w.Write(b[:len(b)/2])
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
}

func newRig(t *testing.T, edit ...func(*Options)) *rig {
	t.Helper()
	dir := t.TempDir()
	r := &rig{t: t, storage: newVolumes(t), path: filepath.Join(dir, "state.journal"), options: Options{
		Fetch: loopback(), Pools: []Pool{{Name: "local", Type: Dir, Path: filepath.Join(dir, "pool")}, {Name: "fast", Type: LVM, VG: "vg0"}},
	}}
	for _, f := range edit {
		f(&r.options)
	}
	r.start()
	t.Cleanup(func() { r.stop() })
	return r
}

func (r *rig) restart() {
	r.t.Helper()
	r.stop()
	r.start()
	require.NoError(r.t, r.Resume(r.t.Context()))
}

// add registers an image and waits for what becomes of it.
func (r *rig) add(q Request) Image {
	r.t.Helper()
	i, err := r.Register(q)
	require.NoError(r.t, err)
	return r.ended(i)
}

func (r *rig) ended(i Image) Image {
	r.t.Helper()
	i, err := r.Wait(r.t.Context(), i.Pool, i.Name)
	require.NoError(r.t, err)
	return i
}

// left are the files of the directory's pool, and the volumes.
func (r *rig) left() []string {
	var all []string
	_ = filepath.WalkDir(r.options.Pools[0].Path, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			all = append(all, filepath.Base(path))
		}
		return nil
	})
	return append(all, entries(r.t, r.storage.dir)...)
}

func hexOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// TestRegister: an image from a URL is compared, inspected, and stored by its content.
func TestRegister(t *testing.T) {
	iso := disc(t, "DEBIAN")
	sum512 := sha512.Sum512(iso)
	s := newServer(t, map[string][]byte{
		"/debian.iso": iso,
		"/SHA512SUMS": []byte(hex.EncodeToString(sum512[:]) + "  debian.iso\n" + strings.Repeat("0", 128) + "  other.iso\n"),
	})
	for _, row := range []struct{ pool, checksum, noted string }{
		{"local", "", ""},
		{"local", "sha256:" + hexOf(iso), "sha256:" + hexOf(iso)},
		{"fast", hex.EncodeToString(sum512[:]), "sha512:" + hex.EncodeToString(sum512[:])},
		{"local", "{SHA-512}" + hex.EncodeToString(sum512[:]), "sha512:" + hex.EncodeToString(sum512[:])},
		{"fast", "file:" + s.URL + "/SHA512SUMS", "sha512:" + hex.EncodeToString(sum512[:])},
	} {
		t.Run(row.pool+row.checksum, func(t *testing.T) {
			r := newRig(t)
			bootable := true
			i := r.add(Request{Name: "debian", Pool: row.pool, URLs: []string{s.URL + "/debian.iso"}, Checksum: row.checksum, OSType: "debian12", Site: "berlin", Bootable: &bootable})
			require.Nil(t, i.Failure)
			require.Equal(t, wire.ImageReady, i.State)
			require.Equal(t, hexOf(iso), i.SHA256)
			require.Equal(t, row.noted, i.Checksum)
			require.Equal(t, int64(len(iso)), i.Size)
			require.Equal(t, "DEBIAN", i.VolumeID)
			require.Equal(t, "iso9660", i.Format)
			require.Equal(t, s.URL+"/debian.iso", i.Source)
			require.Equal(t, "debian12", i.OSType)
			require.Equal(t, "berlin", i.Site)
			require.True(t, *i.Bootable)
			require.Equal(t, wire.ImageBoot{}, *i.Boot)
			p, err := r.Find("debian")
			require.NoError(t, err)
			if row.pool == "local" {
				require.Equal(t, filepath.Join(r.options.Pools[0].Path, "sha256", hexOf(iso)+".iso"), p.Path)
				st, err := os.Stat(p.Path)
				require.NoError(t, err)
				require.Equal(t, os.FileMode(0o444), st.Mode())
				f, err := os.Open(p.Path)
				require.NoError(t, err)
				require.True(t, p.Known.Seen.Is(f), "an insert needn't read it")
				f.Close()
			}
			require.Equal(t, wire.ImageReady, (<-r.events).Image.State)
			s.requests()
			again, err := r.Register(Request{Name: "debian", Pool: row.pool, URLs: []string{s.URL + "/debian.iso"}, Checksum: row.checksum})
			require.NoError(t, err)
			require.Equal(t, i, again)
			require.Empty(t, s.requests(), "the same again is done already")
			_, err = r.Register(Request{Name: "debian", Pool: row.pool, URLs: []string{s.URL + "/other.iso"}})
			require.Equal(t, Exists, code(err))
			r.restart()
			_, err = r.Find("debian")
			require.NoError(t, err)
			require.NoError(t, r.Remove(t.Context(), "", "debian"))
			require.Empty(t, r.left())
		})
	}
}

// TestRegisterFails: each failure has its own code and its remedy, and leaves nothing but
// the word of it.
func TestRegisterFails(t *testing.T) {
	iso := disc(t, "DEBIAN")
	s := newServer(t, map[string][]byte{
		"/debian.iso": iso, "/cut.iso": iso[:len(iso)-4096], "/text.iso": []byte("not here, sorry\n"), "/page.iso": []byte("<html>log in</html>"),
		"/sums": []byte(hexOf(iso) + "  other.iso\n"), "/twice": []byte(hexOf(iso) + "  debian.iso\n" + hexOf(nil) + "  debian.iso\n"),
	})
	url := s.URL + "/debian.iso"
	for _, row := range []struct {
		name string
		r    Request
		want Code
	}{
		{"not there", Request{URLs: []string{s.URL + "/gone.iso"}}, "source-not-found"},
		{"no mirror has it", Request{URLs: []string{s.URL + "/gone.iso", s.URL + "/lost.iso"}}, "source-not-found"},
		{"nobody listens", Request{URLs: []string{"http://127.0.0.1:1/debian.iso"}}, "source-refused"},
		{"wrong checksum", Request{URLs: []string{url}, Checksum: "sha256:" + hexOf(nil)}, "verify-mismatch"},
		{"checksum of another file", Request{URLs: []string{url}, Checksum: "file:" + s.URL + "/sums"}, "verify-not-listed"},
		{"ambiguous sums", Request{URLs: []string{url}, Checksum: "file:" + s.URL + "/twice"}, "verify-ambiguous"},
		{"no sums", Request{URLs: []string{url}, Checksum: "file:" + s.URL + "/nosums"}, "source-not-found"},
		{"truncated", Request{URLs: []string{s.URL + "/cut.iso"}}, Truncated},
		{"text", Request{URLs: []string{s.URL + "/text.iso"}}, Invalid},
		{"a web page", Request{URLs: []string{s.URL + "/page.iso"}}, "source-web-page"},
		{"weak", Request{URLs: []string{url}, Checksum: strings.Repeat("0", 32), AllowWeak: true}, Unverified},
	} {
		for _, pool := range []string{"local", "fast"} {
			t.Run(row.name+" "+pool, func(t *testing.T) {
				r := newRig(t)
				row.r.Name, row.r.Pool = "debian", pool
				i := r.add(row.r)
				require.Equal(t, wire.ImageFailed, i.State)
				require.Equal(t, row.want, i.Failure.Code, i.Failure.Cause)
				require.NotEmpty(t, i.Failure.Remedy)
				require.Empty(t, r.left())
				require.Empty(t, r.storage.active)
				require.Error(t, (<-r.events).Err)
				_, err := r.Find("debian")
				require.Equal(t, NotReady, code(err))
				require.ErrorContains(t, err, i.Failure.Cause)
				problems := r.Problems()
				require.Len(t, problems, 1)
				require.Contains(t, problems[0].Detail, i.Failure.Cause)
				require.Equal(t, i.Failure.Remedy, problems[0].Next)
				r.restart()
				require.NoError(t, r.Remove(t.Context(), "", "debian"))
				require.Empty(t, r.Images())
			})
		}
	}
	r := newRig(t)
	for _, row := range []struct {
		r    Request
		want Code
	}{
		{Request{Name: "../x", URLs: []string{url}}, BadName},
		{Request{Name: "x"}, BadRequest},
		{Request{Name: "x", URLs: []string{"ftp://host/x"}}, "source-bad-url"},
		{Request{Name: "x", URLs: []string{"http://u:p@host/x"}}, "source-bad-url"},
		{Request{Name: "x", URLs: []string{url}, Pool: "nope"}, NoSuchPool},
		{Request{Name: "x", URLs: []string{url}, Checksum: "sha256:12"}, "verify-malformed"},
		{Request{Name: "x", URLs: []string{url}, Checksum: strings.Repeat("0", 32)}, "verify-weak"},
		{Request{Name: "x", URLs: []string{url}, Integrity: "hope"}, BadRequest},
	} {
		_, err := r.Register(row.r)
		require.Equal(t, row.want, code(err), row)
	}
	require.Empty(t, r.Images())
}

// TestVerifyLevel: what a host wants at least.
func TestVerifyLevel(t *testing.T) {
	iso := disc(t, "DEBIAN")
	s := newServer(t, map[string][]byte{"/debian.iso": iso})
	for level, want := range map[Level]string{VerifyChecksum: "--checksum", VerifySignature: "--signature"} {
		r := newRig(t, func(o *Options) { o.Verify = level })
		i := r.add(Request{Name: "debian", URLs: []string{s.URL + "/debian.iso"}})
		require.Equal(t, Unverified, i.Failure.Code)
		require.Contains(t, i.Failure.Remedy, want)
		_, err := r.Upload(t.Context(), Request{Name: "up"}, bytes.NewReader(iso), int64(len(iso)))
		require.Equal(t, Unverified, code(err))
		i = r.add(Request{Name: "sum", URLs: []string{s.URL + "/debian.iso"}, Checksum: hexOf(iso)})
		require.Equal(t, level == VerifyChecksum, i.State == wire.ImageReady)
	}
}

// TestGoesOn: a download that broke off, was cancelled, or whose trayd was stopped goes on
// where it was.
func TestGoesOn(t *testing.T) {
	b := big(t, 16<<20)
	for _, pool := range []string{"local", "fast"} {
		for _, how := range []string{"retry", "add", "cancel", "restart", "kill"} {
			t.Run(pool+" "+how, func(t *testing.T) {
				s := newServer(t, map[string][]byte{"/big.iso": b})
				r := newRig(t)
				q := Request{Name: "big", Pool: pool, URLs: []string{s.URL + "/big.iso"}, Checksum: hexOf(b)}
				var held atomic.Bool
				release := make(chan struct{})
				defer func() {
					if held.Load() {
						close(release)
					}
				}()
				s.set(func(w http.ResponseWriter, req *http.Request) bool {
					if how == "retry" || how == "add" {
						if req.Header.Get("Range") != "" {
							http.Error(w, "later", http.StatusServiceUnavailable)
							return true
						}
						return part(b)(w, req)
					}
					sum := sha256.Sum256(b)
					w.Header().Set("ETag", strconv.Quote(hex.EncodeToString(sum[:8])))
					w.Header().Set("Content-Length", strconv.Itoa(len(b)))
					_, _ = w.Write(b[:len(b)/2])
					w.(http.Flusher).Flush()
					held.Store(true)
					select {
					case <-release:
					case <-req.Context().Done():
						held.Store(false)
					}
					panic(http.ErrAbortHandler)
				})
				i, err := r.Register(q)
				require.NoError(t, err)
				if how == "cancel" || how == "restart" || how == "kill" {
					require.Eventually(t, func() bool {
						now, err := r.Image("", "big")
						e, _ := r.entry(pool, "big")
						return err == nil && now.Progress != nil && now.Progress.Bytes >= int64(len(b)/2) && (how != "kill" || e.Fetched.Validator != "")
					}, 10*time.Second, 10*time.Millisecond)
				}
				switch how {
				case "cancel":
					now, err := r.Cancel("", "big")
					require.NoError(t, err)
					require.Equal(t, Cancelled, now.Failure.Code)
					require.Contains(t, now.Failure.Remedy, "retry")
				case "retry", "add":
					i = r.ended(i)
					require.Equal(t, Code("source-server-error"), i.Failure.Code, i.Failure.Cause)
					require.Equal(t, int64(len(b)/2), i.Failure.Kept)
				}
				require.Eventually(t, func() bool { return how == "restart" || how == "kill" || len(r.storage.active) == 0 }, time.Second, time.Millisecond)
				s.requests()
				s.set(nil)
				switch how {
				case "retry", "cancel":
					_, err = r.Retry("", "big")
				case "add":
					_, err = r.Register(q)
				case "restart":
					r.restart()
				case "kill":
					_ = r.journal.Close() // nothing is written down any more
					r.restart()
				}
				require.NoError(t, err)
				i = r.ended(i)
				require.Nil(t, i.Failure)
				require.Equal(t, wire.ImageReady, i.State)
				require.Equal(t, hexOf(b), i.SHA256)
				asked := s.requests()
				require.Len(t, asked, 1)
				if how != "kill" { // that costs what was not written down yet
					require.Contains(t, asked[0], "bytes=", "where it was")
				}
				require.Empty(t, r.storage.active)
				require.Len(t, r.left(), 1)
			})
		}
	}
}

// TestWithoutItsQuery: the query of a URL may be a secret, and is in no record.
func TestWithoutItsQuery(t *testing.T) {
	b := big(t, 4<<20)
	s := newServer(t, map[string][]byte{"/big.iso": b})
	s.set(part(b))
	r := newRig(t, func(o *Options) { o.Fetch.Attempts = 1 })
	url := s.URL + "/big.iso?token=hunter2"
	s.set(func(w http.ResponseWriter, req *http.Request) bool {
		if req.Header.Get("Range") != "" {
			http.Error(w, "later", http.StatusServiceUnavailable)
			return true
		}
		return part(b)(w, req)
	})
	i := r.add(Request{Name: "big", URLs: []string{url}})
	require.Equal(t, wire.ImageFailed, i.State)
	_, err := r.Retry("", "big")
	require.ErrorContains(t, err, "query")
	text, err := os.ReadFile(r.path)
	require.NoError(t, err)
	require.NotContains(t, string(text), "hunter2")
	require.NotContains(t, fmt.Sprint(i, *i.Failure), "hunter2")
	s.set(nil)
	i = r.add(Request{Name: "big", URLs: []string{url}})
	require.Equal(t, wire.ImageReady, i.State)
}

// TestJoin: the same URL is fetched once, whoever asks for it under whatever name.
func TestJoin(t *testing.T) {
	b := disc(t, "DEBIAN")
	s := newServer(t, map[string][]byte{"/debian.iso": b})
	begun, release := make(chan struct{}, 10), make(chan struct{})
	s.set(func(http.ResponseWriter, *http.Request) bool { begun <- struct{}{}; <-release; return false })
	r := newRig(t)
	q := Request{Name: "one", URLs: []string{s.URL + "/debian.iso"}}
	first, err := r.Register(q)
	require.NoError(t, err)
	<-begun
	_, err = r.Register(q)
	require.NoError(t, err)
	q.Name = "two"
	second, err := r.Register(q)
	require.NoError(t, err)
	time.Sleep(50 * time.Millisecond)
	close(release)
	require.Equal(t, wire.ImageReady, r.ended(first).State)
	require.Equal(t, wire.ImageReady, r.ended(second).State)
	require.Len(t, s.requests(), 1)
	require.Len(t, r.left(), 1)
	q.Name, q.URLs, q.Checksum = "three", []string{s.URL + "/elsewhere.iso"}, hexOf(b)
	require.Equal(t, wire.ImageReady, r.add(q).State)
	require.Empty(t, s.requests(), "a content that is there already is not fetched")
}

// TestTwoNames: one content, removed by either name first.
func TestTwoNames(t *testing.T) {
	b := disc(t, "DEBIAN")
	for _, pool := range []string{"local", "fast"} {
		for _, order := range [][2]string{{"a", "b"}, {"b", "a"}} {
			r := newRig(t)
			for _, name := range []string{"a", "b"} {
				_, err := r.Upload(t.Context(), Request{Name: name, Pool: pool}, bytes.NewReader(b), int64(len(b)))
				require.NoError(t, err)
			}
			require.Len(t, r.left(), 1)
			r.used = []User{{Drive: "vm/cd0", Medium: "image:" + order[1]}}
			require.NoError(t, r.Remove(t.Context(), "", order[0]), "the drive has it by the other name")
			require.Len(t, r.left(), 1)
			_, err := r.Find(order[1])
			require.NoError(t, err)
			require.Equal(t, InUse, code(r.Remove(t.Context(), "", order[1])))
			r.used = nil
			_, err = r.Upload(t.Context(), Request{Name: order[0], Pool: pool}, bytes.NewReader(b), int64(len(b)))
			require.NoError(t, err)
			require.NoError(t, r.Remove(t.Context(), "", order[1]))
			require.NoError(t, r.Remove(t.Context(), "", order[0]))
			require.Empty(t, r.left())
		}
	}
}

// TestKilled: a death at each step of an import leaves the image ready, or goes on with it,
// or leaves nothing.
func TestKilled(t *testing.T) {
	b := disc(t, "DEBIAN")
	for _, pool := range []string{"local", "fast"} {
		for _, point := range []string{"image-registered", "image-opened", "image-received", "image-verified", "image-placed", "image-ready"} {
			for _, upload := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s %s %t", pool, point, upload), func(t *testing.T) {
					s := newServer(t, map[string][]byte{"/debian.iso": b})
					r := newRig(t)
					var died atomic.Bool
					r.failPoint = func(name string) {
						if name == point && died.CompareAndSwap(false, true) {
							_ = r.journal.Close()
							runtime.Goexit()
						}
					}
					ended := make(chan struct{})
					go func() {
						defer close(ended)
						if upload {
							_, _ = r.Upload(t.Context(), Request{Name: "debian", Pool: pool}, bytes.NewReader(b), int64(len(b)))
							return
						}
						_, _ = r.Register(Request{Name: "debian", Pool: pool, URLs: []string{s.URL + "/debian.iso"}})
					}()
					<-ended
					require.Eventually(t, func() bool { return died.Load() || upload && point == "image-registered" }, 5*time.Second, time.Millisecond)
					r.restart()
					for _, i := range r.Images() {
						i = r.ended(i)
						require.Equal(t, wire.ImageReady, i.State, i.Failure)
						require.Equal(t, hexOf(b), i.SHA256)
						require.Len(t, r.left(), 1)
						require.NoError(t, r.Remove(t.Context(), "", "debian"))
					}
					require.Empty(t, r.left())
					require.Empty(t, r.storage.active)
				})
			}
		}
	}
	for _, point := range []string{"image-removing", "image-removed"} {
		r := newRig(t)
		_, err := r.Upload(t.Context(), Request{Name: "debian"}, bytes.NewReader(b), int64(len(b)))
		require.NoError(t, err)
		r.failPoint = func(name string) {
			if name == point {
				_ = r.journal.Close()
				runtime.Goexit()
			}
		}
		ended := make(chan struct{})
		go func() { defer close(ended); _ = r.Remove(t.Context(), "", "debian") }()
		<-ended
		r.restart()
		require.Empty(t, r.Images(), point)
		require.Empty(t, r.left())
	}
}
