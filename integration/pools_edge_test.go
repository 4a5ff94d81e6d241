//go:build edge

package integration_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/agent"
	"github.com/trayd/trayd/internal/qemutest"
)

// lvPool is a pool in the volume group of these tests.
func (r *volumeRig) lvPool() string {
	return fmt.Sprintf("[[pool]]\nname = \"fast\"\ntype = \"lvm\"\nvg = %q\n", r.group)
}

// images are the names of the logical volumes that are images: the rigs' have hyphens.
func (r *volumeRig) images() string {
	r.t.Helper()
	var names []string
	for _, line := range strings.Fields(tool(r.t, "lvs", "--noheadings", "--options", "lv_name", r.group)) {
		if !strings.Contains(line, "-") {
			names = append(names, line)
		}
	}
	return strings.Join(names, " ")
}

// TestVolumePool: images are uploaded into a volume group, used and removed.
func TestVolumePool(t *testing.T) {
	r := newVolumeRig(t, "ONE")
	r.extra = r.lvPool()
	file := r.disc("DEBIAN")
	st, err := os.Stat(file)
	require.NoError(t, err)
	_, guest := r.machine("vm", qemutest.SATA.With("")...)
	r.start("")
	r.up()

	t.Log("add")
	r.must("image", "add", "debian", file, "--pool", "fast")
	require.Equal(t, "debian", r.images())
	r.active()
	require.Contains(t, r.must("image", "ls"), "DEBIAN")
	require.Empty(t, tool(t, "lvs", "--noheadings", "--options", "lv_tags", r.group+"/debian"))
	p := r.fails(1, "image", "add", "debian", file, "--pool", "fast")
	require.Equal(t, string(agent.ImageExists), p.Code)

	t.Log("use: the guest sees the image's size, and not the volume's")
	r.must("insert", "vm", "image:debian")
	r.shows("vm/cd0", "image:debian", "DEBIAN", guest)
	require.Equal(t, (st.Size()+2047)/2048*2048, guest.Size())
	require.Equal(t, []string{strings.ReplaceAll(r.group, "-", "--") + "-debian"}, r.groupActive())
	p = r.fails(1, "image", "rm", "debian", "--pool", "fast")
	require.Equal(t, string(agent.ImageInUse), p.Code)
	require.Contains(t, p.Detail, "vm/cd0")
	r.must("change", "vm", "pdiv:p/fast/i/"+r.prefix+"ONE")
	require.Equal(t, "ONE", guest.Volume())
	r.active("ONE")
	r.must("change", "vm", "image:fast/debian")
	require.Equal(t, "DEBIAN", guest.Volume())
	r.must("eject", "vm")
	r.active()
	require.Empty(t, r.groupActive())

	t.Log("refused, and nothing is left")
	junk := filepath.Join(r.dir, "junk")
	require.NoError(t, os.WriteFile(junk, make([]byte, 1<<20), 0o600))
	require.Equal(t, string(agent.NotADisc), r.fails(1, "image", "add", "junk", junk, "--pool", "fast").Code)
	big := filepath.Join(r.dir, "big")
	require.NoError(t, exec.Command("cp", file, big).Run())
	require.NoError(t, os.Truncate(big, 2<<30))
	require.Equal(t, string(agent.NoSpace), r.fails(1, "image", "add", "big", big, "--pool", "fast").Code)
	require.Equal(t, string(agent.NoSuchPool), r.fails(1, "image", "add", "x", file, "--pool", "slow").Code)
	require.Equal(t, "debian", r.images())
	require.Empty(t, r.groupActive())

	t.Log("killed in the middle")
	require.NoError(t, os.Truncate(big, 200<<20))
	cmd := r.command("image", "add", "big", big, "--pool", "fast")
	require.NoError(t, cmd.Start())
	require.Eventually(t, func() bool { return len(r.groupActive()) == 1 }, soon, poll, "it isn't being written")
	r.kill()
	require.Error(t, cmd.Wait())
	require.Equal(t, "big debian", r.images())
	r.start("")
	r.up()
	require.Eventually(t, func() bool { return r.images() == "debian" }, soon, poll, "what was left is still there")
	require.Empty(t, r.groupActive())
	require.NotContains(t, r.must("image", "ls"), "big")
	r.must("insert", "vm", "image:debian")
	require.Equal(t, "DEBIAN", guest.Volume())
	r.must("eject", "vm")
	r.must("image", "rm", "debian", "--pool", "fast")
	require.Empty(t, r.images())
	r.ok()
}

