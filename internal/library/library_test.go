package library

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/blockdev/volume"
	"github.com/trayd/trayd/internal/qemutest"
	"github.com/trayd/trayd/state"
)

// volumes is a volume group of files, for what a real one doesn't do on demand. The
// edge tests of integration have the real one.
type volumes struct {
	mu         sync.Mutex // guards the maps
	dir        string
	incomplete map[string]bool
	active     map[string]bool
	size       map[string]int64
	fail       map[string]error // by the method's name
	scans      int              // that hold a volume open when it is to be released
	finishing  func()           // what others do meanwhile
	removing   func(lv string)
	// releaseFails is why a volume can't be turned off.
	releaseFails error
}

func newVolumes(t testing.TB) *volumes {
	return &volumes{dir: t.TempDir(), incomplete: map[string]bool{}, active: map[string]bool{}, size: map[string]int64{}, fail: map[string]error{}}
}

func (v *volumes) CreateLV(_ context.Context, _, lv string, size int64) error {
	if v.fail["create"] != nil {
		return v.fail["create"]
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.incomplete[lv], v.active[lv] = true, true
	const extent = 4 << 20
	v.size[lv] = (size + extent - 1) / extent * extent
	return os.WriteFile(filepath.Join(v.dir, lv), make([]byte, v.size[lv]), 0o600)
}

func (v *volumes) OpenForWriting(_ context.Context, _, lv string) (*os.File, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.active[lv] = true
	return os.OpenFile(filepath.Join(v.dir, lv), os.O_RDWR, 0)
}

func (v *volumes) FinishLV(_ context.Context, _, lv string) error {
	if v.fail["finish"] != nil {
		return v.fail["finish"]
	}
	if v.finishing != nil {
		v.finishing()
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.incomplete, lv)
	return nil
}

func (v *volumes) RemoveLV(_ context.Context, _, lv string) error {
	if v.removing != nil {
		v.removing(lv)
	}
	if v.fail["remove"] != nil {
		return v.fail["remove"]
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.incomplete, lv)
	delete(v.active, lv)
	return absentIsFine(os.Remove(filepath.Join(v.dir, lv)))
}

func (v *volumes) ListLVs(context.Context, string) ([]volume.LVInfo, error) {
	files, err := os.ReadDir(v.dir)
	v.mu.Lock()
	defer v.mu.Unlock()
	var all []volume.LVInfo
	for _, f := range files {
		all = append(all, volume.LVInfo{Name: f.Name(), Size: v.size[f.Name()], Active: v.active[f.Name()], Incomplete: v.incomplete[f.Name()]})
	}
	return all, err
}

func (v *volumes) Volume(ref volume.Ref) (volume.Volume, error) { return released{v: v, ref: ref}, nil }

// released is a volume that can be turned on and off.
type released struct {
	volume.Volume
	v   *volumes
	ref volume.Ref
}

func (r released) Ref() volume.Ref { return r.ref }

func (r released) lv() string {
	_, lv, _ := strings.Cut(r.ref.Name, "/")
	return lv
}

func (r released) Activate(context.Context) (bool, error) {
	r.v.mu.Lock()
	defer r.v.mu.Unlock()
	made := !r.v.active[r.lv()]
	r.v.active[r.lv()] = true
	return made, nil
}

func (r released) Open(context.Context, string) (*os.File, error) {
	return os.Open(filepath.Join(r.v.dir, r.lv()))
}

func (r released) State(context.Context) (volume.State, error) {
	r.v.mu.Lock()
	defer r.v.mu.Unlock()
	return volume.State{Active: r.v.active[r.lv()]}, nil
}

func (r released) Release(context.Context) error {
	if r.v.releaseFails != nil {
		return r.v.releaseFails
	}
	if r.v.scans > 0 { // udev has it open for a moment
		r.v.scans--
		return &volume.BusyError{Ref: r.ref}
	}
	r.v.mu.Lock()
	defer r.v.mu.Unlock()
	delete(r.v.active, r.lv())
	return nil
}

func newLibrary(t *testing.T, dir string) (*Library, *volumes) {
	t.Helper()
	return libraryOf(t, Options{Pools: []Pool{{Name: "local", Type: Dir, Path: dir}, {Name: "fast", Type: LVM, VG: "vg0"}, {Name: "stick", Type: Mount}}})
}

// libraryOf starts a library that ends with the test.
func libraryOf(t *testing.T, o Options) (*Library, *volumes) {
	t.Helper()
	v := newVolumes(t)
	r := &rig{t: t, options: o, storage: v, path: filepath.Join(t.TempDir(), "state.journal")}
	r.start()
	t.Cleanup(r.stop)
	return r.Library, v
}

// rig is a library that can be stopped and started again.
type rig struct {
	*Library
	t       *testing.T
	options Options
	storage *volumes
	path    string
	used    []User // by whom everything is
	journal *state.Journal
	stop    func()
	events  chan Event
	die     func(string) // at fail points
}

func (r *rig) start() {
	r.t.Helper()
	var err error
	r.journal, err = state.Open(r.path, nil)
	require.NoError(r.t, err)
	r.Library, err = New(r.journal, r.storage, func(Place) []User { return r.used }, r.options, slog.New(slog.DiscardHandler), r.die)
	require.NoError(r.t, err)
	r.events = make(chan Event, 100)
	ctx, cancel := context.WithCancel(context.Background())
	r.Start(ctx, func(e Event) { r.events <- e })
	journal, library := r.journal, r.Library
	r.stop = sync.OnceFunc(func() {
		cancel()
		library.Drain()
		_ = journal.Close() // a test may have closed it
	})
}

func code(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

func disc(t *testing.T, volume string) []byte {
	t.Helper()
	b, err := os.ReadFile(qemutest.Disc(t, t.TempDir(), volume))
	require.NoError(t, err)
	return b
}

// TestAdd: an image is in the pool, durable and known, or nothing of it is.
func TestAdd(t *testing.T) {
	iso := disc(t, "DEBIAN")
	for _, pool := range []string{"local", "fast"} {
		t.Run(pool, func(t *testing.T) {
			ctx := t.Context()
			dir := filepath.Join(t.TempDir(), "pool")
			l, v := newLibrary(t, dir)
			v.scans = 2
			i, err := l.Upload(ctx, Request{Pool: pool, Name: "debian"}, bytes.NewReader(iso), int64(len(iso)))
			require.NoError(t, err)
			require.Equal(t, "DEBIAN", i.VolumeID)
			require.Equal(t, []Image{i}, l.Images())
			require.Empty(t, v.active)
			require.Empty(t, v.incomplete)
			p, err := l.Find("debian")
			require.NoError(t, err)
			q, err := l.Find(pool + "/debian")
			require.NoError(t, err)
			require.Equal(t, p, q)
			path := p.Path
			if pool == "fast" {
				require.Equal(t, volume.Ref{Kind: volume.LVM, Name: "vg0/debian"}, *p.Volume)
				require.Equal(t, int64(len(iso)), p.Size)
				path = filepath.Join(v.dir, "debian")
			}
			got, err := os.ReadFile(path)
			require.NoError(t, err)
			require.Equal(t, iso, got[:len(iso)])

			_, err = l.Upload(ctx, Request{Pool: pool, Name: "debian"}, bytes.NewReader(iso), int64(len(iso)))
			require.Equal(t, Exists, code(err))
			l.users = func(Place) []User { return []User{{Drive: "vm1/cd0"}} }
			require.Equal(t, InUse, code(l.Remove(ctx, pool, "debian")))
			l.users = nil
			require.NoError(t, l.Remove(ctx, pool, "debian"))
			require.Empty(t, l.Images())
			_, err = l.Find("debian")
			require.Equal(t, NoSuchImage, code(err))
			require.Equal(t, NoSuchImage, code(l.Remove(ctx, pool, "debian")))
			require.NoFileExists(t, path)
		})
	}
}

// TestAddFails: whatever goes wrong, nothing is left of the image.
func TestAddFails(t *testing.T) {
	iso := disc(t, "DEBIAN")
	size := int64(len(iso))
	whole := func() io.Reader { return bytes.NewReader(iso) }
	for _, row := range []struct {
		name, pool, image string
		content           io.Reader
		size              int64
		fails             map[string]error
		want              Code
	}{
		{"no such pool", "nope", "x", whole(), size, nil, NoSuchPool},
		{"a pool that is only mounted", "stick", "x", whole(), size, nil, Failed},
		{"a name that is a path", "local", "../x", whole(), size, nil, BadName},
		{"a name like an option", "fast", "-x", whole(), size, nil, BadName},
		{"too short", "local", "x", bytes.NewReader(iso[:100]), size, nil, Invalid},
		{"too short, on a volume", "fast", "x", bytes.NewReader(iso[:100]), size, nil, Invalid},
		{"too long", "local", "x", whole(), size - 2048, nil, Invalid},
		{"cut off by its size", "local", "x", bytes.NewReader(iso[:size-2048]), size - 2048, nil, Truncated},
		{"no disc", "fast", "x", strings.NewReader(strings.Repeat("x", 1<<17)), 1 << 17, nil, Invalid},
		{"empty", "local", "x", strings.NewReader(""), 0, nil, Invalid},
		{"the sender goes away", "local", "x", io.MultiReader(bytes.NewReader(iso[:1000]), iotest.ErrReader(io.ErrUnexpectedEOF)), size, nil, Interrupted},
		{"the sender goes away from a volume", "fast", "x", io.MultiReader(bytes.NewReader(iso[:1000]), iotest.ErrReader(io.ErrUnexpectedEOF)), size, nil, Interrupted},
		{"no space in the group", "fast", "x", whole(), size, map[string]error{"create": &volume.Error{Reason: volume.NoSpace, Detail: "2 MiB are free", Next: "vgs"}}, NoSpace},
		{"no space in the directory", "local", "x", whole(), 1 << 60, nil, NoSpace},
		{"the volume can't be finished", "fast", "x", whole(), size, map[string]error{"finish": errors.New("lvm2 says no")}, Failed},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := t.TempDir()
			l, v := newLibrary(t, dir)
			v.fail = row.fails
			_, err := l.Upload(t.Context(), Request{Pool: row.pool, Name: row.image}, row.content, row.size)
			require.Equal(t, row.want, code(err), err)
			require.Empty(t, l.Images())
			for _, d := range []string{dir, v.dir} {
				left, err := os.ReadDir(d)
				require.NoError(t, err)
				require.Empty(t, left)
			}
		})
	}
}

