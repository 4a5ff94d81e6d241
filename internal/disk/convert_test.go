package disk

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestConvertCompresses: by zstd if qemu-img is built with it, by zlib if not; the disk is
// the same.
func TestConvertCompresses(t *testing.T) {
	w := newWorkshop(t)
	from := w.write(w.create("from", 20*mib, ""), "write -P 7 0 3M", "write -P 8 10M 1M")
	path := w.path("qemu-img-without")
	script := "#!/bin/sh\ncase $* in *zstd*) echo \"qemu-img: Invalid parameter 'zstd'\" >&2; exit 1;; esac\nexec qemu-img \"$@\"\n"
	require.NoError(t, os.WriteFile(path, []byte(script), 0o755))
	sizes := make(map[Tool]int64)
	for _, tool := range []Tool{"qemu-img", Tool(path)} {
		to := fmt.Sprintf("to%d", len(sizes))
		require.NoError(t, os.WriteFile(w.path(to), []byte("whatever that was"), 0o600))
		require.NoError(t, tool.Convert(context.Background(), w.path(from), QCOW2, w.path(to), true, func(float64) {}))
		w.run("", "qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", from, to)
		f, err := os.Open(w.path(to))
		require.NoError(t, err)
		defer f.Close()
		info, err := Probe(f, w.size(to))
		require.NoError(t, err)
		if tool == Tool(path) {
			require.Equal(t, Zlib, info.Compression)
		} else {
			t.Log(info.Compression)
		}
		sizes[tool] = w.size(to)
		require.Less(t, sizes[tool], int64(1<<20), "it is compressed")
	}
}
