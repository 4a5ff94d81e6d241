package edge

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Host is a Machine in a test, which ends with the test. What fails, fails the test.
type Host struct {
	*Machine
	t testing.TB
}

// commandTime is more than any command of a test takes.
const commandTime = time.Minute

// Start restores a host for a test that drives it from outside. The kit is made in
// $TRAYD_CACHE, or .cache of the checkout.
func Start(t testing.TB) *Host {
	t.Helper()
	cache, err := Cache()
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute) // downloads over a slow line
	defer cancel()
	kit, err := Prepare(ctx, cache, os.Stderr)
	require.NoError(t, err)
	// Not t.TempDir: a socket's path has 107 bytes, and test names are long.
	dir, err := os.MkdirTemp("", "edge-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	m, err := kit.Start(ctx, dir)
	require.NoError(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the edge host's console:\n%s", m.Console())
		}
		require.NoError(t, m.Close())
	})
	return &Host{Machine: m, t: t}
}

// Cache is the directory of what is downloaded and built for tests: $TRAYD_CACHE, or
// .cache beside the go.mod above the working directory.
func Cache() (string, error) {
	if dir := os.Getenv("TRAYD_CACHE"); dir != "" {
		return dir, nil
	}
	dir, err := os.Getwd()
	for err == nil {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return filepath.Join(dir, ".cache"), nil
		}
		if dir == filepath.Dir(dir) {
			return "", os.ErrNotExist
		}
		dir = filepath.Dir(dir)
	}
	return "", err
}

// Try runs a command and returns what it wrote.
func (h *Host) Try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandTime) // in a cleanup, too
	defer cancel()
	return h.Output(ctx, args...)
}

// Must runs a command that has to succeed.
func (h *Host) Must(args ...string) string {
	h.t.Helper()
	out, err := h.Try(args...)
	require.NoError(h.t, err)
	return out
}

// Write writes a file in the host.
func (h *Host) Write(path, text string, mode os.FileMode) {
	h.t.Helper()
	require.NoError(h.t, h.Put(h.t.Context(), path, strings.NewReader(text), mode))
}

// PowerCycle cuts the power and boots again: 13 s.
func (h *Host) PowerCycle() {
	h.t.Helper()
	require.NoError(h.t, h.Crash())
	require.NoError(h.t, h.Boot(h.t.Context()))
}