// TestFindMeanwhile: an image can't be had before it is finished, also when it is in the
// catalogue already.
func TestFindMeanwhile(t *testing.T) {
	iso := disc(t, "DEBIAN")
	l, v := newLibrary(t, t.TempDir())
	v.finishing = func() {
		_, err := l.Find("debian")
		require.Equal(t, NotReady, code(err))
	}
	_, err := l.Upload(t.Context(), Request{Pool: "fast", Name: "debian"}, bytes.NewReader(iso), int64(len(iso)))
	require.NoError(t, err)
	_, err = l.Find("debian")
	require.NoError(t, err)
}

// TestPoolMoved: what lies under an image's name where its pool is now, by another
// configuration, is neither used for it nor removed.
func TestPoolMoved(t *testing.T) {
	iso := disc(t, "DEBIAN")
	before, after := t.TempDir(), t.TempDir()
	l, v := newLibrary(t, before)
	for _, pool := range []string{"local", "fast"} {
		_, err := l.Upload(t.Context(), Request{Pool: pool, Name: "debian"}, bytes.NewReader(iso), int64(len(iso)))
		require.NoError(t, err)
	}
	theirs := filepath.Join(after, "debian.iso")
	require.NoError(t, os.WriteFile(theirs, nil, 0o600))
	require.NoError(t, l.Configure(Options{Pools: []Pool{{Name: "local", Type: Dir, Path: after}, {Name: "fast", Type: LVM, VG: "vg1"}}}))
	_, err := l.Find("fast/debian")
	require.Equal(t, NoSuchImage, code(err))
	for _, pool := range []string{"local", "fast"} {
		_, err := l.Upload(t.Context(), Request{Pool: pool, Name: "debian"}, bytes.NewReader(iso), int64(len(iso)))
		require.Equal(t, Failed, code(err))
		require.ErrorContains(t, l.Remove(t.Context(), pool, "debian"), "was put into")
	}
	require.FileExists(t, theirs)
	require.Len(t, l.Problems(), 2)
	require.Equal(t, []string{"debian"}, entries(t, v.dir))
	require.Len(t, l.Images(), 2)
}

