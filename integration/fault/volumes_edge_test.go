//go:build edge

package fault_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/integration/fault"
	"github.com/trayd/trayd/integration/peer"
	"github.com/trayd/trayd/internal/edge"
)

// TestFaultsOnVolumes does once what `make compare` does many times to a trayd whose discs are
// on logical volumes.
func TestFaultsOnVolumes(t *testing.T) {
	dir, err := os.MkdirTemp("/var/tmp", "trayd-") // sockets' paths are short
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	discs := filepath.Join(dir, "discs")
	require.NoError(t, os.Mkdir(discs, 0o755))
	trayd := peer.NewTrayd("/usr/bin", filepath.Join(dir, "t"), discs)
	trayd.Tray = `wait = "200ms"`
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute) // three on a busy host
	defer cancel()
	r, err := fault.NewOnVolumes(ctx, trayd, discs, [2]string(edge.Disks))
	t.Cleanup(func() {
		trayd.Close()
		if r != nil {
			r.Close()
		}
	})
	require.NoError(t, err)
	for _, f := range fault.All() {
		t.Run(f.Name, func(t *testing.T) {
			count, err := r.Run(ctx, f, 1)
			require.NoError(t, err)
			require.True(t, count.Good(), "%+v", count)
		})
	}
}
