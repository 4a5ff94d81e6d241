package qemutest

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/qmp"
)

// Idle are the arguments of a machine whose processor halts at its first instruction.
// Such a machine can run (Run) while a Guest plays: QEMU says "running", and nothing
// but the Guest touches the drive.
func Idle(t testing.TB, dir string) []string {
	t.Helper()
	args, err := WriteIdle(dir)
	require.NoError(t, err)
	return args
}

// WriteIdle is Idle without a test.
func WriteIdle(dir string) ([]string, error) {
	// The smallest size of a ROM that QEMU takes; the reset vector is 16 bytes
	// before its end.
	rom := make([]byte, 64<<10)
	copy(rom[len(rom)-16:], []byte{
		0xFA,       // cli
		0xF4,       // hlt
		0xEB, 0xFD, // jmp to the hlt
	})
	path := filepath.Join(dir, "idle.rom")
	return []string{"-bios", path}, os.WriteFile(path, rom, 0o600)
}

// Run lets a machine run that Start left stopped (-S), through any of its monitors.
func Run(t testing.TB, c *qmp.Conn) {
	t.Helper()
	require.NoError(t, c.Execute(context.Background(), "cont", nil, nil))
	st, err := c.QueryStatus(context.Background())
	require.NoError(t, err)
	require.True(t, st.Running, "the machine is %s", st.Status)
}
