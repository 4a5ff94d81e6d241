package disk

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestOverlay: QEMU takes it for what qemu-img makes, and writes to it.
func TestOverlay(t *testing.T) {
	w := newWorkshop(t)
	w.write(w.create("base", 64<<20, ""), "write -P 7 1M 2M")
	w.run("", "qemu-img", "convert", "-f", "qcow2", "-O", "raw", "base", "raw")
	for _, row := range []struct {
		name, base string
		format     Format
		size       int64
	}{{"over", "base", QCOW2, 64 << 20}, {"larger", "base", QCOW2, 40 << 40}, {"on-raw", "raw", Raw, 64 << 20}, {"odd", "raw", Raw, 64<<20 + 512}} {
		t.Run(row.name, func(t *testing.T) {
			require.NoError(t, CreateOverlay(w.path(row.name), w.path(row.base), row.format, row.size))
			var info struct {
				Size    int64  `json:"virtual-size"`
				Backing string `json:"backing-filename"`
				Format  string `json:"backing-filename-format"`
			}
			require.NoError(t, json.Unmarshal([]byte(w.run("", "qemu-img", "info", "--output", "json", "-f", "qcow2", w.path(row.name))), &info))
			require.Equal(t, row.size, info.Size)
			require.Equal(t, w.path(row.base), info.Backing)
			require.Equal(t, string(row.format), info.Format)
			w.run("", "qemu-img", "check", "-q", "-f", "qcow2", w.path(row.name))
			w.write(row.name, "read -P 7 1M 2M", "read -P 0 0 1M", "write -P 9 62M 1M", "read -P 9 62M 1M")
			w.run("", "qemu-img", "check", "-q", "-f", "qcow2", w.path(row.name))
			written, err := Written(w.path(row.name))
			require.NoError(t, err)
			require.True(t, written)
			require.ErrorIs(t, CreateOverlay(w.path(row.name), w.path(row.base), row.format, row.size), os.ErrExist)
		})
	}
	require.NoError(t, CreateOverlay(w.path("fresh"), w.path("base"), QCOW2, 64<<20))
	written, err := Written(w.path("fresh"))
	require.NoError(t, err)
	require.False(t, written)
	f, err := os.Open(w.path("fresh"))
	require.NoError(t, err)
	defer f.Close()
	info, err := Probe(f, w.size("fresh"))
	require.ErrorContains(t, err, "base")
	require.Equal(t, w.path("base"), info.BackingFile)
	require.EqualValues(t, QCOW2, info.BackingFormat)
	require.ErrorContains(t, CreateOverlay(w.path("long"), "/"+strings.Repeat("x", 1023), Raw, 1<<20), "at most 1023")
	require.NoFileExists(t, w.path("long"))
}
