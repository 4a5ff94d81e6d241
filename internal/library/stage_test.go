package library

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestStageLeavesOthers: an image that somebody has added isn't replaced by a staged copy
// of the same name, and a copy that can't be replaced keeps its record.
func TestStageLeavesOthers(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Pools = append(o.Pools, Pool{Name: "stick", Type: Mount, Stage: "fast"}) })
	slow := &mountedPool{dir: t.TempDir(), active: true}
	r.Library.storage = withMount{r.storage, slow}
	path := filepath.Join(slow.dir, "debian.iso")
	stage := func(volume string) error {
		require.NoError(t, os.WriteFile(path, disc(t, volume), 0o600))
		f, err := os.Open(path)
		require.NoError(t, err)
		require.NoError(t, r.Stage("stick", "debian.iso", f))
		return (<-r.events).Err
	}
	mine := r.upload("stick.debian.iso", "fast", disc(t, "MINE"))
	require.Equal(t, Exists, code(stage("DEBIAN")))
	i, err := r.Image("fast", "stick.debian.iso")
	require.NoError(t, err)
	require.Equal(t, mine.SHA256, i.SHA256)

	require.NoError(t, r.Remove(t.Context(), "", "stick.debian.iso"))
	require.NoError(t, stage("DEBIAN"))
	r.storage.fail["remove"] = os.ErrPermission
	require.Error(t, stage("OTHER"))
	require.Equal(t, []string{"stick.debian.iso"}, r.names())
	require.Len(t, r.left(), 1)
}
