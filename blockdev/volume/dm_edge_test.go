//go:build edge

package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/internal/edge"
)

func TestDM(t *testing.T) {
	contract(t, func(t *testing.T) *subject {
		a, b, c := content(1, testSize), content(2, testSize), content(3, testSize)
		diskA, diskB := disks(t, a, b)
		path := file(t, t.TempDir(), "disc.iso", c)
		h := NewHost("edge", Options{DM: []Definition{
			{Name: "joined", Linear: []Extent{{Device: diskB, Start: sector, Length: 1 << 20}, {Device: path, Start: 2048}, {Device: diskA}}},
			{Name: "file", Linear: []Extent{{Device: path}}},
		}})
		joined := bytes.Join([][]byte{b[sector : sector+1<<20], c[2048:], a}, nil)
		s := &subject{
			host: h, ref: Ref{DM, "joined"}, content: joined,
			other: &subject{host: h, ref: Ref{DM, "file"}, content: c}, absent: Ref{DM, "none"},
		}
		s.foreign = func(t *testing.T) { // an agent that was killed
			require.NoError(t, activate(context.Background(), volumeOf(t, NewHost("edge", h.options), s.ref)))
		}
		t.Cleanup(func() {
			require.Eventually(t, func() bool {
				return !strings.Contains(tool(t, "losetup", "--list", "--noheadings", "--output", "BACK-FILE"), path)
			}, 5*time.Second, 10*time.Millisecond, "the file's loop devices went away by themselves")
		})
		return s
	})
}

// A table that doesn't fit its devices is refused with the figures, and leaves nothing.
func TestDMRefused(t *testing.T) {
	ctx := context.Background()
	disk, _ := disks(t, content(1, testSize), content(2, testSize))
	dir := t.TempDir()
	odd := file(t, dir, "odd", content(3, 4096+100))
	for name, c := range map[string]struct {
		extent Extent
		want   Reason
	}{
		"start":     {Extent{Device: disk, Start: 100}, Damaged},
		"length":    {Extent{Device: disk, Length: 100}, Damaged},
		"tail":      {Extent{Device: odd}, Damaged},
		"behind":    {Extent{Device: disk, Start: testSize}, Damaged},
		"too-long":  {Extent{Device: disk, Start: sector, Length: testSize}, Damaged},
		"negative":  {Extent{Device: disk, Start: -sector, Length: sector}, Damaged},
		"overflow":  {Extent{Device: disk, Start: 1 << 62, Length: 1 << 62}, Damaged},
		"missing":   {Extent{Device: "/dev/none"}, NotHere},
		"directory": {Extent{Device: dir}, Damaged},
	} {
		h := NewHost("edge", Options{DM: []Definition{{Name: name, Linear: []Extent{{Device: disk}, c.extent}}}})
		require.Equal(t, c.want, reason(t, activate(ctx, volumeOf(t, h, Ref{DM, name}))), name)
	}
	h := NewHost("edge", Options{DM: []Definition{{Name: "neither"}}})
	require.Equal(t, Damaged, reason(t, activate(ctx, volumeOf(t, h, Ref{DM, "neither"}))))
	left, err := dmNames("")
	require.NoError(t, err)
	require.Empty(t, left)

	// The kernel's own refusal: dm won't stand on a disk that is a mount.
	tool(t, "mke2fs", "-q", edge.Disks[0], "8M")
	mnt := t.TempDir()
	tool(t, "mount", edge.Disks[0], mnt)
	t.Cleanup(func() { tool(t, "umount", mnt) })
	h = NewHost("edge", Options{DM: []Definition{{Name: "mounted", Linear: []Extent{{Device: disk}, {Device: edge.Disks[0]}}}}})
	require.Equal(t, Damaged, reason(t, activate(ctx, volumeOf(t, h, Ref{DM, "mounted"}))))
	left, err = dmNames("")
	require.NoError(t, err)
	require.Empty(t, left)
}

