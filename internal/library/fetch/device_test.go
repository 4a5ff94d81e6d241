package fetch

import (
	"bytes"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestABlockDeviceGoesOnFromItsState: a device has no length that says how much of it is
// right; the state does.
func TestABlockDeviceGoesOnFromItsState(t *testing.T) {
	want := random(7<<20 + 11)
	backing := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.WriteFile(backing, bytes.Repeat([]byte{0xee}, 16<<20), 0o600))
	out, err := exec.Command("losetup", "--find", "--show", backing).CombinedOutput()
	require.NoError(t, err, string(out))
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() { require.NoError(t, exec.Command("losetup", "-d", device).Run()) })
	s, seen := serve(t, func(w http.ResponseWriter, r *http.Request, n int) {
		if n == 1 {
			cut(w, r, want, `"a"`, 3<<20+1)
			return
		}
		file(w, r, want, `"a"`)
	})
	d := newDisk(t)
	d.path = device
	once := newClient(t, func(o *Options) { o.Attempts = 1 })
	_, err = once.Run(t.Context(), d.job(s.URL))
	requireKind(t, Truncated, err)
	j := d.job(s.URL)
	j.State = d.state()
	_, err = once.Run(t.Context(), j)
	require.NoError(t, err)
	require.Equal(t, "bytes=3145729-", seen.get(1).Header.Get("Range"))
	got, err := os.ReadFile(backing)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got[:len(want)]))
	require.True(t, bytes.Equal(bytes.Repeat([]byte{0xee}, 100), got[len(want):][:100]), "nothing is written behind it")
}

func TestOneClientFetchesSeveralAtOnce(t *testing.T) {
	want := random(3 << 20)
	s, _ := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) { file(w, r, want, `"a"`) })
	c := newClient(t)
	dir := t.TempDir()
	var running sync.WaitGroup
	for i := range 6 {
		running.Go(func() {
			path := filepath.Join(dir, string(rune('a'+i)))
			f, err := os.Create(path)
			if !assert.NoError(t, err) {
				return
			}
			defer f.Close()
			_, err = c.Run(t.Context(), Job{URLs: []string{s.URL}, Open: func(int64) (*os.File, error) { return f, nil }, Onto: func() ([]io.Writer, error) { return nil, nil }})
			assert.NoError(t, err)
			got, err := os.ReadFile(path)
			assert.NoError(t, err)
			assert.True(t, bytes.Equal(want, got))
		})
	}
	running.Wait()
}