// TestAddUncatalogued: an image that can't be written to the catalogue is not left behind
// as a file that nobody added.
func TestAddUncatalogued(t *testing.T) {
	iso := disc(t, "DEBIAN")
	dir := t.TempDir()
	l, _ := newLibrary(t, dir)
	require.NoError(t, l.journal.Close())
	_, err := l.Upload(t.Context(), Request{Pool: "local", Name: "debian"}, bytes.NewReader(iso), int64(len(iso)))
	require.ErrorContains(t, err, "the catalogue")
	require.NotContains(t, err.Error(), "no such file")
	require.Empty(t, entries(t, dir))
}

// TestClean: what was cut off is finished when it is whole, and removed when it isn't.
func TestClean(t *testing.T) {
	iso := disc(t, "DEBIAN")
	dir := t.TempDir()
	l, v := newLibrary(t, dir)
	_, err := l.Upload(t.Context(), Request{Pool: "fast", Name: "whole"}, bytes.NewReader(iso), int64(len(iso)))
	require.NoError(t, err)
	v.incomplete["whole"], v.active["whole"] = true, true // cut off before the last step
	require.NoError(t, v.CreateLV(t.Context(), "vg0", "half", 100))
	require.NoError(t, os.WriteFile(filepath.Join(v.dir, "theirs"), nil, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, ".half"+partial), nil, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "theirs.iso"), nil, 0o600))
	require.NoError(t, l.Resume(t.Context()))
	require.Empty(t, v.incomplete)
	require.Empty(t, v.active)
	require.ElementsMatch(t, []string{"whole", "theirs"}, entries(t, v.dir))
	require.Equal(t, []string{"theirs.iso"}, entries(t, dir))
	require.Len(t, l.Images(), 1)
}

