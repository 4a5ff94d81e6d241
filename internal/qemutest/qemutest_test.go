package qemutest_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/qemutest"
)

// TestGuest shows that the played guest meets a drive as a driver does.
func TestGuest(t *testing.T) {
	dir := t.TempDir()
	a := qemutest.Disc(t, dir, "DISC_A")
	vm := qemutest.Start(t, dir, "vm", qemutest.Legacy.With(a)...)
	g := vm.Guest(t)
	require.Equal(t, "DISC_A", g.Volume())
	g.Lock()
	require.NotEmpty(t, g.Eject(), "a locked door does not open")
	g.Unlock()
	require.Empty(t, g.Eject())
	require.Equal(t, qemutest.NoMedium, g.Volume())
	require.Empty(t, g.Load())
	require.Equal(t, "DISC_A", g.Volume())
	require.False(t, g.EjectRequested())
}
