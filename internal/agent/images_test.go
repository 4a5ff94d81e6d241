package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/blockdev/volume"
	"github.com/trayd/trayd/internal/library"
	"github.com/trayd/trayd/internal/qemutest"
)

// upload is content that comes as long as anybody reads it.
type upload struct{ began chan struct{} }

func (u *upload) Read(p []byte) (int, error) {
	if u.began != nil {
		close(u.began)
		u.began = nil
	}
	time.Sleep(time.Millisecond)
	return 1, nil
}

// TestStopWhileAdding: an upload doesn't outlive the agent, and leaves nothing.
func TestStopWhileAdding(t *testing.T) {
	r := newRig(t, func(o *Options) {
		o.Library.Pools = []library.Pool{{Name: "local", Type: library.Dir, Path: t.TempDir()}}
	})
	r.start()
	began, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		_, err := r.agent.UploadImage(t.Context(), "local", "x", false, &upload{began}, 1<<20, Caller{Name: "test"})
		ended <- err
	}()
	<-began
	r.stop()
	select {
	case err := <-ended:
		require.ErrorContains(t, err, "broke off")
	case <-time.After(patience):
		require.FailNow(t, "it goes on")
	}
	require.NoFileExists(t, r.opts.Library.Pools[0].Path+"/.x.partial")
}

// lateGroup is a volume group whose disks come after trayd's start, and in which an
// addition was cut off.
type lateGroup struct {
	*storage
	asked   atomic.Int32
	removed chan string
}

func (g *lateGroup) ListLVs(context.Context, string) ([]volume.LVInfo, error) {
	if g.asked.Add(1) == 1 {
		return nil, errors.New("there is no volume group vg0 here")
	}
	return []volume.LVInfo{{Name: "half", Active: true, Incomplete: true}}, nil
}

func (g *lateGroup) RemoveLV(_ context.Context, vg, lv string) error {
	g.removed <- vg + "/" + lv
	return nil
}

// TestCleanLater: what an addition left is removed also when its pool comes late.
func TestCleanLater(t *testing.T) {
	r, s := volumeRig(t)
	g := &lateGroup{storage: s, removed: make(chan string, 1)}
	r.opts.Storage, r.opts.Library.Pools = g, []library.Pool{{Name: "fast", Type: library.LVM, VG: "vg0"}}
	r.start()
	select {
	case lv := <-g.removed:
		require.Equal(t, "vg0/half", lv)
	case <-time.After(patience):
		require.FailNow(t, "it is never removed")
	}
}

// TestDiskImage: a disk image gets into no drive, also not for root, and stays as long as a
// machine's disk stands on it.
func TestDiskImage(t *testing.T) {
	r := newRig(t, func(o *Options) {
		o.Library.Pools = []library.Pool{{Name: "local", Type: library.Dir, Path: t.TempDir()}}
	})
	r.machine("vm", qemutest.IDE)
	r.start()
	path := filepath.Join(t.TempDir(), "golden")
	require.NoError(t, exec.Command("qemu-img", "create", "-q", "-f", "qcow2", path, "1M").Run())
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	i, err := r.agent.UploadImage(t.Context(), "local", "golden", false, bytes.NewReader(content), int64(len(content)), Caller{Name: "test"})
	require.NoError(t, err)
	r.refused(NotADisc, Insert, "vm", "image:golden")
	r.refused(NotADisc, Insert, "vm", "image:golden", privileged)
	r.isError(NotADisc, r.agent.IsDisc("", "golden"))

	r.agent.diskUsers = func(p library.Place) []library.User {
		require.Equal(t, i.Place, p.Path)
		return []library.User{{Machine: "web1", Medium: "image:golden"}}
	}
	err = r.agent.RemoveImage(t.Context(), "", "golden", Caller{Name: "test"})
	r.isError(ImageInUse, err)
	require.ErrorContains(t, err, "image:golden is the base of the disks of web1 (linked)")
	require.Equal(t, []string{"web1 (linked)"}, r.agent.Images()[0].Users)
	r.agent.diskUsers = nil
	require.NoError(t, r.agent.RemoveImage(t.Context(), "", "golden", Caller{Name: "test"}))
}

// TestKnownImage: an image is not read again when it goes into a drive, unless somebody has
// touched its file since.
func TestKnownImage(t *testing.T) {
	pool := t.TempDir()
	r := newRig(t, func(o *Options) { o.Library.Pools = []library.Pool{{Name: "local", Type: library.Dir, Path: pool}} })
	r.machine("vm", qemutest.IDE)
	r.start()
	disc, err := os.ReadFile(r.disc("KNOWN"))
	require.NoError(t, err)
	i, err := r.agent.UploadImage(t.Context(), "local", "known", false, bytes.NewReader(disc), int64(len(disc)), Caller{Name: "test"})
	require.NoError(t, err)
	place, err := r.agent.images.Find("known")
	require.NoError(t, err)
	place.Known.VolumeID = "FROM THE RECORD"
	src, err := r.agent.openKnown("image:known", place, true)
	require.NoError(t, err)
	require.Equal(t, "FROM THE RECORD", src.medium.VolumeID, "it isn't read")
	require.NoError(t, src.file.Close())
	r.done(Insert, "vm", "image:known")
	require.Equal(t, "KNOWN", r.drive("vm").Medium.VolumeID)
	images := r.agent.Images()
	require.Equal(t, []string{"vm/cd0"}, images[0].Users)
	r.isError(ImageInUse, r.agent.RemoveImage(t.Context(), "", "known", Caller{Name: "test"}))
	r.done(Eject, "vm", "")
	require.NoError(t, os.Chmod(i.Place, 0o644))
	require.NoError(t, os.Truncate(i.Place, int64(len(disc)-2048)))
	r.refused(Truncated, Insert, "vm", "image:known")
	require.NoError(t, r.agent.RemoveImage(t.Context(), "", "known", Caller{Name: "test"}))
}