func entries(t *testing.T, dir string) []string {
	all, err := os.ReadDir(dir)
	require.NoError(t, err)
	var names []string
	for _, e := range all {
		names = append(names, e.Name())
	}
	slices.Sort(names)
	return names
}

// TestFind: the ways to name an image.
func TestFind(t *testing.T) {
	dir := t.TempDir()
	l, _ := newLibrary(t, dir)
	for _, f := range []string{"plain", "a.iso"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, f), nil, 0o600))
	}
	for _, row := range []struct {
		name string
		want Place
	}{
		{"a", Place{Root: dir, Path: dir + "/a.iso"}},
		{"a.iso", Place{Root: dir, Path: dir + "/a.iso"}},
		{"plain", Place{Root: dir, Path: dir + "/plain"}},
		{"local/a", Place{Root: dir, Path: dir + "/a.iso"}},
		{"stick/x.iso", Place{Volume: &volume.Ref{Kind: volume.Mount, Name: "stick"}, Inside: "x.iso"}},
	} {
		got, err := l.Find(row.name)
		require.NoError(t, err, row.name)
		require.Equal(t, row.want, got)
	}
	for name, want := range map[string]Code{
		"": BadName, "local/": BadName, "local/../x": BadName, "nope/a": NoSuchPool, "b": NoSuchImage, "fast/a": NoSuchImage,
	} {
		_, err := l.Find(name)
		require.Equal(t, want, code(err), name)
	}
	_, err := l.Find("b")
	var e *Error
	require.ErrorAs(t, err, &e)
	require.Contains(t, e.Next, "image:stick/b")
	require.NoError(t, l.Configure(Options{}))
	_, err = l.Find("a")
	require.Equal(t, NoSuchImage, code(err))
}

// TestFindPDIV: oVirt's coordinates.
func TestFindPDIV(t *testing.T) {
	l, _ := newLibrary(t, "/pool")
	for _, row := range []struct {
		name string
		want Place
	}{
		{"dc/fast/img/vol", Place{Volume: &volume.Ref{Kind: volume.LVM, Name: "vg0/vol"}}},
		{"dc/local/img/vol", Place{Root: "/pool", Path: "/pool/images/img/vol"}},
		{"dc/stick/img/vol", Place{Volume: &volume.Ref{Kind: volume.Mount, Name: "stick"}, Inside: "images/img/vol"}},
	} {
		got, err := l.FindPDIV(row.name)
		require.NoError(t, err, row.name)
		require.Equal(t, row.want, got)
	}
	for name, want := range map[string]Code{
		"": BadName, "dc/fast/img": BadName, "dc/fast/img/vol/x": BadName, "dc/local/../../etc": BadName, "dc/local//vol": BadName, "dc/nope/i/v": NoSuchPool,
	} {
		_, err := l.FindPDIV(name)
		require.Equal(t, want, code(err), name)
	}
}
