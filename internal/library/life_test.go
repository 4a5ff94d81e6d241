package library

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/blockdev/volume"
	"github.com/trayd/trayd/internal/wire"
)

func (r *rig) upload(name, pool string, b []byte) Image {
	r.t.Helper()
	i, err := r.Upload(r.t.Context(), Request{Name: name, Pool: pool}, bytes.NewReader(b), int64(len(b)))
	require.NoError(r.t, err)
	return i
}

func (r *rig) names() []string {
	names := []string{}
	for _, i := range r.Images() {
		names = append(names, i.Name)
	}
	return names
}

// unlike is a disc of about 1 MiB that differs from others.
func unlike(t *testing.T, name string) []byte {
	b := disc(t, name)
	return append(b, make([]byte, 1<<20-len(b))...)
}

// TestQuota: what was used least recently makes room, and nothing that is of use.
func TestQuota(t *testing.T) {
	for _, pool := range []string{"local", "fast"} {
		r := newRig(t, func(o *Options) {
			for i := range o.Pools {
				o.Pools[i].Quota = 3 << 20
			}
		})
		for _, name := range []string{"A", "B", "C"} {
			r.upload(name, pool, unlike(t, name))
			time.Sleep(2 * time.Millisecond)
		}
		place, err := r.Find("A")
		require.NoError(t, err)
		r.NoteUse(place)
		i, err := r.Image("", "A")
		require.NoError(t, err)
		require.WithinDuration(t, time.Now(), i.Used, 2*time.Minute)
		// Used is to the minute, and older than that it was added.
		e, _ := r.entry(pool, "A")
		e.Used = time.Now().Add(time.Minute)
		require.NoError(t, r.put(e))
		r.upload("D", pool, unlike(t, "D"))
		require.Equal(t, []string{"A", "C", "D"}, r.names(), "B was used least recently")

		_, err = r.Pin("", "C", true)
		require.NoError(t, err)
		r.upload("E", pool, unlike(t, "E"))
		require.Equal(t, []string{"A", "C", "E"}, r.names(), "C is pinned, A was used")
		_, err = r.Pin("", "A", true)
		require.NoError(t, err)
		r.used = []User{{Drive: "vm/cd0", Medium: "image:E"}}
		_, err = r.Upload(t.Context(), Request{Name: "F", Pool: pool}, bytes.NewReader(unlike(t, "F")), 1<<20)
		require.Equal(t, OverQuota, code(err))
		require.Equal(t, []string{"A", "C", "E"}, r.names(), "E is in a drive")
		r.used = nil
		_, err = r.Pin("", "A", false)
		require.NoError(t, err)
		_, err = r.Upload(t.Context(), Request{Name: "G", Pool: pool}, bytes.NewReader(unlike(t, "G")), 4<<20)
		require.Equal(t, OverQuota, code(err))
		require.Equal(t, []string{"A", "C", "E"}, r.names(), "one that never fits removes nothing")
		require.Len(t, r.left(), 3)
	}
}

// TestVerifyFindsRot: what lies there is not what was added, and is not used any more.
func TestVerifyFindsRot(t *testing.T) {
	b := disc(t, "DEBIAN")
	s := newServer(t, map[string][]byte{"/debian.iso": b})
	for _, pool := range []string{"local", "fast"} {
		for _, how := range []string{"changed", "cut", "gone"} {
			r := newRig(t)
			i := r.add(Request{Name: "debian", Pool: pool, URLs: []string{s.URL + "/debian.iso"}, Checksum: hexOf(b)})
			r.upload("same", pool, b)
			_, err := r.Verify(t.Context(), "", "debian")
			require.NoError(t, err)
			path := i.Place
			if pool == "fast" {
				path = filepath.Join(r.storage.dir, "debian")
				if how == "gone" {
					continue // a volume that is gone is a failure to activate it
				}
			}
			require.NoError(t, os.Chmod(path, 0o644))
			switch how {
			case "changed":
				f, err := os.OpenFile(path, os.O_WRONLY, 0)
				require.NoError(t, err)
				_, err = f.WriteAt([]byte{1}, 40000)
				require.NoError(t, err)
				require.NoError(t, f.Close())
			case "cut":
				require.NoError(t, os.Truncate(path, 40000))
			case "gone":
				require.NoError(t, os.Remove(path))
			}
			_, err = r.Verify(t.Context(), "", "debian")
			require.Equal(t, Changed, code(err), err)
			for _, name := range []string{"debian", "same"} {
				_, err = r.Find(name)
				require.Equal(t, NotReady, code(err))
				i, err := r.Image("", name)
				require.NoError(t, err)
				require.Equal(t, wire.ImageFailed, i.State)
				require.NotEmpty(t, i.Failure.Remedy)
			}
			require.Empty(t, r.storage.active)
			require.NoError(t, r.Remove(t.Context(), "", "same"))
			_, err = r.Retry("", "debian")
			require.NoError(t, err)
			require.Equal(t, wire.ImageReady, r.ended(i).State)
			_, err = r.Verify(t.Context(), "", "debian")
			require.NoError(t, err)
			require.Len(t, r.left(), 1)
		}
	}
}

