//go:build integration || edge

package integration_test

import (
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/qemutest"
)

// TestQEMU shows that the QEMU that is said to be under test is the one that runs: in a
// machine of a test's, in one of trayd's own, and where a script calls it by its name. The
// report reads the version here.
func TestQEMU(t *testing.T) {
	want := qemutest.Version(t, qemutest.Binary())
	r := newRig(t)
	vm := r.vm("vm", qemutest.SATA.With("")...)
	qemutest.RequireTested(t, qemutest.Executable(t, vm.PID()))
	r.start("")
	r.ready()
	r.must("vm", "create", "own", "--memory", "32M", "--iso", r.disc("BOOT"), "--disk", "64M", "--network", "none", "--start")
	require.NotZero(t, r.qemus()["own"]) // which looks at it, here and in every other test
	r.must("vm", "kill", "own")

	for _, name := range []string{"qemu-system-x86_64", "qemu-img"} {
		path, err := exec.LookPath(name)
		require.NoError(t, err)
		require.Equal(t, want, qemutest.Version(t, path), "%s", path)
	}
	t.Logf("QEMU under test: %s", want)
}
