//go:build integration

package integration_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/integration/fault"
	"github.com/trayd/trayd/integration/peer"
)

// TestFaults does to trayd what `make compare` does to all: the right disc is in, the
// status is so, and nothing is left, in every run.
func TestFaults(t *testing.T) {
	const runs = 3
	dir, err := os.MkdirTemp("", "trayd-") // sockets' paths are short
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	discs := filepath.Join(dir, "discs")
	require.NoError(t, os.Mkdir(discs, 0o755))
	trayd := peer.NewTrayd(bin, filepath.Join(dir, "t"), discs)
	trayd.Tray = `wait = "200ms"`
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	r, err := fault.New(ctx, trayd, discs)
	require.NoError(t, err)
	t.Cleanup(func() {
		trayd.Close()
		r.Close()
	})
	for _, f := range fault.All() {
		t.Run(f.Name, func(t *testing.T) {
			count, err := r.Run(ctx, f, runs)
			require.NoError(t, err)
			require.True(t, count.Good(), "%+v", count)
		})
	}
}

// TestFaultsAreFound: what a contender loses is seen. The bare commands insert a disc that
// nobody has read before.
func TestFaultsAreFound(t *testing.T) {
	dir, err := os.MkdirTemp("", "trayd-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	discs := filepath.Join(dir, "discs")
	require.NoError(t, os.Mkdir(discs, 0o755))
	floor := peer.NewFloor(filepath.Join(dir, "f"))
	r, err := fault.New(t.Context(), floor, discs)
	require.NoError(t, err)
	t.Cleanup(func() {
		floor.Close()
		r.Close()
	})
	for _, f := range fault.All() {
		if f.Name != "new image unreadable" {
			continue
		}
		count, err := r.Run(t.Context(), f, 2)
		require.NoError(t, err)
		require.False(t, count.Good())
		require.Zero(t, count.Kept, "%+v", count)
		require.True(t, count.Silent)
		require.Contains(t, count.Notes, "in the drive: an unreadable disc")
	}
}