// TestCollect: gc removes what is of no use, and says why.
func TestCollect(t *testing.T) {
	s := newServer(t, map[string][]byte{})
	r := newRig(t)
	require.Equal(t, wire.ImageFailed, r.add(Request{Name: "gone", URLs: []string{s.URL + "/gone.iso"}}).State)
	r.upload("old", "local", unlike(t, "old"))
	r.upload("pinned", "local", unlike(t, "pinned"))
	r.upload("same", "fast", unlike(t, "same"))
	_, err := r.Pin("", "pinned", true)
	require.NoError(t, err)
	all, err := r.Collect(t.Context(), 0, true)
	require.NoError(t, err)
	require.Len(t, all, 1)
	require.Equal(t, "image:local/gone", all[0].What)
	require.Len(t, r.names(), 4, "dry")
	all, err = r.Collect(t.Context(), time.Nanosecond, false)
	require.NoError(t, err)
	require.Len(t, all, 3)
	require.Equal(t, []string{"pinned"}, r.names())
	require.Len(t, r.left(), 1)
}

// TestVerityImage: an image carries its hash tree, of which veritysetup says that it is
// right, and is found as a device-mapper volume.
func TestVerityImage(t *testing.T) {
	b := disc(t, "DEBIAN")
	for _, pool := range []string{"local", "fast"} {
		r := newRig(t)
		for _, name := range []string{"debian", "again"} {
			i, err := r.Upload(t.Context(), Request{Name: name, Pool: pool, Integrity: "verity"}, bytes.NewReader(b), int64(len(b)))
			require.NoError(t, err)
			require.Len(t, i.RootHash, 64)
			p, err := r.Find(name)
			require.NoError(t, err)
			require.Equal(t, volume.DM, p.Volume.Kind)
			d, ok := r.Definition(p.Volume.Name)
			require.True(t, ok)
			data, hash := d.Verity.Data, d.Verity.Hash
			if pool == "fast" {
				require.Equal(t, volume.Ref{Kind: volume.LVM, Name: "vg0/debian"}, *d.Verity.Under)
				data = filepath.Join(r.storage.dir, "debian")
				hash = data
			}
			out, err := exec.Command("veritysetup", "verify", "--hash-offset="+strconv.FormatInt(d.Verity.HashOffset, 10), data, hash, d.Verity.RootHash).CombinedOutput()
			require.NoError(t, err, string(out))
		}
		r.upload("plain", pool, b)
		p, err := r.Find("plain")
		require.NoError(t, err)
		if pool == "local" {
			require.Nil(t, p.Volume, "without it, the file is read as it is")
		}
		_, ok := r.Definition("image.nothing")
		require.False(t, ok)
		for _, name := range []string{"debian", "again", "plain"} {
			require.NoError(t, r.Remove(t.Context(), "", name))
		}
		require.Empty(t, r.left())
		require.Empty(t, r.storage.active)
	}
	r := newRig(t)
	odd := append(disc(t, "ODD"), 1, 2, 3)
	_, err := r.Upload(t.Context(), Request{Name: "odd", Integrity: "verity"}, bytes.NewReader(odd), int64(len(odd)))
	require.ErrorContains(t, err, "sectors")
	require.Empty(t, r.left())
	require.Empty(t, r.names())
}

// mounted is a pool of type mount that is a directory.
type mountedPool struct {
	volume.Volume
	dir    string
	active bool
}

func (m *mountedPool) State(context.Context) (volume.State, error) {
	return volume.State{Active: m.active}, nil
}

func (m *mountedPool) Open(_ context.Context, name string) (*os.File, error) {
	return os.Open(filepath.Join(m.dir, name))
}

type withMount struct {
	*volumes
	mount *mountedPool
}

func (w withMount) Volume(ref volume.Ref) (volume.Volume, error) {
	if ref.Kind == volume.Mount {
		return w.mount, nil
	}
	return w.volumes.Volume(ref)
}

// TestStage: a copy in a fast pool is used the next time, unless the file is seen to be
// another.
func TestStage(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Pools = append(o.Pools, Pool{Name: "stick", Type: Mount, Stage: "local"}) })
	slow := &mountedPool{dir: t.TempDir(), active: true}
	r.Library.storage = withMount{r.storage, slow}
	path := filepath.Join(slow.dir, "debian.iso")
	require.NoError(t, os.WriteFile(path, disc(t, "DEBIAN"), 0o600))
	p, err := r.Find("stick/debian.iso")
	require.NoError(t, err)
	require.True(t, p.Stage)
	require.Equal(t, volume.Mount, p.Volume.Kind)
	stage := func() {
		f, err := os.Open(path)
		require.NoError(t, err)
		require.NoError(t, r.Stage("stick", "debian.iso", f))
		require.NoError(t, (<-r.events).Err)
	}
	stage()
	for _, active := range []bool{true, false} {
		slow.active = active
		p, err = r.Find("stick/debian.iso")
		require.NoError(t, err)
		require.Nil(t, p.Volume)
		require.False(t, p.Stage)
	}
	require.NoError(t, os.WriteFile(path, disc(t, "OTHER"), 0o600))
	slow.active = true
	p, err = r.Find("stick/debian.iso")
	require.NoError(t, err)
	require.NotNil(t, p.Volume)
	stage()
	i, err := r.Image("local", "stick.debian.iso")
	require.NoError(t, err)
	require.Equal(t, "OTHER", i.VolumeID)
	require.Len(t, r.left(), 1)
	r.restart()
	r.Library.storage = withMount{r.storage, slow}
	p, err = r.Find("stick/debian.iso")
	require.NoError(t, err)
	require.Nil(t, p.Volume)
}
