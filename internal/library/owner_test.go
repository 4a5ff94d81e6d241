package library

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/wire"
)

// held is a server that answers once it is let go, and its /get by the query.
func held(t *testing.T, of map[string][]byte) (s *server, begun chan struct{}, release func()) {
	s = newServer(t, nil)
	begun = make(chan struct{}, 100)
	gate := make(chan struct{})
	s.set(func(w http.ResponseWriter, r *http.Request) bool {
		begun <- struct{}{}
		select {
		case <-gate:
		case <-r.Context().Done():
			return true
		}
		b, ok := of[r.URL.RequestURI()]
		if !ok {
			http.NotFound(w, r)
			return true
		}
		w.Header().Set("ETag", strconv.Quote(hexOf(b)))
		_, _ = w.Write(b)
		return true
	})
	closed := false
	release = func() {
		if !closed {
			closed = true
			close(gate)
		}
	}
	t.Cleanup(release)
	return s, begun, release
}

// TestOtherQuery: URLs that differ in their query only are of different files.
func TestOtherQuery(t *testing.T) {
	one, two := disc(t, "ONE"), disc(t, "TWO")
	s, begun, release := held(t, map[string][]byte{"/get?id=1": one, "/get?id=2": two})
	r := newRig(t)
	a, err := r.Register(Request{Name: "a", URLs: []string{s.URL + "/get?id=1"}})
	require.NoError(t, err)
	<-begun
	_, err = r.Register(Request{Name: "a", URLs: []string{s.URL + "/get?id=2"}})
	require.Equal(t, InUse, code(err), "another file under the same name")
	b, err := r.Register(Request{Name: "b", URLs: []string{s.URL + "/get?id=2"}})
	require.NoError(t, err)
	time.Sleep(50 * time.Millisecond)
	release()
	require.Equal(t, hexOf(one), r.ended(a).SHA256)
	require.Equal(t, hexOf(two), r.ended(b).SHA256)
	_, err = r.Register(Request{Name: "a", URLs: []string{s.URL + "/get?id=2"}})
	require.Equal(t, Exists, code(err))
	_, err = r.Register(Request{Name: "a", URLs: []string{s.URL + "/get?id=1"}, Checksum: hexOf(one)})
	require.NoError(t, err, "by its checksum it is the same")
}

// TestJoinAsWanted: who wants more of an image than whoever asked first isn't told that it
// is so.
func TestJoinAsWanted(t *testing.T) {
	b := disc(t, "DEBIAN")
	s, begun, release := held(t, map[string][]byte{"/debian.iso": b})
	r := newRig(t)
	q := Request{Name: "debian", URLs: []string{s.URL + "/debian.iso"}}
	i, err := r.Register(q)
	require.NoError(t, err)
	<-begun
	for _, more := range []Request{{Checksum: hexOf(b[1:])}, {SignatureData: []byte("x")}, {Integrity: "verity"}} {
		more.Name, more.URLs = q.Name, q.URLs
		_, err = r.Register(more)
		require.Equal(t, InUse, code(err))
	}
	release()
	require.Equal(t, wire.ImageReady, r.ended(i).State)
	for _, more := range []Request{{Signature: s.URL + "/x.sig"}, {SignatureData: []byte("x")}, {Integrity: "verity"}} {
		more.Name, more.URLs = q.Name, q.URLs
		_, err = r.Register(more)
		require.Equal(t, Exists, code(err))
	}
	_, err = r.Register(q)
	require.NoError(t, err)
}

// TestCancelWaiting: a download that waits for another of the same file can be stopped,
// also while all turns are taken.
func TestCancelWaiting(t *testing.T) {
	files := map[string][]byte{"/debian.iso": disc(t, "DEBIAN")}
	for n := range maxDownloads {
		files["/"+strconv.Itoa(n)] = disc(t, "D"+strconv.Itoa(n))
	}
	s, begun, _ := held(t, files)
	r := newRig(t)
	_, err := r.Register(Request{Name: "first", URLs: []string{s.URL + "/debian.iso"}})
	require.NoError(t, err)
	<-begun
	_, err = r.Register(Request{Name: "second", URLs: []string{s.URL + "/debian.iso"}})
	require.NoError(t, err)
	time.Sleep(50 * time.Millisecond)
	for n := range maxDownloads - 1 {
		_, err := r.Register(Request{Name: strconv.Itoa(n), URLs: []string{s.URL + "/" + strconv.Itoa(n)}})
		require.NoError(t, err)
		<-begun
	}
	stopped := make(chan error, 1)
	go func() { _, err := r.Cancel("", "second"); stopped <- err }()
	select {
	case err := <-stopped:
		require.NoError(t, err)
	case <-time.After(5 * time.Second):
		t.Fatal("it waits for the others")
	}
}

