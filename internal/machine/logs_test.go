package machine

import (
	"bytes"
	"os"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestBoundLogs: what a guest says takes no more room than is good, and its last words stay,
// while QEMU goes on to append.
func TestBoundLogs(t *testing.T) {
	s := Store{t.TempDir()}
	require.NoError(t, os.Mkdir(s.Path("m"), 0o700))
	require.NoError(t, s.BoundLogs("m"), "it has none yet")
	f, err := os.OpenFile(s.Path("m", SerialLog), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	require.NoError(t, err)
	defer f.Close()
	last := []byte("the last words")
	for range 4 {
		_, err = f.Write(append(bytes.Repeat([]byte("x"), 3<<20), last...))
		require.NoError(t, err)
		require.NoError(t, s.BoundLogs("m"))
		st, err := f.Stat()
		require.NoError(t, err)
		require.LessOrEqual(t, st.Sys().(*syscall.Stat_t).Blocks*512, int64(2*logKeep))
		content, err := os.ReadFile(f.Name())
		require.NoError(t, err)
		require.Equal(t, logKeep-len(last), bytes.Count(content, []byte("x")))
		require.True(t, bytes.HasSuffix(content, last))
	}
	require.NoError(t, os.Remove(f.Name()))
	require.NoError(t, os.Symlink("/dev/zero", f.Name()))
	require.NoError(t, s.BoundLogs("m"), "it isn't QEMU's")
}
