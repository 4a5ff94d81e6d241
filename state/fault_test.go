package state

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestFailedSyncIsFinal(t *testing.T) {
	d := newFaultDisk()
	j := open(t, filepath.Join(t.TempDir(), "state"), &Options{disk: d})
	require.NoError(t, j.Put("k", 1))
	d.set("sync", fault{times: 1})
	err := j.Put("k", 2)
	assert.ErrorIs(t, err, ErrFailed)
	assert.ErrorIs(t, err, errInjected)
	assert.ErrorIs(t, j.Err(), ErrFailed)
	assert.ErrorIs(t, j.Put("k", 3), ErrFailed, "also when the disk would answer again")
	assert.ErrorIs(t, j.Delete("k"), ErrFailed)
	assert.Equal(t, 1, d.count("sync"), "a failed fdatasync is never asked again")
	assert.Equal(t, map[string]string{"k": "1"}, contents(j), "reading goes on, and says what was acknowledged")
	j = reopened(t, j)
	assert.NoError(t, j.Put("k", 4))
}

func TestEveryoneWhoWaitsLearnsOfAFailure(t *testing.T) {
	d := newFaultDisk()
	j := open(t, filepath.Join(t.TempDir(), "state"), &Options{disk: d})
	d.set("sync", fault{after: 5})
	var wg sync.WaitGroup
	var mu sync.Mutex
	acknowledged := 0
	for i := range 40 {
		wg.Go(func() {
			err := j.Put(fmt.Sprint("k", i), i)
			if err == nil {
				mu.Lock()
				acknowledged++
				mu.Unlock()
			} else {
				assert.ErrorIs(t, err, ErrFailed)
			}
		})
	}
	wg.Wait()
	assert.Len(t, contents(j), acknowledged)
}

func TestFailedWriteIsUndone(t *testing.T) {
	for _, short := range []int{0, 1, 30} {
		d := newFaultDisk()
		j := open(t, filepath.Join(t.TempDir(), "state"), &Options{disk: d})
		require.NoError(t, j.Put("k", 1))
		d.set("write", fault{times: 1, err: unix.ENOSPC, short: short})
		err := j.Put("k", 2)
		assert.ErrorIs(t, err, unix.ENOSPC)
		assert.NotErrorIs(t, err, ErrFailed)
		info, err := os.Stat(j.path)
		require.NoError(t, err)
		assert.Equal(t, j.Stats().Bytes, info.Size())
		require.NoError(t, j.Put("k", 3), "the journal stays usable")
		j = reopened(t, j)
		assert.Equal(t, map[string]string{"k": "3"}, contents(j))
		assert.False(t, j.Stats().DroppedTorn)
	}
}

func TestFailedUndoIsFinal(t *testing.T) {
	for _, step := range []string{"truncate", "sync"} {
		d := newFaultDisk()
		j := open(t, filepath.Join(t.TempDir(), "state"), &Options{disk: d})
		require.NoError(t, j.Put("k", 1))
		d.set("write", fault{times: 1, short: 20})
		d.set(step, fault{times: 1})
		assert.ErrorIs(t, j.Put("k", 2), ErrFailed)
		assert.ErrorIs(t, j.Put("k", 3), ErrFailed)
		assert.Equal(t, map[string]string{"k": "1"}, contents(reopened(t, j)))
	}
}