// rot changes the content of an image on the disk, and has it found.
func (r *rig) rot(name string) {
	r.t.Helper()
	e, ok := r.entry("local", name)
	require.True(r.t, ok)
	require.NoError(r.t, os.Chmod(e.Place, 0o600))
	f, err := os.OpenFile(e.Place, os.O_WRONLY, 0)
	require.NoError(r.t, err)
	_, err = f.WriteAt([]byte("rot"), 40000)
	require.NoError(r.t, errors.Join(err, f.Close()))
	_, err = r.Verify(r.t.Context(), "", name)
	require.Equal(r.t, Changed, code(err))
}

// TestRottenIsNotForgotten: what lies at the place of a damaged image goes with its name,
// and not before.
func TestRottenIsNotForgotten(t *testing.T) {
	b, other := disc(t, "DEBIAN"), disc(t, "OTHER")
	s := newServer(t, map[string][]byte{"/debian.iso": b, "/other.iso": other})
	r := newRig(t)
	require.Equal(t, wire.ImageReady, r.add(Request{Name: "debian", URLs: []string{s.URL + "/debian.iso"}}).State)
	r.rot("debian")
	_, err := r.Register(Request{Name: "debian", URLs: []string{s.URL + "/other.iso"}})
	require.Equal(t, Exists, code(err))
	_, err = r.Upload(t.Context(), Request{Name: "debian"}, bytes.NewReader(other), int64(len(other)))
	require.Equal(t, Exists, code(err))
	require.NoError(t, r.Remove(t.Context(), "", "debian"))
	require.Empty(t, r.left())
}

// TestRetryOfWhatIsWell: a retry decides by what the image is when it has its name.
func TestRetryOfWhatIsWell(t *testing.T) {
	b := disc(t, "DEBIAN")
	s := newServer(t, map[string][]byte{"/debian.iso": b})
	r := newRig(t)
	require.Equal(t, wire.ImageReady, r.add(Request{Name: "debian", URLs: []string{s.URL + "/debian.iso"}}).State)
	r.rot("debian")
	done, err := r.occupy("local", "debian") // somebody verifies it again
	require.NoError(t, err)
	_, err = r.Retry("", "debian")
	require.Equal(t, InUse, code(err))
	done()
	i, err := r.Retry("", "debian")
	require.NoError(t, err)
	require.Equal(t, wire.ImageReady, r.ended(i).State)
	require.Len(t, r.left(), 1)
}

// TestUploadOverKept: bytes of a download that has failed are never mixed with those of an
// upload of the same name, wherever trayd dies.
func TestUploadOverKept(t *testing.T) {
	b := big(t, 4<<20)
	s := newServer(t, map[string][]byte{"/big.iso": b})
	s.set(func(w http.ResponseWriter, req *http.Request) bool {
		if req.Header.Get("Range") != "" {
			http.Error(w, "later", http.StatusServiceUnavailable)
			return true
		}
		return part(b)(w, req)
	})
	r := newRig(t, func(o *Options) { o.Fetch.Attempts = 1 })
	i := r.add(Request{Name: "big", URLs: []string{s.URL + "/big.iso"}})
	require.Equal(t, wire.ImageFailed, i.State)
	require.Positive(t, i.Failure.Kept)
	s.set(nil)
	other := disc(t, "OTHER")
	r.dieAt("image-received", func() {
		_, _ = r.Upload(t.Context(), Request{Name: "big"}, bytes.NewReader(other), int64(len(other)))
	})
	for _, i := range r.Images() {
		i, err := r.Retry("", i.Name)
		require.NoError(t, err)
		require.Equal(t, hexOf(b), r.ended(i).SHA256)
	}
}

