package qemutest

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestTested shows that what tests run is the QEMU that they are told to, by its own word:
// machines, and programs that are looked for in PATH, as trayd and scripts do. The report
// reads the versions here.
func TestTested(t *testing.T) {
	want := Version(t, Binary())
	vm := Start(t, t.TempDir(), "vm", "-M", "none")
	v := vm.Dial(t).Version().QEMU
	require.Equal(t, want, fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro))
	RequireTested(t, Executable(t, vm.PID()))
	require.Equal(t, want, Version(t, Image()))

	t.Log("by name")
	for _, name := range []string{program, "qemu-img", "qemu-io"} {
		require.Equal(t, want, Version(t, name), "%s of PATH", name)
	}
	t.Logf("QEMU under test: %s", want)

	t.Log("another program is none")
	fails := &failing{TB: t}
	func() {
		defer func() { _ = recover() }()
		RequireTested(fails, "/elsewhere/bin/another")
	}()
	require.True(t, fails.failed)
}

// failing notes that it has failed, in place of a test that would.
type failing struct {
	testing.TB
	failed bool
}

func (f *failing) Errorf(string, ...any) { f.failed = true }
func (f *failing) FailNow()              { panic("failed") }
func (f *failing) Helper()               {}