// TestRemovedBeforeIntent: an image that was removed after it was found isn't put into a
// drive, from which nobody could put it in again.
func TestRemovedBeforeIntent(t *testing.T) {
	pool := t.TempDir()
	r := newRig(t, func(o *Options) {
		o.Library.Pools = []library.Pool{{Name: "local", Type: library.Dir, Path: pool}}
		o.FailPoint = func(name string) {
			if name == "intent-written" {
				_ = os.Remove(filepath.Join(pool, "debian.iso"))
			}
		}
	})
	b, err := os.ReadFile(r.disc("DEBIAN"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(pool, "debian.iso"), b, 0o600))
	r.machine("vm1", qemutest.IDE)
	r.start()
	r.refused(NoSuchMedium, Insert, "vm1", "image:debian")
	require.Empty(t, r.drive("vm1").Medium)
}

// TestAnnouncedOnce: an upload that was to be compared with a checksum isn't taken without
// one, whatever has become of what was announced.
func TestAnnouncedOnce(t *testing.T) {
	r := newRig(t, func(o *Options) {
		o.Library.Pools = []library.Pool{{Name: "local", Type: library.Dir, Path: t.TempDir()}}
	})
	r.start()
	b, err := os.ReadFile(r.disc("DEBIAN"))
	require.NoError(t, err)
	by := Caller{Name: "test"}
	q := library.Request{Name: "debian", Checksum: "sha256:" + strings.Repeat("0", 64)}
	_, err = r.agent.RegisterImage(q, by)
	require.NoError(t, err)
	_, err = r.agent.UploadImage(t.Context(), "", "debian", true, bytes.NewReader(b), int64(len(b)), by)
	require.ErrorContains(t, err, "sha256")
	_, err = r.agent.UploadImage(t.Context(), "", "debian", true, bytes.NewReader(b), int64(len(b)), by)
	r.isError(ImageCutOff, err)
	require.Empty(t, r.agent.Images())
}

// TestUploadIsSeen: an upload whose request names no pool is listed with the one that it goes
// to and how far it is, and its beginning and end are told; a verify's, too.
func TestUploadIsSeen(t *testing.T) {
	r := newRig(t, func(o *Options) {
		o.Library.Pools = []library.Pool{{Name: "local", Type: library.Dir, Path: t.TempDir()}}
	})
	r.start()
	events := r.agent.Subscribe(0)
	defer events.Close()
	next := func(kind string) Event {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		e, err := events.Next(ctx)
		require.NoError(t, err)
		require.Equal(t, kind, e.Type)
		return e
	}
	b, err := os.ReadFile(r.disc("DEBIAN"))
	require.NoError(t, err)
	b = append(b, make([]byte, 8<<20)...) // more than what is read at once
	by := Caller{Name: "test"}
	content, feed := io.Pipe()
	ended := make(chan error, 1)
	go func() {
		_, err := r.agent.UploadImage(t.Context(), "", "debian", false, content, int64(len(b)), by)
		ended <- err
	}()
	_, err = feed.Write(b[:len(b)/2])
	require.NoError(t, err)
	e := next(EventImageStarted)
	require.Equal(t, "image:local/debian: add", e.Detail)
	op, ok := r.agent.Operation(e.Operation)
	require.True(t, ok)
	require.Equal(t, "image:local/debian", op.Status().Image)
	require.Eventually(t, func() bool {
		p := op.Status().Progress
		return p != nil && p.Bytes > 0 && p.Total == int64(len(b))
	}, patience, time.Millisecond) //X
	t.Logf("%+v %+v", op.Status(), r.agent.Images())
	_, err = feed.Write(b[len(b)/2:])
	require.NoError(t, err)
	require.NoError(t, feed.Close())
	require.NoError(t, <-ended)
	require.Equal(t, "image:local/debian", next(EventImageAdded).Detail)

	i, err := r.agent.ChangeImage(t.Context(), "verify", "", "debian", by)
	require.NoError(t, err)
	require.Equal(t, "image:local/debian: verify", next(EventImageStarted).Detail)
	require.Equal(t, "image:local/debian", next(EventImageVerified).Detail)
	require.NoError(t, os.Chmod(i.Place, 0o644))
	f, err := os.OpenFile(i.Place, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("rot"), int64(len(b)-3))
	require.NoError(t, err)
	require.NoError(t, f.Close())
	_, err = r.agent.ChangeImage(t.Context(), "verify", "", "debian", by)
	r.isError(ImageDamaged, err)
	next(EventImageStarted)
	require.Contains(t, next(EventImageFailed).Detail, "image:local/debian: ")

	_, err = r.agent.UploadImage(t.Context(), "", "empty", false, strings.NewReader("no disc"), 7, by)
	require.Error(t, err)
	require.Equal(t, "image:local/empty: add", next(EventImageStarted).Detail)
	next(EventImageFailed)
}