// dieAt lets trayd die at a point of f, and starts it again.
func (r *rig) dieAt(point string, f func()) {
	r.t.Helper()
	died := false
	r.failPoint = func(name string) {
		if name == point && !died {
			died = true
			_ = r.journal.Close()
			panic("died")
		}
	}
	func() {
		defer func() { _ = recover() }()
		f()
	}()
	require.True(r.t, died)
	r.restart()
}

// TestCollectKnowsBetter: gc looks again before it removes.
func TestCollectKnowsBetter(t *testing.T) {
	r := newRig(t)
	for _, name := range []string{"a", "b"} {
		r.upload(name, "local", unlike(t, name))
	}
	r.failPoint = func(name string) {
		if name == "image-removing" {
			e, _ := r.entry("local", "b")
			e.Pinned = true
			require.NoError(t, r.put(e))
		}
	}
	_, err := r.Collect(t.Context(), time.Nanosecond, false)
	require.NoError(t, err)
	require.Equal(t, []string{"b"}, r.names())
}

// TestVerifyOwnsNames: finding rot doesn't bring back a name that is being removed.
func TestVerifyOwnsNames(t *testing.T) {
	r := newRig(t)
	b := disc(t, "DEBIAN")
	r.upload("a", "local", b)
	r.upload("b", "local", b)
	r.rot("a")
	i, err := r.Image("", "b")
	require.NoError(t, err)
	require.Equal(t, wire.ImageFailed, i.State, "the other name is damaged, too")

	r = newRig(t)
	r.upload("a", "local", b)
	r.upload("b", "local", b)
	e, _ := r.entry("local", "a")
	require.NoError(t, os.Chmod(e.Place, 0o600))
	require.NoError(t, os.WriteFile(e.Place, b[1:], 0o600))
	done, err := r.occupy("local", "b")
	require.NoError(t, err)
	verified := make(chan struct{})
	go func() { defer close(verified); _, _ = r.Verify(t.Context(), "", "a") }()
	require.Eventually(t, func() bool { i, _ := r.Image("", "a"); return i.State == wire.ImageFailed }, 5*time.Second, time.Millisecond)
	gone, _ := r.entry("local", "b")
	require.Equal(t, wire.ImageReady, gone.State, "somebody else has its name")
	require.NoError(t, r.drop(gone))
	done()
	<-verified
	require.Equal(t, []string{"a"}, r.names())
}

// TestCancelUpload: a client's bytes can be stopped, too; nothing of them is left.
func TestCancelUpload(t *testing.T) {
	r := newRig(t)
	reading := make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		_, err := r.Upload(t.Context(), Request{Name: "debian"}, stuck{reading, t.Context()}, 1<<20)
		ended <- err
	}()
	<-reading
	i, err := r.Cancel("", "debian")
	require.NoError(t, err)
	require.Equal(t, "debian", i.Name)
	require.Error(t, <-ended)
	require.Empty(t, r.left())
	require.Empty(t, r.Images())
}

// stuck is a client that sends nothing.
type stuck struct {
	reading chan struct{}
	ctx     context.Context
}

func (s stuck) Read([]byte) (int, error) {
	close(s.reading)
	<-s.ctx.Done()
	return 0, s.ctx.Err()
}

// TestReadGone: an image that goes while it is looked up isn't read as an empty one.
func TestReadGone(t *testing.T) {
	r := newRig(t)
	p, err := r.pool("local")
	require.NoError(t, err)
	require.Error(t, r.reading(t.Context(), p, &entry{}, func(contentFile) error { return nil }))
}

// TestNotesDontDisturb: an image can be put into a drive while it is noted that another
// drive has it.
func TestNotesDontDisturb(t *testing.T) {
	r := newRig(t)
	r.upload("debian", "local", disc(t, "DEBIAN"))
	place, err := r.Find("debian")
	require.NoError(t, err)
	noted := make(chan struct{})
	go func() {
		defer close(noted)
		for range 100 {
			_, _ = r.Pin("", "debian", true)
			_, _ = r.Pin("", "debian", false)
			r.NoteUse(place)
		}
	}()
	for done := false; !done; {
		select {
		case <-noted:
			done = true
		default:
		}
		_, err := r.Find("debian")
		require.NoError(t, err)
	}
}
