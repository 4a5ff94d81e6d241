package library

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/wire"
)

// TestNoPartialOfAdopted: what an earlier attempt has left goes once the content is found
// elsewhere.
func TestNoPartialOfAdopted(t *testing.T) {
	b := big(t, 4<<20)
	s := newServer(t, map[string][]byte{"/big.iso": b})
	s.set(func(w http.ResponseWriter, req *http.Request) bool {
		if req.Header.Get("Range") != "" {
			http.Error(w, "later", http.StatusServiceUnavailable)
			return true
		}
		return part(b)(w, req)
	})
	for _, pool := range []string{"local", "fast"} {
		r := newRig(t, func(o *Options) { o.Fetch.Attempts = 1 })
		q := Request{Name: "big", Pool: pool, URLs: []string{s.URL + "/big.iso"}, Checksum: hexOf(b)}
		require.Positive(t, r.add(q).Failure.Kept)
		r.upload("same", pool, b)
		i, err := r.Retry("", "big")
		require.NoError(t, err)
		require.Equal(t, wire.ImageReady, r.ended(i).State)
		require.Len(t, r.left(), 1)
		require.Empty(t, r.storage.active)
	}
}

// TestGoneByHand: a content that somebody has removed or changed by hand isn't given
// another name; what was fetched takes its place.
func TestGoneByHand(t *testing.T) {
	b := disc(t, "DEBIAN")
	for _, harm := range []func(place string) error{
		os.Remove,
		func(place string) error {
			return errors.Join(os.Remove(place), os.WriteFile(place, make([]byte, len(b)), 0o444))
		},
	} {
		r := newRig(t)
		i := r.upload("a", "local", b)
		require.NoError(t, harm(i.Place))
		i = r.upload("b", "local", b)
		got, err := os.ReadFile(i.Place)
		require.NoError(t, err)
		require.Equal(t, hexOf(b), hexOf(got))
	}
}

// TestTreeFails: a content whose hash tree can't be made leaves nothing.
func TestTreeFails(t *testing.T) {
	b := disc(t, "DEBIAN")
	s := newServer(t, map[string][]byte{"/debian.iso": b})
	for _, upload := range []bool{true, false} {
		r := newRig(t)
		dir := filepath.Join(r.options.Pools[0].Path, "sha256")
		require.NoError(t, os.MkdirAll(filepath.Join(dir, hexOf(b)+".verity", "in the way"), 0o755))
		if upload {
			_, err := r.Upload(t.Context(), Request{Name: "debian", Integrity: "verity"}, bytes.NewReader(b), int64(len(b)))
			require.Error(t, err)
		} else {
			require.Equal(t, wire.ImageFailed, r.add(Request{Name: "debian", Integrity: "verity", URLs: []string{s.URL + "/debian.iso"}}).State)
		}
		require.Empty(t, r.left())
	}
}

// TestParkFails: a finished volume that can't be turned off is not left without a name.
func TestParkFails(t *testing.T) {
	b := disc(t, "DEBIAN")
	s := newServer(t, map[string][]byte{"/debian.iso": b})
	for _, upload := range []bool{true, false} {
		r := newRig(t)
		r.storage.finishing = func() { r.storage.releaseFails = errors.New("no") }
		if upload {
			_, err := r.Upload(t.Context(), Request{Name: "debian", Pool: "fast"}, bytes.NewReader(b), int64(len(b)))
			require.Error(t, err)
		} else {
			require.Equal(t, wire.ImageFailed, r.add(Request{Name: "debian", Pool: "fast", URLs: []string{s.URL + "/debian.iso"}}).State)
		}
		require.Empty(t, r.left())
	}
}

// TestKilledWithTree: a death between any two steps of an image with a hash tree.
func TestKilledWithTree(t *testing.T) {
	b := disc(t, "DEBIAN")
	for _, pool := range []string{"local", "fast"} {
		for _, point := range []string{"image-verified", "image-placed", "image-ready"} {
			r := newRig(t)
			r.dieAt(point, func() {
				_, _ = r.Upload(t.Context(), Request{Name: "debian", Pool: pool, Integrity: "verity"}, bytes.NewReader(b), int64(len(b)))
			})
			i, err := r.Image("", "debian")
			require.NoError(t, err)
			require.Equal(t, wire.ImageReady, i.State, point)
			require.Len(t, i.RootHash, 64)
			require.NoError(t, r.Remove(t.Context(), "", "debian"))
			require.Empty(t, r.left())
			require.Empty(t, r.storage.active)
		}
	}
}

// TestRemoveUnplaced: an image whose last step was cut off is removed with all that it has.
func TestRemoveUnplaced(t *testing.T) {
	b := disc(t, "DEBIAN")
	for _, pool := range []string{"local", "fast"} {
		for _, point := range []string{"image-verified", "image-placed"} {
			r := newRig(t)
			func() {
				defer func() { _ = recover() }()
				r.failPoint = func(name string) {
					if name == point {
						_ = r.journal.Close()
						panic("died")
					}
				}
				_, _ = r.Upload(t.Context(), Request{Name: "debian", Pool: pool}, bytes.NewReader(b), int64(len(b)))
			}()
			r.stop()
			r.start()
			require.NoError(t, r.Remove(t.Context(), "", "debian"), "before it could be gone on with")
			require.Empty(t, r.left(), pool+" "+point)
		}
	}
}

