package volume

import (
	"bytes"
	"context"
	"io"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestVerityTree: veritysetup takes the trees for its own, and finds a flipped byte.
func TestVerityTree(t *testing.T) {
	for _, size := range []int64{512, 4096, 8192, 2048 * 3, 4096 * 127, 4096 * 128, 4096 * 129, 2048 * 40001, 4096 * 128 * 129, 512 * 7} {
		t.Run(strconv.FormatInt(size, 10), func(t *testing.T) {
			dir := t.TempDir()
			data, tree := filepath.Join(dir, "data"), filepath.Join(dir, "tree")
			b := make([]byte, size)
			rand.New(rand.NewSource(size)).Read(b)
			require.NoError(t, os.WriteFile(data, b, 0o600))
			for _, offset := range []int64{0, 8192} {
				f, err := os.Create(tree)
				require.NoError(t, err)
				root, err := WriteVerityTree(context.Background(), f, offset, bytes.NewReader(b), size)
				require.NoError(t, err)
				want, err := VerityTreeSize(size)
				require.NoError(t, err)
				st, err := f.Stat()
				require.NoError(t, err)
				require.Equal(t, offset+want, st.Size())
				require.NoError(t, f.Close())
				at := "--hash-offset=" + strconv.FormatInt(offset, 10)
				out, err := exec.Command("veritysetup", "verify", at, data, tree, root).CombinedOutput()
				require.NoError(t, err, string(out))
				b[size/2] ^= 1
				require.NoError(t, os.WriteFile(data, b, 0o600))
				require.Error(t, exec.Command("veritysetup", "verify", at, data, tree, root).Run())
				b[size/2] ^= 1
				require.NoError(t, os.WriteFile(data, b, 0o600))
			}
		})
	}
	_, err := VerityTreeSize(1000)
	require.Error(t, err)
	_, err = WriteVerityTree(context.Background(), nil, 0, bytes.NewReader(make([]byte, 100)), 512)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
}