// Devices are told apart by their uuid and their table.
func TestDMOthers(t *testing.T) {
	ctx := context.Background()
	disk, other := disks(t, content(1, testSize), content(2, testSize))
	define := func(device string) Options {
		return Options{DM: []Definition{{Name: "disc", Linear: []Extent{{Device: device}}}}}
	}
	ref := Ref{DM, "disc"}
	mine := NewHost("edge", define(disk))
	require.NoError(t, activate(ctx, volumeOf(t, mine, ref)))
	t.Cleanup(func() { require.NoError(t, volumeOf(t, mine, ref).Release(ctx)) })

	// Somebody of another mark.
	stranger := volumeOf(t, NewHost("edge2", define(disk)), ref)
	require.Equal(t, Failed, reason(t, activate(ctx, stranger)))
	require.Equal(t, Failed, reason(t, stranger.Release(ctx)))
	orphans, err := stranger.(*dmVolume).host.Orphans(ctx)
	require.NoError(t, err)
	require.Empty(t, orphans)

	// The configuration has changed.
	mine.Configure(define(other))
	require.Equal(t, Damaged, reason(t, activate(ctx, volumeOf(t, mine, ref))))

	// A new agent of the same mark that doesn't know the volume any more.
	again := NewHost("edge", Options{})
	orphans, err = again.Orphans(ctx)
	require.NoError(t, err)
	require.Equal(t, []Ref{ref}, orphans)
	require.Equal(t, Undefined, reason(t, activate(ctx, volumeOf(t, again, ref))))
	require.NoError(t, volumeOf(t, again, ref).Release(ctx))

	// What a kill between making and starting it leaves.
	require.NoError(t, dmCreate("trayd-disc", "TRAYD-edge-disc"))
	orphans, err = again.Orphans(ctx)
	require.NoError(t, err)
	require.Equal(t, []Ref{ref}, orphans)
	require.NoError(t, activate(ctx, volumeOf(t, mine, ref)))
	f, err := volumeOf(t, mine, ref).Open(ctx, "")
	require.NoError(t, err)
	got := make([]byte, testSize)
	_, err = io.ReadFull(f, got)
	require.NoError(t, errors.Join(err, f.Close()))
	require.True(t, bytes.Equal(content(2, testSize), got))
}

// What udev does about a device of ours, and how long one takes.
// Two agents that define the same name: one has it, and the other's failure takes nothing
// from it.
func TestDMTwoHosts(t *testing.T) {
	ctx := context.Background()
	disk, _ := disks(t, content(1, testSize), content(2, testSize))
	o := Options{DM: []Definition{{Name: "same", Linear: []Extent{{Device: disk}}}}}
	var both []Volume
	for _, mark := range []string{"one", "two"} {
		both = append(both, volumeOf(t, NewHost(mark, o), Ref{DM, "same"}))
	}
	for range 100 {
		errs, begin := make([]error, len(both)), make(chan struct{})
		var wg sync.WaitGroup
		for i, v := range both {
			wg.Go(func() { <-begin; errs[i] = activate(ctx, v) })
		}
		close(begin)
		wg.Wait()
		require.False(t, errs[0] == nil && errs[1] == nil)
		require.True(t, errs[0] == nil || errs[1] == nil, "%v, %v", errs[0], errs[1])
		for i, v := range both {
			if errs[i] == nil {
				st, err := v.State(ctx)
				require.NoError(t, err)
				require.True(t, st.Active)
				require.NoError(t, v.Release(ctx))
			}
		}
	}
}