// TestRemovedMeanwhile: the last name of a content goes while another is given to it.
func TestRemovedMeanwhile(t *testing.T) {
	b := disc(t, "DEBIAN")
	r := newRig(t)
	r.upload("old", "fast", b)
	removed := make(chan error, 1)
	r.storage.removing = func(lv string) {
		if lv != "new" { // its own copy isn't needed: the pool has the content
			return
		}
		go func() { removed <- r.Remove(context.WithoutCancel(t.Context()), "", "old") }()
		time.Sleep(200 * time.Millisecond)
	}
	r.upload("new", "fast", b)
	require.NoError(t, <-removed)
	r.readable("new")

	r = newRig(t)
	r.upload("old", "local", b)
	added := make(chan error, 1)
	r.failPoint = func(name string) {
		if name == "image-removing" { // and now somebody brings in the same
			go func() {
				_, err := r.Upload(context.WithoutCancel(t.Context()), Request{Name: "new"}, bytes.NewReader(b), int64(len(b)))
				added <- err
			}()
			time.Sleep(200 * time.Millisecond)
		}
	}
	require.NoError(t, r.Remove(t.Context(), "", "old"))
	require.NoError(t, <-added)
	r.readable("new")
}

// readable checks that an image has its content, and is all that there is.
func (r *rig) readable(name string) {
	r.t.Helper()
	i, err := r.Image("", name)
	require.NoError(r.t, err)
	require.NoError(r.t, r.Read(r.t.Context(), "", name, func(content io.ReaderAt, size int64) error {
		got := make([]byte, size)
		_, err := content.ReadAt(got, 0)
		require.Equal(r.t, i.SHA256, hexOf(got))
		return err
	}))
	require.Len(r.t, r.left(), 1)
}

// TestQuotaTogether: images that come at the same time don't count on the same bytes, and
// those whose size isn't known count, too.
func TestQuotaTogether(t *testing.T) {
	quota := func(o *Options) { o.Pools[0].Quota = 3 << 19 }
	r := newRig(t, quota)
	a, b := unlike(t, "A"), unlike(t, "B")
	opened := make(chan struct{})
	release := make(chan struct{})
	once := false
	r.failPoint = func(name string) {
		if name == "image-opened" && !once {
			once = true
			close(opened)
			<-release
		}
	}
	ended := make(chan error, 1)
	go func() {
		_, err := r.Upload(t.Context(), Request{Name: "a"}, bytes.NewReader(a), int64(len(a)))
		ended <- err
	}()
	<-opened
	_, err := r.Upload(t.Context(), Request{Name: "b"}, bytes.NewReader(b), int64(len(b)))
	require.Equal(t, OverQuota, code(err))
	close(release)
	require.NoError(t, <-ended)

	s := newServer(t, nil)
	s.set(func(w http.ResponseWriter, _ *http.Request) bool { // without its length
		_, _ = w.Write(b[:1000])
		w.(http.Flusher).Flush()
		_, _ = w.Write(b[1000:])
		return true
	})
	r = newRig(t, quota)
	r.upload("a", "local", a)
	_, err = r.Pin("", "a", true)
	require.NoError(t, err)
	i := r.add(Request{Name: "b", URLs: []string{s.URL + "/b.iso"}})
	require.Equal(t, wire.ImageFailed, i.State)
	require.Equal(t, OverQuota, i.Failure.Code)
	require.Len(t, r.left(), 1)
}

// TestRemovalFails: a content that can't be removed keeps a name by which it can be later.
func TestRemovalFails(t *testing.T) {
	b := disc(t, "DEBIAN")
	s := newServer(t, map[string][]byte{"/debian.iso": b})
	for _, upload := range []bool{true, false} {
		r := newRig(t)
		r.storage.finishing = func() { r.storage.releaseFails, r.storage.fail["remove"] = errors.New("no"), errors.New("no") }
		if upload {
			_, err := r.Upload(t.Context(), Request{Name: "debian", Pool: "fast"}, bytes.NewReader(b), int64(len(b)))
			require.Error(t, err)
		} else {
			require.Equal(t, wire.ImageFailed, r.add(Request{Name: "debian", Pool: "fast", URLs: []string{s.URL + "/debian.iso"}}).State)
		}
		require.Len(t, r.left(), 1)
		r.storage.finishing, r.storage.releaseFails = nil, nil
		delete(r.storage.fail, "remove")
		if upload {
			require.NoError(t, r.Resume(t.Context()))
			require.Empty(t, r.Images())
		} else {
			i, err := r.Retry("", "debian")
			require.NoError(t, err)
			require.Equal(t, wire.ImageReady, r.ended(i).State)
			require.NoError(t, r.Remove(t.Context(), "", "debian"))
		}
		require.Empty(t, r.left())
	}
}

// TestSumsAreReadOnce: a file of sums isn't written down with each step of a download.
func TestSumsAreReadOnce(t *testing.T) {
	b := disc(t, "DEBIAN")
	s, begun, release := held(t, map[string][]byte{"/debian.iso": b})
	r := newRig(t)
	sums := hexOf(b) + "  debian.iso\n" + strings.Repeat(hexOf(b[1:])+"  other.iso\n", 1000)
	i, err := r.Register(Request{Name: "debian", URLs: []string{s.URL + "/debian.iso"}, Checksum: "file:SHA256SUMS", Sums: sums})
	require.NoError(t, err)
	<-begun
	e, ok := r.entry("local", "debian")
	require.True(t, ok)
	require.Empty(t, e.Request.Sums)
	require.Equal(t, "sha256:"+hexOf(b), e.Request.Checksum)
	r.stop() // and without it the next start goes on
	release()
	r.start()
	require.NoError(t, r.Resume(t.Context()))
	require.Equal(t, wire.ImageReady, r.ended(i).State)
}
