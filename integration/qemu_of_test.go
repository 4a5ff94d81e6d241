//go:build integration

package integration_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestQEMUOf: who names a QEMU that can't be had is told what is wrong with it, and a
// command gets the one that can.
func TestQEMUOf(t *testing.T) {
	cache := t.TempDir()
	program := func(parts ...string) string {
		path := filepath.Join(append([]string{cache}, parts...)...)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\necho \"E: there is no network\" >&2\nexit 100\n"), 0o755))
		return path
	}
	here := program("qemu", "bullseye", "usr", "bin", "qemu-system-x86_64") // as if it had been unpacked
	other := program("other")
	program("qemu", "trixie.new", "root", "usr", "bin", "qemu-system-x86_64") // somebody has stopped halfway
	apt := filepath.Dir(program("apt", "apt-get"))
	theirs := t.TempDir() // what the caller's environment names is the caller's
	qemuOf := func(args ...string) (stdout, stderr string, code int) {
		cmd := exec.Command("./qemu-of", args...)
		cmd.Env = append(os.Environ(), "TRAYD_CACHE="+cache, "PATH="+apt+":"+os.Getenv("PATH"), "work="+theirs)
		var out, errs strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &errs
		_ = cmd.Run() // its code says it
		return out.String(), errs.String(), cmd.ProcessState.ExitCode()
	}
	for _, c := range []struct {
		args []string
		says string
	}{
		{nil, "usage: qemu-of QEMU [COMMAND...]"},
		{[]string{"Debian 11"}, "Debian 11 is neither a path with a / in it nor the name of a Debian suite"},
		{[]string{cache + "/none"}, cache + "/none is no program"},
		{[]string{cache}, cache + " is no program"},
		{[]string{other}, "isn't called qemu-system-x86_64, as tests call it"},
		{[]string{"trixie"}, "give the path of a QEMU instead of trixie"},
		{[]string{"--into", cache + "/host"}, "usage: qemu-of --into DIR SUITE"},
		{[]string{"--into", cache + "/host", other}, "an emulated host takes the QEMU of a Debian suite, not a path"},
	} {
		stdout, stderr, code := qemuOf(c.args...)
		require.Equal(t, 1, code, "%v", c.args)
		require.Empty(t, stdout)
		require.Contains(t, stderr, "qemu-of: ")
		require.Contains(t, stderr, c.says)
	}
	require.DirExists(t, theirs)
	for _, name := range []string{"bullseye", here} {
		stdout, stderr, code := qemuOf(name)
		require.Zero(t, code, stderr)
		require.Equal(t, here+"\n", stdout)
		stdout, stderr, code = qemuOf(name, "sh", "-c", "echo $QEMU; command -v qemu-system-x86_64; exit 7")
		require.Equal(t, 7, code, stderr)
		require.Equal(t, here+"\n"+here+"\n", stdout)
	}
}
