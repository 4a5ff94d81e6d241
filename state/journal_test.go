package state

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if path := os.Getenv("STATE_TEST_WRITER"); path != "" {
		writeForever(path) // the child of TestKilledWriter
	}
	goleak.VerifyTestMain(m)
}

func open(t testing.TB, path string, opts *Options) *Journal {
	t.Helper()
	j, err := Open(path, opts)
	require.NoError(t, err)
	t.Cleanup(func() { _ = j.Close() })
	return j
}

// contents is the state of a journal as text.
func contents(j *Journal) map[string]string {
	m := map[string]string{}
	j.Range(func(key string, value json.RawMessage) bool {
		m[key] = string(value)
		return true
	})
	return m
}

func reopened(t testing.TB, j *Journal) *Journal {
	t.Helper()
	require.NoError(t, j.Close())
	return open(t, j.path, nil)
}

func TestWhatIsPutIsThereAfterReopening(t *testing.T) {
	j := open(t, filepath.Join(t.TempDir(), "state"), nil)
	type drive struct{ Loaded, Note string }
	require.NoError(t, j.Put("drive/vm1/cd0", drive{"image:debian", "a <b> & \"c\"\n"}))
	require.NoError(t, j.Put("drive/vm1/cd0", drive{"image:ubuntu", ""}))
	require.NoError(t, j.PutReserved(`odd "key" \ ü`, 7))
	require.NoError(t, j.Put("gone", true))
	require.NoError(t, j.Delete("gone"))
	require.NoError(t, j.Delete("never there"))
	want := contents(j)
	j = reopened(t, j)
	assert.Equal(t, want, contents(j))
	assert.Equal(t, []string{"drive/vm1/cd0", `odd "key" \ ü`}, slices.Sorted(maps.Keys(want)))
	var d drive
	ok, err := j.Get("drive/vm1/cd0", &d)
	require.NoError(t, err)
	assert.True(t, ok)
	assert.Equal(t, "image:ubuntu", d.Loaded)
	ok, err = j.Get("gone", &d)
	assert.NoError(t, err)
	assert.False(t, ok)
	_, err = j.Get("drive/vm1/cd0", new(int))
	assert.ErrorContains(t, err, "drive/vm1/cd0")
	s := j.Stats()
	assert.Equal(t, uint64(7), s.Sequence)
	assert.Equal(t, 2, s.Live)
	assert.False(t, s.DroppedTorn)
	info, err := os.Stat(j.path)
	require.NoError(t, err)
	assert.Equal(t, info.Size(), s.Bytes)
	assert.Equal(t, os.FileMode(0o600), info.Mode())
}

func TestEveryLineIsJSON(t *testing.T) {
	j := open(t, filepath.Join(t.TempDir(), "state"), nil)
	for i := range 20 {
		require.NoError(t, j.Put(fmt.Sprintf(`k"\%d`, i), json.RawMessage(" { \"a\" :\n 1 } ")))
	}
	text, err := os.ReadFile(j.path)
	require.NoError(t, err)
	lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	require.Len(t, lines, 21)
	for i, l := range lines {
		var r struct {
			Seq   int             `json:"seq"`
			Key   string          `json:"key"`
			Value json.RawMessage `json:"value"`
			CRC   string          `json:"crc"`
		}
		require.NoError(t, json.Unmarshal([]byte(l), &r), l)
		assert.Equal(t, i+1, r.Seq)
		assert.Len(t, r.CRC, 8)
	}
}

func TestWhatAJournalDoesNotTake(t *testing.T) {
	j := open(t, filepath.Join(t.TempDir(), "state"), nil)
	before := j.Stats().Bytes
	for name, err := range map[string]error{
		"empty key":       j.Put("", 1),
		"long key":        j.Put(strings.Repeat("k", MaxKey+1), 1),
		"control":         j.Put("a\nb", 1),
		"C1 control":      j.Put("a\u0085b", 1),
		"not UTF-8":       j.Put("a\xff", 1),
		"large value":     j.Put("k", strings.Repeat("v", MaxValue)),
		"no JSON":         j.Put("k", make(chan int)),
		"broken raw JSON": j.Put("k", json.RawMessage("{")),
		"null":            j.Put("k", nil),
		"delete control":  j.Delete("\x00"),
	} {
		assert.Error(t, err, name)
	}
	assert.NoError(t, j.Err())
	assert.Equal(t, before, j.Stats().Bytes)
	require.NoError(t, j.Put(strings.Repeat(`"`, MaxKey), strings.Repeat("v", MaxValue-2)), "the limits themselves")
	assert.Len(t, contents(reopened(t, j)), 1)
}