func TestIntentIsRefusedBeforeTheWriteWhenTheReserveCannotBeKept(t *testing.T) {
	d := newFaultDisk()
	j := open(t, filepath.Join(t.TempDir(), "state"), &Options{disk: d})
	require.NoError(t, j.Put("drive", "loading"))
	d.set("reserve", fault{err: unix.ENOSPC})
	d.set("write", fault{after: 1 << 30}) // count only
	writes, refused := 0, error(nil)
	for i := 0; refused == nil; i++ {
		require.Less(t, i, 1000)
		writes = d.count("write")
		refused = j.Put("drive", strings.Repeat("x", 1000))
	}
	assert.ErrorIs(t, refused, unix.ENOSPC)
	assert.ErrorContains(t, refused, "not written")
	assert.Equal(t, writes, d.count("write"), "nothing was written")
	assert.NoError(t, j.Err(), "it is not final")
	for range 100 {
		require.NoError(t, j.PutReserved("drive", "loaded"))
	}
	require.NoError(t, j.Delete("drive"))
	d.set("reserve", fault{times: -1, after: 1 << 30})
	assert.NoError(t, j.Put("drive", "again"), "as soon as there is room")
}

func TestFileSystemThatCannotReserve(t *testing.T) {
	d := newFaultDisk()
	d.set("reserve", fault{err: errNoReserve})
	j := open(t, filepath.Join(t.TempDir(), "state"), &Options{disk: d})
	require.NoError(t, j.Put("k", 1))
	assert.Equal(t, 1, d.count("reserve"), "asked once")
}

func TestReserveDoesNotShow(t *testing.T) {
	j := open(t, filepath.Join(t.TempDir(), "state"), nil)
	require.NoError(t, j.Put("k", 1))
	var st unix.Stat_t
	require.NoError(t, unix.Stat(j.path, &st))
	assert.Equal(t, j.Stats().Bytes, st.Size)
	if j.ahead.can {
		assert.GreaterOrEqual(t, st.Blocks*512, int64(reserveSize))
	}
}

// almostCompacted fills a journal until the next Put rewrites it.
func almostCompacted(t *testing.T, d disk) *Journal {
	t.Helper()
	j := open(t, filepath.Join(t.TempDir(), "state"), &Options{disk: d, CompactSize: 4000})
	require.NoError(t, j.Put("kept", strings.Repeat("k", 100)))
	require.NoError(t, j.Put("gone", 1))
	require.NoError(t, j.Delete("gone"))
	for i := 0; j.Stats().Bytes+200 <= 4000; i++ {
		require.NoError(t, j.Put("turning", fmt.Sprint(i, strings.Repeat("t", 100))))
	}
	return j
}

func TestCompaction(t *testing.T) {
	j := almostCompacted(t, newFaultDisk())
	before := j.Stats()
	assert.Zero(t, before.Compactions)
	for range 3 {
		require.NoError(t, j.Put("turning", "last"+strings.Repeat("t", 100)))
	}
	s := j.Stats()
	assert.Equal(t, uint64(1), s.Compactions)
	assert.Less(t, s.Bytes, before.Bytes/4)
	assert.InDelta(t, s.LiveBytes, s.Bytes, 400, "two changes since")
	assert.Greater(t, s.Sequence, before.Sequence)
	want := contents(j)
	assert.Len(t, want, 2)
	require.NoError(t, j.Put("more", 1))
	j = reopened(t, j)
	want["more"] = "1"
	assert.Equal(t, want, contents(j))
}

// The process dies at each step of a rewrite; a power failure then may or may not have kept the rename.
func TestCrashDuringCompaction(t *testing.T) {
	last := "last" + strings.Repeat("t", 300)
	for _, step := range []string{"create", "write", "sync", "reserve", "rename", "syncdir"} {
		for _, short := range []int{0, 40, 1 << 20} {
			d := newFaultDisk()
			j := almostCompacted(t, d)
			require.Zero(t, j.Stats().Compactions)
			f := fault{dead: true, short: short}
			if step == "write" || step == "sync" {
				f.after = 1 // the first is the record's own
			}
			d.set(step, f)
			old := j.path + ".old"
			require.NoError(t, os.Link(j.path, old))
			require.NoError(t, j.Put("turning", last), "durable in the old file")
			want := contents(j)
			assert.Contains(t, want["turning"], last)
			assert.Error(t, j.Stats().CompactError, step)
			if step == "syncdir" {
				assert.ErrorIs(t, j.Err(), ErrFailed, "the old file may come back")
			}
			assert.Error(t, j.Put("turning", "after death"))
			_ = j.Close()
			after := open(t, j.path, nil)
			assert.Equal(t, want, contents(after), step)
			require.NoError(t, after.Close())
			require.NoError(t, os.Rename(old, j.path), "the power failure took the rename back")
			assert.Equal(t, want, contents(open(t, j.path, nil)), step)
		}
	}
}

