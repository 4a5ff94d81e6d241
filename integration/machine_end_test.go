//go:build integration

package integration_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/wire"
)

// TestMachineEndUnseen: a machine whose QEMU and whose sockets have gone while trayd was dead
// (the host was booted anew) has been stopped, and hasn't failed.
func TestMachineEndUnseen(t *testing.T) {
	r := newRig(t)
	disc := r.disc("BOOT")
	r.start("")
	r.ready()
	r.must("vm", "create", "m", "--memory", "32M", "--iso", disc, "--disk", "1G", "--start")
	r.must("vm", "create", "bare", "--memory", "32M", "--disk", "1G", "--start")
	r.kill()
	r.killMachines()
	for _, name := range []string{"m", "bare"} {
		require.NoError(t, os.RemoveAll(filepath.Join(r.machinesRun(), name)))
	}
	r.start("")
	r.ready()
	r.whole()
	require.NotContains(t, r.log.String(), "without a word")

	// One that trayd has only found, and hasn't put a disc into.
	r.must("vm", "start", "bare")
	r.kill()
	r.start("")
	r.ready()
	r.killMachines()
	r.untilVM("bare", wire.VMFailed)
	r.must("vm", "start", "bare")
	r.whole()
}

// TestDamagedDefinition: a machine that doesn't start for a slip in its definition keeps what
// its disk stands on.
func TestDamagedDefinition(t *testing.T) {
	r := newRig(t)
	r.start("")
	r.ready()
	r.must("vm", "create", "m", "--memory", "32M", "--disk", "1G")
	r.must("image", "capture", "m", "--name", "golden")
	r.must("vm", "create", "linked", "--memory", "32M", "--image", "image:golden", "--linked")
	file := r.machineDir("linked", "machine.toml")
	right, err := os.ReadFile(file)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, append([]byte("a slip\n"), right...), 0o600))
	got := r.trayctl("image", "rm", "golden")
	require.Equal(t, 1, got.code)
	require.Contains(t, got.stderr, "the base of the disks of linked")
	require.NoError(t, os.WriteFile(file, right, 0o600))
	r.must("vm", "start", "linked")
	r.whole()
}

// TestOthersAreNotOurs: a machine that somebody else runs isn't trayd's to stop, whatever its name.
func TestOthersAreNotOurs(t *testing.T) {
	r := newRig(t)
	r.vm("web.example")
	r.start("")
	r.ready()
	for _, verb := range [][]string{{"stop"}, {"kill"}, {"reset"}, {"start"}, {"rm", "--force"}} {
		got := r.trayctl(append([]string{"vm", verb[0], "web.example"}, verb[1:]...)...)
		require.Equal(t, 1, got.code, verb)
		require.Contains(t, got.stderr, "isn't run by trayd", verb)
	}
	got := r.trayctl("vm", "rm", "../../x")
	require.Contains(t, got.stderr, "no VM ../../x")
}

// TestSeedDrive: cloud-init's drive takes no other disc, whether the machine runs or not.
func TestSeedDrive(t *testing.T) {
	r := newRig(t)
	disc := r.disc("OTHER")
	r.start("")
	r.ready()
	r.must("vm", "create", "m", "--memory", "32M", "--disk", "1G", "--ssh-key", writeKey(r))
	for range 2 {
		got := r.trayctl("change", "m/seed", disc)
		require.Equal(t, 1, got.code)
		require.Contains(t, got.stderr, "for cloud-init's disc alone")
		r.must("vm", "start", "m")
	}
	r.must("eject", "m/seed", "--force")
	r.whole()
}
