//go:build edge

package integration_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/edge"
	"github.com/trayd/trayd/internal/qemutest"
)

// These run inside the edge host and show that the ground is firm: what tests of
// volumes stand on works there.

// tool runs a program that has to succeed.
func tool(t testing.TB, args ...string) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	require.NoError(t, cmd.Run(), "%s: %s", strings.Join(args, " "), &stderr)
	return strings.TrimSpace(stdout.String())
}

func TestVolumes(t *testing.T) {
	disk := edge.Disks[1]
	tool(t, "pvcreate", disk)
	tool(t, "vgcreate", "ground", disk)
	t.Cleanup(func() { tool(t, "vgremove", "--yes", "ground"); tool(t, "pvremove", disk) })

	tool(t, "lvcreate", "--yes", "--size", "8m", "--name", "plain", "ground")
	require.FileExists(t, "/dev/ground/plain", "udev makes the name")
	tool(t, "lvchange", "-an", "ground/plain")
	require.NoFileExists(t, "/dev/ground/plain")
	tool(t, "lvchange", "-ay", "ground/plain")
	require.Contains(t, tool(t, "lvs", "--reportformat", "json", "ground"), `"lv_name":"plain"`)

	tool(t, "lvcreate", "--yes", "--type", "thin-pool", "--size", "64m", "--name", "pool", "ground")
	tool(t, "lvcreate", "--yes", "--thin", "--virtualsize", "1g", "--name", "thin", "ground/pool")
	tool(t, "lvcreate", "--yes", "--snapshot", "--setactivationskip", "n", "--name", "snap", "ground/thin")
	require.FileExists(t, "/dev/ground/snap")
}

func TestMapper(t *testing.T) {
	dir := t.TempDir()
	disc := qemutest.Disc(t, dir, "GROUND")
	loop := tool(t, "losetup", "--find", "--show", "--read-only", disc)
	t.Cleanup(func() { tool(t, "losetup", "--detach", loop) })
	sectors := tool(t, "blockdev", "--getsz", loop)
	tool(t, "dmsetup", "create", "ground", "--readonly", "--table", "0 "+sectors+" linear "+loop+" 0")
	require.Equal(t, "GROUND", tool(t, "blkid", "-o", "value", "-s", "LABEL", "/dev/mapper/ground"))
	mnt := t.TempDir()
	tool(t, "mount", "-t", "iso9660", "-o", "ro", "/dev/mapper/ground", mnt)
	entries, err := os.ReadDir(mnt)
	require.NoError(t, err)
	require.Len(t, entries, 1)
	tool(t, "umount", mnt)
	tool(t, "dmsetup", "remove", "ground")

	hashes, root := filepath.Join(dir, "hashes"), filepath.Join(dir, "root")
	tool(t, "veritysetup", "format", "--root-hash-file", root, loop, hashes)
	tool(t, "veritysetup", "open", "--root-hash-file", root, loop, "ground", hashes)
	require.Equal(t, "GROUND", tool(t, "blkid", "-o", "value", "-s", "LABEL", "/dev/mapper/ground"))
	tool(t, "veritysetup", "close", "ground")
	for _, target := range []string{"flakey", "log-writes", "snapshot", "delay"} {
		tool(t, "modprobe", "dm-"+target)
		require.Contains(t, tool(t, "dmsetup", "targets"), target)
	}
}

func TestNestedMachine(t *testing.T) {
	dir := t.TempDir()
	vm := qemutest.Start(t, dir, "vm", qemutest.Legacy.With(qemutest.Disc(t, dir, "NESTED"))...)
	require.Equal(t, "NESTED", vm.Guest(t).Volume())
}
