//go:build edge

package integration_test

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/qemutest"
)

// TestUnitHasVolumes: trayd in its sandbox, as its unit gives it, has every kind of
// volume, and nothing of the host besides.
func TestUnitHasVolumes(t *testing.T) {
	t.Setenv("TMPDIR", "/srv") // a unit's /tmp is its own
	r := newVolumeRig(t, "ONE", "TWO")
	require.NoError(t, os.Chmod(r.dir, 0o755))
	require.NoError(t, os.Symlink("/run/trayd/api.sock", r.socket()))
	r.extra = loopback + r.lvPool() + r.mountPools("INSIDE") + r.linear("linear", "LINEAR") + r.verity("installer", "INSTALLER")
	require.NoError(t, os.MkdirAll("/etc/trayd", 0o755))
	r.configure("/etc/trayd/trayd.toml", "/var/lib/trayd")
	t.Cleanup(func() {
		tool(t, "systemctl", "stop", "trayd.socket", "trayd.service")
		if t.Failed() {
			t.Log(tool(t, "journalctl", "--no-pager", "-o", "cat", "-u", "trayd.service"))
		}
		require.NoError(t, os.Remove("/etc/trayd/trayd.toml"))
	})
	_, guest := r.machine("vm", qemutest.SATA.With("")...)
	r.machine("vm2", qemutest.SATA.With("")...)
	tool(t, "systemctl", "start", "trayd.socket")
	r.up()
	pid := func() string { return tool(t, "systemctl", "show", "--value", "--property=MainPID", "trayd.service") }

	r.must("insert", "vm", r.lv("ONE"))
	r.holds("vm/cd0", "ONE", guest)
	r.active("ONE")
	r.must("insert", "vm2", r.lv("ONE"))
	r.must("change", "vm", r.lv("TWO"))
	r.holds("vm/cd0", "TWO", guest)
	r.active("ONE", "TWO")
	r.must("eject", "vm2")
	r.active("TWO")
	r.must("change", "vm", "dm:linear")
	r.shows("vm/cd0", "dm:linear", "LINEAR", guest)
	require.Equal(t, []string{"trayd-linear"}, r.mine())
	r.must("change", "vm", "loop:"+r.discAt("ONE"))
	r.shows("vm/cd0", "loop:"+r.discAt("ONE"), "ONE", guest)
	r.active()
	r.must("image", "add", "debian", r.disc("DEBIAN"), "--pool", "fast")
	r.must("change", "vm", "image:debian")
	require.Equal(t, "DEBIAN", guest.Volume())
	t.Log("the network is there for downloads, by name too")
	_, port, err := net.SplitHostPort(newSource(t, r.discs()).Listener.Addr().String())
	require.NoError(t, err)
	r.disc("WEB")
	r.must("image", "add", "web", "http://localhost:"+port+"/WEB.iso", "--pool", "fast")
	r.must("change", "vm", "image:web")
	require.Equal(t, "WEB", guest.Volume())
	require.Contains(t, r.fails(1, "image", "add", "none", "http://images.invalid/WEB.iso").Code, "source-dns")
	r.must("change", "vm", "image:stick/INSIDE.iso")
	require.Equal(t, "INSIDE", guest.Volume())
	require.Equal(t, []string{"stick"}, mounted(t, pid()))
	require.Empty(t, r.groupActive())

	t.Log("restarted: file systems are mounted in a namespace of its own, and again in the next")
	tool(t, "systemctl", "restart", "trayd.service")
	r.up()
	require.Equal(t, "INSIDE", guest.Volume())
	require.Eventually(t, func() bool { return strings.Join(mounted(t, pid()), " ") == "stick" }, soon, poll)
	r.ok()
	r.must("change", "vm", r.lv("ONE"))
	require.Empty(t, mounted(t, pid()))
	require.NotContains(t, tool(t, "losetup", "--all"), r.dir)
	r.must("image", "rm", "debian", "--pool", "fast")
	r.must("image", "rm", "web")

	t.Log("killed, with an outsider who holds the volume")
	end := hold(t, mapperPath(t, r.device("ONE")))
	require.Contains(t, r.fails(5, "eject", "vm").Detail, "sleep (pid ")
	tool(t, "systemctl", "kill", "--signal=KILL", "trayd.service")
	require.Eventually(t, func() bool { return r.trayctl("volumes").code == 0 }, soon, poll)
	r.active("ONE")
	end()
	require.Eventually(t, func() bool { return len(r.records()["vm/cd0"].Releasing) == 0 }, soon, poll)
	r.active()

	t.Log("a damaged volume: the kernel's message gets into the sandbox")
	r.testVerity(guest)

	t.Log("what is not a disc's is shut")
	group := filepath.Join("/sys/fs/cgroup", tool(t, "systemctl", "show", "--value", "--property=ControlGroup", "trayd.service"), "cgroup.procs")
	for _, device := range []string{"/dev/kmsg", "/dev/tty0", "/dev/mem", "/dev/snapshot", "/dev/vport0p1"} {
		if _, err := os.Stat(device); err != nil {
			continue // not on this host
		}
		out, err := exec.Command("sh", "-c", "echo $$ >"+group+" && exec 3<"+device).CombinedOutput()
		assert.Error(t, err, device)
		assert.Contains(t, string(out), "Operation not permitted", device)
	}
}