// groupActive are the active volumes of the group, whoever's.
func (r *volumeRig) groupActive() []string {
	r.t.Helper()
	var names []string
	for _, name := range mapped(r.t) {
		if strings.HasPrefix(name, strings.ReplaceAll(r.group, "-", "--")+"-") {
			names = append(names, name)
		}
	}
	return names
}

// mountPools are two pools on file systems in files: ext4 with discs, and a disc.
func (r *volumeRig) mountPools(discs ...string) string {
	t := r.t
	t.Helper()
	stick := filepath.Join(r.dir, "stick.img")
	require.NoError(t, os.WriteFile(stick, nil, 0o600))
	require.NoError(t, os.Truncate(stick, 16<<20))
	from := filepath.Join(r.dir, "from")
	require.NoError(t, os.MkdirAll(filepath.Join(from, "images/group"), 0o755))
	for _, name := range discs {
		tool(t, "cp", r.disc(name), filepath.Join(from, name+".iso"))
		tool(t, "cp", r.disc(name), filepath.Join(from, "images/group", name))
	}
	tool(t, "mkfs.ext4", "-q", "-L", "STICK", "-d", from, stick)
	return fmt.Sprintf("[[pool]]\nname = \"stick\"\ntype = \"mount\"\nsource = %q\nfstype = \"ext4\"\n[[pool]]\nname = \"disc\"\ntype = \"mount\"\nsource = %q\n",
		stick, r.disc("OUTER"))
}

// mounted are the pools that a process sees mounted.
func mounted(t testing.TB, pid string) []string {
	t.Helper()
	var names []string
	for _, line := range strings.Split(read(t, "/proc/"+pid+"/mounts"), "\n") {
		if f := strings.Fields(line); len(f) > 3 && strings.HasPrefix(f[1], "/run/trayd/mounts/") {
			require.Contains(t, f[3], "ro,nosuid,nodev,noexec")
			names = append(names, filepath.Base(f[1]))
		}
	}
	return names
}

// TestMountPool: file systems are mounted exactly while something in them is used.
func TestMountPool(t *testing.T) {
	r := newVolumeRig(t)
	r.extra = r.mountPools("ONE", "TWO")
	_, guest := r.machine("vm1", qemutest.SATA.With("")...)
	_, guest2 := r.machine("vm2", qemutest.SATA.With("")...)
	r.start("")
	r.up()
	require.Empty(t, mounted(t, "self"))
	r.must("insert", "vm1", "image:stick/ONE.iso")
	r.shows("vm1/cd0", "image:stick/ONE.iso", "ONE", guest)
	require.Equal(t, []string{"stick"}, mounted(t, "self"))
	r.must("insert", "vm2", "pdiv:any/stick/group/TWO")
	require.Equal(t, "TWO", guest2.Volume())
	r.must("eject", "vm1")
	require.Equal(t, []string{"stick"}, mounted(t, "self"))
	r.kill()
	r.start("")
	r.up()
	require.Equal(t, "TWO", guest2.Volume())
	require.Equal(t, []string{"stick"}, mounted(t, "self"))
	r.must("change", "vm2", "image:disc/readme.txt", "--no-validate")
	require.Equal(t, []string{"disc"}, mounted(t, "self"))
	require.Equal(t, string(agent.NoSuchVolume), r.fails(1, "change", "vm2", "image:stick/nope.iso").Code)
	require.Equal(t, []string{"disc"}, mounted(t, "self"))
	r.must("eject", "vm2")
	require.Empty(t, mounted(t, "self"))
	require.NotContains(t, tool(t, "losetup", "--all"), r.dir, "loop devices beneath them")
	r.ok()
}