// Without a crash a failed rewrite harms nothing and is not tried again at once.
func TestFailedCompactionIsPutOff(t *testing.T) {
	for _, step := range []string{"create", "write", "sync", "rename"} {
		d := newFaultDisk()
		j := almostCompacted(t, d)
		f := fault{err: unix.ENOSPC, times: 1}
		if step == "write" || step == "sync" {
			f.after = 1
		}
		d.set(step, f)
		require.NoError(t, j.Put("turning", strings.Repeat("t", 300)))
		assert.ErrorIs(t, j.Stats().CompactError, unix.ENOSPC, step)
		require.NoError(t, j.Put("turning", "x"))
		assert.Zero(t, j.Stats().Compactions)
		_, err := os.Stat(j.path + suffixTemp)
		assert.ErrorIs(t, err, os.ErrNotExist, step)
		for range 20 {
			require.NoError(t, j.Put("turning", strings.Repeat("t", 100)))
		}
		assert.Equal(t, uint64(1), j.Stats().Compactions, step)
		assert.NoError(t, j.Stats().CompactError)
	}
}

// A disk that is really full: a tmpfs of 256 KiB. Needs root.
func TestFullDisk(t *testing.T) {
	require.Zero(t, os.Getuid(), "this test mounts a small tmpfs: run it as root")
	dir := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"))
	t.Cleanup(func() { assert.NoError(t, unix.Unmount(dir, 0)) })
	j, err := Open(filepath.Join(dir, "state"), nil)
	require.NoError(t, err)
	require.NoError(t, j.Put("drive/vm1/cd0", "loading"))
	fill, err := os.Create(filepath.Join(dir, "fill"))
	require.NoError(t, err)
	for err == nil {
		_, err = fill.Write(make([]byte, 4096))
	}
	require.ErrorIs(t, err, unix.ENOSPC)
	require.NoError(t, fill.Close())

	accepted := 0
	for err = nil; err == nil; accepted++ {
		require.Less(t, accepted, 10000)
		err = j.Put("drive/vm1/cd0", map[string]any{"change": accepted, "pad": strings.Repeat("p", 200)})
	}
	assert.ErrorIs(t, err, unix.ENOSPC)
	var before json.RawMessage
	_, err = j.Get("drive/vm1/cd0", &before)
	require.NoError(t, err)
	for i := range 150 { // 150 outcomes of 300 bytes are less than 64 KiB
		require.NoError(t, j.PutReserved(fmt.Sprint("outcome", i), strings.Repeat("o", 250)), "outcome %d", i)
	}
	for i := 0; err == nil; i++ { // and when even the reserve is used up
		require.Less(t, i, 1000)
		err = j.PutReserved("outcome", strings.Repeat("o", 1000))
	}
	assert.ErrorIs(t, err, unix.ENOSPC)
	assert.NoError(t, j.Err())
	want := contents(j)
	assert.JSONEq(t, string(before), want["drive/vm1/cd0"])
	require.NoError(t, j.Close())

	j, err = Open(j.path, nil) // on a disk that is still full
	require.NoError(t, err)
	assert.Equal(t, want, contents(j))
	assert.False(t, j.Stats().DroppedTorn)
	assert.ErrorIs(t, j.Put("k", 1), unix.ENOSPC)
	require.NoError(t, os.Remove(fill.Name()))
	assert.NoError(t, j.Put("k", 1))
	require.NoError(t, j.Close())
}
