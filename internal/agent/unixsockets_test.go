package agent

import (
	"io"
	"net"
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
