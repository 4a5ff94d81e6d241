//go:build integration

package integration_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/agent"
	"github.com/trayd/trayd/internal/guest"
	"github.com/trayd/trayd/internal/qemutest"
)

// guestRig is a host with one real Linux guest, which mounts every disc that it sees.
type guestRig struct {
	*rig
	machine *guest.Machine
}

// newGuestRig boots a guest with the given drive. The kernel is fetched once, into
// $TRAYD_CACHE or .cache of the checkout.
func newGuestRig(t *testing.T, drive ...string) *guestRig {
	r := newRig(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute) // over a slow line
	defer cancel()
	kit, err := guest.Prepare(ctx, cacheDir(), os.Stderr)
	require.NoError(t, err)
	initramfs := filepath.Join(r.dir, "initramfs")
	require.NoError(t, kit.Initramfs(initramfs, filepath.Join(bin, "guestinit"), guest.CDModules))
	args := append(drive, "-qmp", "unix:"+filepath.Join(r.dir, "run/vm.qmp")+",server=on,wait=off")
	m, err := kit.Boot(qemutest.Binary(), initramfs, args, func(line string) { t.Log(line) })
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Kill()) })
	g := &guestRig{rig: r, machine: m}
	r.start("")
	r.ready()
	g.says(0, "guest: up, with 1 CD drives")
	return g
}

// says waits until the guest has said something since mark.
func (g *guestRig) says(mark int, text string) {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), 60*time.Second)
	defer cancel()
	require.NoError(g.t, g.machine.Expect(ctx, mark, text))
}

// reads has the guest read its disc again, past the page cache.
func (g *guestRig) reads(text string) {
	g.t.Helper()
	mark := g.machine.Mark()
	require.NoError(g.t, g.machine.Tell("read"))
	g.says(mark, "read again: "+text)
}

// TestGuestSees is the main promise with a real operating system: what trayd says is
// in the drive is what the guest reads.
func TestGuestSees(t *testing.T) {
	for bus, drive := range map[string][]string{
		"sata": {"-device", "ide-cd,id=cd0,bus=ide.0"},
		"scsi": {"-device", "virtio-scsi-pci,id=scsi0", "-device", "scsi-cd,id=cd0,bus=scsi0.0"},
	} {
		t.Run(bus, func(t *testing.T) {
			g := newGuestRig(t, drive...)
			one, two := g.disc("ONE"), g.disc("TWO")
			g.says(0, "sr0: empty")

			mark := g.machine.Mark()
			g.must("insert", "vm", one)
			g.says(mark, "disc ONE says: this is disc ONE")

			t.Log("the guest has it mounted, which locks the door: it is asked, and lets go")
			require.True(t, g.driveStatus("vm/cd0").Locked)
			mark = g.machine.Mark()
			g.must("change", "vm", two)
			g.says(mark, "the host asks for the disc")
			g.says(mark, "disc TWO says: this is disc TWO")

			t.Log("a broken disc never comes near it")
			require.NoError(t, os.WriteFile(filepath.Join(g.discs(), "page.iso"), []byte("<html>404</html>"), 0o644))
			require.Equal(t, 1, g.trayctl("change", "vm", "page.iso").code)
			g.reads("disc TWO")

			t.Log("trayd's death is nothing to the guest")
			g.kill()
			g.reads("disc TWO")
			g.start("")
			g.ready()
			require.Equal(t, "TWO", g.settled("vm/cd0").Medium.VolumeID)

			t.Log("by force, from under the mounted file system")
			mark = g.machine.Mark()
			g.must("change", "vm", one, "--force")
			g.says(mark, "disc ONE says: this is disc ONE")

			t.Log("the guest's own eject is followed to the end")
			mark = g.machine.Mark()
			require.NoError(t, g.machine.Tell("eject"))
			g.says(mark, "sr0: empty")
			require.Eventually(t, func() bool { return g.driveStatus("vm/cd0").State == agent.StateEmpty }, 10*time.Second, 100*time.Millisecond)
			require.Contains(t, g.must("state", "check"), "ok: ")

			g.must("insert", "vm", two)
			g.says(mark, "disc TWO says: this is disc TWO")
			mark = g.machine.Mark()
			g.must("eject", "vm")
			g.says(mark, "sr0: empty")
			g.reads("no disc")
		})
	}
}