func TestDMTime(t *testing.T) {
	ctx := context.Background()
	disk, _ := disks(t, content(1, testSize), nil)
	h := NewHost("edge", Options{DM: []Definition{{Name: "disc", Linear: []Extent{{Device: disk}}}}})
	v := volumeOf(t, h, Ref{DM, "disc"})
	t.Cleanup(func() { require.NoError(t, v.Release(ctx)) })
	const rounds = 5
	var on, off, state time.Duration
	for range rounds {
		begin := time.Now()
		require.NoError(t, activate(ctx, v))
		f, err := v.Open(ctx, "")
		on += time.Since(begin)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		begin = time.Now()
		_, err = v.State(ctx)
		state += time.Since(begin)
		require.NoError(t, err)
		begin = time.Now()
		require.NoError(t, v.Release(ctx))
		off += time.Since(begin)
	}
	t.Logf("activate and open %v, state %v, release %v", on/rounds, state/rounds, off/rounds)
	require.NoError(t, activate(ctx, v))
	tool(t, "udevadm", "settle")
	require.NoFileExists(t, "/dev/mapper/trayd-disc", "udev leaves it alone")
	semaphores, err := os.ReadFile("/proc/sysvipc/sem")
	require.NoError(t, err)
	require.Equal(t, 1, strings.Count(string(semaphores), "\n"), "no cookie is left")
}

// verity makes data and hashes, and returns the root hash.
func verity(t *testing.T, data, hashes string, args ...string) string {
	t.Helper()
	out := tool(t, append([]string{"veritysetup", "format", data, hashes}, args...)...)
	_, root, ok := strings.Cut(out, "Root hash:")
	require.True(t, ok, out)
	return strings.Fields(root)[0]
}

func TestVerity(t *testing.T) {
	contract(t, func(t *testing.T) *subject {
		dir, disc := t.TempDir(), content(1, testSize)
		data, hashes := file(t, dir, "disc.iso", disc), filepath.Join(dir, "hashes")
		diskData, _ := disks(t, disc, disc)
		both := file(t, dir, "both", disc) // hashes behind the data
		const offset = "4194304"
		small := filepath.Join(dir, "small")
		h := NewHost("edge", Options{DM: []Definition{
			{Name: "files", Verity: &Verity{Data: data, Hash: hashes, RootHash: verity(t, data, hashes)}},
			{Name: "both", Verity: &Verity{Data: both, Hash: both, HashOffset: testSize, RootHash: strings.ToUpper(verity(t, both, both, "--hash-offset", offset, "--data-blocks", "1024"))}},
			{Name: "disk", Verity: &Verity{Data: diskData, Hash: small, RootHash: verity(t, diskData, small, "--hash", "sha512", "--salt", "-", "--data-block-size", "512", "--hash-block-size", "1024")}},
		}})
		s := &subject{
			host: h, ref: Ref{DM, "files"}, content: disc,
			other: &subject{host: h, ref: Ref{DM, "both"}, content: disc}, absent: Ref{DM, "none"},
		}
		third := &subject{host: h, ref: Ref{DM, "disk"}, content: disc}
		v := third.volume(t)
		require.NoError(t, activate(context.Background(), v))
		bad, err := h.Corrupted(context.Background(), third.ref)
		require.NoError(t, err)
		require.False(t, bad)
		require.NoError(t, activate(context.Background(), v), "the same table")
		require.NoError(t, v.Release(context.Background()))
		return s
	})
}