func TestOneWriter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	j := open(t, path, nil)
	link := path + "-link"
	require.NoError(t, os.Symlink(path, link))
	for _, p := range []string{path, link} {
		_, err := Open(p, nil)
		assert.ErrorIs(t, err, ErrLocked)
		assert.ErrorContains(t, err, fmt.Sprint(os.Getpid()))
	}
	_, err := Repair(path)
	assert.ErrorIs(t, err, ErrLocked)
	require.NoError(t, j.Close())
	assert.ErrorIs(t, j.Put("k", 1), ErrClosed)
	assert.ErrorIs(t, j.Err(), ErrClosed)
	require.NoError(t, j.Close())
	open(t, link, nil)
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	_, err := Open(dir, nil)
	assert.ErrorContains(t, err, "not a regular file")
	_, err = Open(filepath.Join(dir, "no", "state"), nil)
	assert.ErrorIs(t, err, os.ErrNotExist)

	strange := filepath.Join(dir, "hostname")
	for _, text := range []string{"edge7", "edge7\n", `{"seq":1,"key":"a"`, "{\"a\":1}\n{\"b\":2}\n"} {
		require.NoError(t, os.WriteFile(strange, []byte(text), 0o600))
		_, err = Open(strange, nil)
		var damage *DamageError
		require.ErrorAs(t, err, &damage, text)
		assert.Equal(t, 1, damage.Line)
		assert.ErrorContains(t, err, "trayd state repair "+strange)
		_, err = Repair(strange)
		assert.Error(t, err)
		left, _ := os.ReadFile(strange)
		assert.Equal(t, text, string(left), "somebody else's file is left alone")
	}

	newer := appendRecord(nil, castagnoli(), record{seq: 1, with: 1, value: json.RawMessage(`{"format":"trayd-state","version":2}`)})
	require.NoError(t, os.WriteFile(strange, newer, 0o600))
	_, err = Open(strange, nil)
	var version *VersionError
	require.ErrorAs(t, err, &version)
	assert.Equal(t, 2, version.Version)
	_, err = Repair(strange)
	assert.ErrorAs(t, err, &version)
}

func TestStaleTemporaryFileIsRemoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	require.NoError(t, os.WriteFile(path+".tmp", []byte("half"), 0o600))
	open(t, path, nil)
	_, err := os.Stat(path + ".tmp")
	assert.ErrorIs(t, err, os.ErrNotExist)
}

func TestCallersShareOneSync(t *testing.T) {
	d := newFaultDisk()
	path := filepath.Join(t.TempDir(), "state")
	j := open(t, path, &Options{disk: d})
	var wg sync.WaitGroup
	const writers, each = 32, 20
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				assert.NoError(t, j.Put(fmt.Sprintf("w%d", w), i))
				var got int
				_, err := j.Get(fmt.Sprintf("w%d", w), &got)
				assert.NoError(t, err)
				assert.Equal(t, i, got)
			}
		})
	}
	wg.Wait()
	s := j.Stats()
	assert.Equal(t, uint64(writers*each+1), s.Sequence)
	assert.Less(t, s.Syncs, uint64(writers*each/2), "shared")
	j = reopened(t, j)
	for w := range writers {
		assert.Equal(t, fmt.Sprint(each-1), contents(j)[fmt.Sprintf("w%d", w)])
	}
	_, err := Check(path)
	require.NoError(t, err)
}

func TestRangeIsASnapshot(t *testing.T) {
	j := open(t, filepath.Join(t.TempDir(), "state"), nil)
	for _, k := range []string{"b", "a", "c"} {
		require.NoError(t, j.Put(k, k))
	}
	var seen []string
	j.Range(func(key string, _ json.RawMessage) bool {
		seen = append(seen, key)
		assert.NoError(t, j.Delete("c"))
		assert.NoError(t, j.Put("d", 1))
		return key != "c"
	})
	assert.Equal(t, []string{"a", "b", "c"}, seen)
	assert.Len(t, contents(j), 3)
}

func TestReadAndCheckBesideAWriter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	j := open(t, path, nil)
	require.NoError(t, j.Put("k", 1))
	values, report, err := Read(path)
	require.NoError(t, err)
	assert.JSONEq(t, "1", string(values["k"]))
	assert.Equal(t, 1, report.Records)
	assert.Equal(t, uint64(2), report.LastSequence)
	assert.Nil(t, report.Damage)
	_, err = Check(path + "x")
	assert.ErrorIs(t, err, os.ErrNotExist)
}
