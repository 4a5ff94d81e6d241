package qemutest

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// program is QEMU's name.
const program = "qemu-system-x86_64"

// Binary is the QEMU under test.
func Binary() string { return cmp.Or(os.Getenv("QEMU"), program) }

// Image is the qemu-img that belongs to Binary: the one beside it, if there is one.
func Image() string {
	const name = "qemu-img"
	if dir := filepath.Dir(Binary()); dir != "." {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			return filepath.Join(dir, name)
		}
	}
	return name
}

// Version is the version that a program of QEMU's prints: "7.2.22".
func Version(t testing.TB, program string) string {
	t.Helper()
	out, err := exec.Command(program, "--version").Output()
	require.NoError(t, err)
	_, rest, found := strings.Cut(string(out), " version ")
	require.True(t, found, "%s --version: %s", program, out)
	return strings.FieldsFunc(rest, func(r rune) bool { return !strings.ContainsRune("0123456789.", r) })[0]
}

// Executable is the file that a process executes.
func Executable(t testing.TB, pid int) string {
	t.Helper()
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	require.NoError(t, err)
	return exe
}

// RequireTested demands that a process, of which this is the Executable, is the QEMU under
// test and no other. Call it where a machine was started by somebody else than Start.
func RequireTested(t testing.TB, exe string) {
	t.Helper()
	path, err := exec.LookPath(Binary())
	require.NoError(t, err)
	path, err = filepath.EvalSymlinks(path)
	require.NoError(t, err)
	// What is called may be a script in bin for a program in libexec.
	up := func(path string) string { return filepath.Dir(filepath.Dir(path)) }
	require.Equal(t, up(path), up(exe), "this isn't the QEMU under test")
}