// A flipped byte is an error to who reads it, and reported at once, once.
func TestVerityCorrupt(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	dir, disc := t.TempDir(), content(1, testSize)
	data, hashes := file(t, dir, "disc.iso", disc), filepath.Join(dir, "hashes")
	root := verity(t, data, hashes)
	h := NewHost("edge", Options{DM: []Definition{{Name: "disc", Verity: &Verity{Data: data, Hash: hashes, RootHash: root}}}})
	ref := Ref{DM, "disc"}
	v := volumeOf(t, h, ref)
	t.Cleanup(func() { require.NoError(t, v.Release(context.Background())) })

	type report struct {
		ref    Ref
		detail string
	}
	reports, over := make(chan report, 10), make(chan error)
	go func() { over <- h.Watch(ctx, func(r Ref, detail string) { reports <- report{r, detail} }) }()

	f, err := os.OpenFile(data, os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte{^disc[1<<20]}, 1<<20)
	require.NoError(t, errors.Join(err, f.Close()))
	for range 2 { // each time that it is active
		require.NoError(t, activate(ctx, v))
		r, err := v.Open(ctx, "")
		require.NoError(t, err)
		_, err = r.ReadAt(make([]byte, 4096), 8192)
		require.NoError(t, err)
		bad, err := h.Corrupted(ctx, ref)
		require.NoError(t, err)
		require.False(t, bad)
		begin := time.Now()
		for range 3 {
			_, err = r.ReadAt(make([]byte, 4096), 1<<20)
			require.ErrorIs(t, err, unix.EIO)
		}
		select {
		case got := <-reports:
			t.Logf("reported %v after the read began: %s", time.Since(begin), got.detail)
			require.Equal(t, ref, got.ref)
			require.Contains(t, got.detail, "block 256 of its data")
		case <-time.After(5 * time.Second):
			require.Fail(t, "no report")
		}
		bad, err = h.Corrupted(ctx, ref)
		require.NoError(t, err)
		require.True(t, bad)
		require.NoError(t, r.Close())
		require.NoError(t, v.Release(ctx))
	}
	cancel()
	require.NoError(t, <-over)
	require.Empty(t, reports, "once each")
}

func TestVerityRefused(t *testing.T) {
	ctx := context.Background()
	dir, disc := t.TempDir(), content(1, testSize)
	data, hashes := file(t, dir, "disc.iso", disc), filepath.Join(dir, "hashes")
	root := verity(t, data, hashes)
	good, err := os.ReadFile(hashes)
	require.NoError(t, err)
	changed := func(at int, b ...byte) string {
		all := bytes.Clone(good)
		copy(all[at:], b)
		return file(t, dir, fmt.Sprintf("changed%d", at), all)
	}
	wrong := strings.Repeat("0", len(root))
	for name, c := range map[string]Verity{
		"root":      {Data: data, Hash: hashes, RootHash: wrong},
		"short":     {Data: data, Hash: hashes, RootHash: root[2:]},
		"nohex":     {Data: data, Hash: hashes, RootHash: "x" + root[1:]},
		"magic":     {Data: data, Hash: changed(0, 'V'), RootHash: root},
		"version":   {Data: data, Hash: changed(8, 2), RootHash: root},
		"type":      {Data: data, Hash: changed(12, 7), RootHash: root},
		"algorithm": {Data: data, Hash: changed(32, 'x'), RootHash: root},
		"block":     {Data: data, Hash: changed(64, 1), RootHash: root},
		"count":     {Data: data, Hash: changed(72, 1, 4), RootHash: root},
		"salt":      {Data: data, Hash: changed(80, 0xff, 0xff), RootHash: root},
		"cut":       {Data: data, Hash: file(t, dir, "cut", good[:8192]), RootHash: root},
		"small":     {Data: data, Hash: file(t, dir, "tiny", good[:100]), RootHash: root},
		"offset":    {Data: data, Hash: hashes, HashOffset: 100, RootHash: root},
		"behind":    {Data: data, Hash: hashes, HashOffset: 1 << 30, RootHash: root},
		"data":      {Data: file(t, dir, "less", disc[:testSize-4096]), Hash: hashes, RootHash: root},
	} {
		h := NewHost("edge", Options{DM: []Definition{{Name: name, Verity: &c}}})
		require.Equal(t, Damaged, reason(t, activate(ctx, volumeOf(t, h, Ref{DM, name}))), name)
	}
	h := NewHost("edge", Options{DM: []Definition{{Name: "gone", Verity: &Verity{Data: data, Hash: dir + "/none", RootHash: root}}}})
	require.Equal(t, NotHere, reason(t, activate(ctx, volumeOf(t, h, Ref{DM, "gone"}))))
	left, err := dmNames("")
	require.NoError(t, err)
	require.Empty(t, left)
}
