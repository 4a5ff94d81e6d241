//go:build edge

package integration_test

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/qemutest"
)

// TestUnitTells: trayd in its sandbox writes the audit log, also after it was rotated as
// logrotate does, and runs hooks that have nothing of what trayd may.
func TestUnitTells(t *testing.T) {
	t.Setenv("TMPDIR", "/srv") // a unit's /tmp is its own
	r := newVolumeRig(t, "ONE")
	require.NoError(t, os.Chmod(r.dir, 0o755))
	require.NoError(t, os.Symlink("/run/trayd/api.sock", r.socket()))
	r.configure("/etc/trayd/trayd.toml", "/var/lib/trayd")
	const hooks, log = "/etc/trayd/hooks.d", "/var/log/trayd/audit.log"
	require.NoError(t, os.MkdirAll(hooks, 0o755))
	require.NoError(t, os.WriteFile(hooks+"/look", []byte(`#!/bin/sh
grep CapEff /proc/self/status >>/var/lib/trayd/hook.said
id -un >>/var/lib/trayd/hook.said
cat >>/var/lib/trayd/hook.said
touch /etc/trayd/hooks.d/more 2>>/var/lib/trayd/hook.said
`), 0o755))
	require.NoError(t, os.Chmod(hooks+"/look", 0o755))
	t.Cleanup(func() {
		tool(t, "systemctl", "stop", "trayd.socket", "trayd.service")
		if t.Failed() {
			t.Log(tool(t, "journalctl", "--no-pager", "-o", "cat", "-u", "trayd.service"))
		}
		require.NoError(t, os.RemoveAll(hooks))
		require.NoError(t, os.RemoveAll("/var/log/trayd"))
		require.NoError(t, os.Remove("/var/lib/trayd/hook.said"))
		require.NoError(t, os.Remove("/etc/trayd/trayd.toml"))
	})
	require.NoError(t, os.RemoveAll("/var/log/trayd")) // of the tests before
	r.machine("vm", qemutest.SATA.With("")...)
	tool(t, "systemctl", "start", "trayd.socket")
	r.up()
	disc := r.disc("PLAIN")
	r.must("insert", "vm", disc)
	require.Equal(t, []string{"insert done"}, changes(t, log))
	require.Equal(t, "640 trayd trayd", tool(t, "stat", "-c", "%a %U %G", log))
	require.Equal(t, "750 trayd trayd", tool(t, "stat", "-c", "%a %U %G", "/var/log/trayd"))

	tool(t, "sh", "-c", "mv "+log+" "+log+".1 && install -m 640 -o trayd -g trayd /dev/null "+log)
	r.must("eject", "vm")
	r.fails(1, "insert", "vm", "/etc/passwd")
	require.Equal(t, []string{"eject done", "insert failed"}, changes(t, log))
	require.Equal(t, []string{"insert done"}, changes(t, log+".1"))
	require.Contains(t, tool(t, "journalctl", "--no-pager", "-o", "cat", "-u", "trayd.service", "AUDIT=true"), "failed")

	said := func() string {
		b, _ := os.ReadFile("/var/lib/trayd/hook.said")
		return string(b)
	}
	require.Eventually(t, func() bool { return strings.Contains(said(), `"type":"ejected"`) }, soon, poll)
	require.Contains(t, said(), "CapEff:\t0000000000000000\ntrayd\n")
	require.Contains(t, said(), "touch")
	require.NotContains(t, said(), "CapEff:\t00000000002")
	require.NoFileExists(t, hooks+"/more")
}

// changes are the verbs and outcomes in an audit log.
func changes(t *testing.T, file string) (all []string) {
	t.Helper()
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	for text := range strings.Lines(string(b)) {
		var l struct{ Verb, Outcome, By string }
		require.NoError(t, json.Unmarshal([]byte(text), &l))
		require.Contains(t, l.By, "root")
		all = append(all, l.Verb+" "+l.Outcome)
	}
	return all
}
