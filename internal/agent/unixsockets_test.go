package agent

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestServesSomebody: who waits to be accepted isn't served, and who has gone isn't either.
func TestServesSomebody(t *testing.T) {
	path := filepath.Join(t.TempDir(), "with a space")
	serves := func() bool {
		t.Helper()
		yes, err := servesSomebody(path)
		require.NoError(t, err)
		return yes
	}
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	defer l.Close()
	require.False(t, serves())
	client, err := net.Dial("unix", path)
	require.NoError(t, err)
	require.False(t, serves(), "in the queue")
	server, err := l.Accept()
	require.NoError(t, err)
	require.True(t, serves())
	require.NoError(t, client.Close())
	require.NoError(t, server.SetReadDeadline(time.Now().Add(5*time.Second)))
	_, err = server.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
	require.NoError(t, server.Close())
	require.False(t, serves())
}

// TestOwnSocket: what a machine's QEMU may have put in the place of a socket leads nowhere.
func TestOwnSocket(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "host"))
	require.NoError(t, err)
	defer l.Close()
	require.NoError(t, os.Symlink(filepath.Join(dir, "host"), filepath.Join(dir, "vnc")))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	for _, name := range []string{"vnc", "file", "."} {
		_, err := dialOwn(t.Context(), filepath.Join(dir, name))
		require.ErrorIs(t, err, errNoSocket, name)
	}
	_, err = dialOwn(t.Context(), filepath.Join(dir, "none"))
	require.ErrorIs(t, err, os.ErrNotExist)
	conn, err := dialOwn(t.Context(), filepath.Join(dir, "host"))
	require.NoError(t, err)
	require.NoError(t, conn.Close())
}
