//go:build edge

package integration_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/internal/agent"
	"github.com/trayd/trayd/internal/edge"
	"github.com/trayd/trayd/internal/qemutest"
	"github.com/trayd/trayd/internal/wire"
)

// loopback permits the web server of a test.
const loopback = "[library]\nattempts = 1\nprivate_targets = [\"127.0.0.0/8\"]\n"

// extent is of the group, in bytes.
const extent = 4 << 20

// image is what the API says of an image.
func (r *volumeRig) image(name string) wire.Image {
	r.t.Helper()
	var i wire.Image
	require.NoError(r.t, r.get("/v1/pools/-/images/"+name, &i)) // a process takes long here
	return i
}

// becomes waits for a state.
func (r *volumeRig) becomes(name string, s wire.ImageState) wire.Image {
	r.t.Helper()
	var i wire.Image
	for end := time.Now().Add(2 * soon); i.State != s; time.Sleep(poll) {
		i = r.image(name)
		require.False(r.t, time.Now().After(end), "%s is %s: %+v %+v", name, i.State, i.Progress, i.Failure)
	}
	return i
}

// reads demands that an image is the content of a file, as trayd reads it.
func (r *volumeRig) reads(name, file string) {
	r.t.Helper()
	i := r.image(name)
	resp, err := r.api.Get("http://trayd/v1/pools/" + i.Pool + "/images/" + name + "/content")
	require.NoError(r.t, err)
	defer resp.Body.Close()
	require.Equal(r.t, http.StatusOK, resp.StatusCode)
	var got bytes.Buffer
	_, err = got.ReadFrom(resp.Body)
	require.NoError(r.t, err)
	require.True(r.t, bytes.Equal([]byte(read(r.t, file)), got.Bytes()), "the content of %s is another", name)
}

// lvs is one column of a logical volume of the group.
func (r *volumeRig) lvs(column, name string) string {
	r.t.Helper()
	return tool(r.t, "lvs", "--noheadings", "--units", "b", "--nosuffix", "--options", column, r.group+"/"+name)
}

// flip changes a bit of a file or a device, past whoever has it in a cache.
func flip(t testing.TB, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	defer f.Close()
	b := make([]byte, 1)
	_, err = f.ReadAt(b, at)
	require.NoError(t, err)
	b[0] ^= 1
	_, err = f.WriteAt(b, at)
	require.NoError(t, err)
	require.NoError(t, f.Sync())
	dropCaches(t)
}

func dropCaches(t testing.TB) {
	t.Helper()
	require.NoError(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
}

// flipLV does it to a logical volume, active or not, on the disk that it lies on.
func (r *volumeRig) flipLV(name string, at int64) {
	r.t.Helper()
	extents := strings.TrimPrefix(r.lvs("seg_pe_ranges", name), edge.Disks[0]+":")
	first, _, ok := strings.Cut(extents, "-")
	require.True(r.t, ok, extents)
	start := tool(r.t, "pvs", "--noheadings", "--units", "b", "--nosuffix", "--options", "pe_start", edge.Disks[0])
	flip(r.t, edge.Disks[0], atoi(r.t, start)+atoi(r.t, first)*extent+at)
}

// newImagePool is a host with a pool in the volume group, a web server and a disc on it.
func newImagePool(t *testing.T) (r *volumeRig, web *source, file string) {
	r = newVolumeRig(t)
	r.extra = loopback + r.lvPool()
	return r, newSource(t, r.discs()), largeDisc(t, r.discs(), "DEBIAN", 4<<20+2048)
}

// TestVolumeImageGoesOn: a download into a volume group that broke off, or in whose middle
// trayd was killed or stopped, goes on in the same volume.
func TestVolumeImageGoesOn(t *testing.T) {
	r, web, file := newImagePool(t)
	r.start("")
	r.up()
	p := r.fails(1, "image", "add", "debian", web.URL+"/cut/DEBIAN.iso")
	require.Equal(t, "source-truncated", p.Code)
	require.Positive(t, r.image("debian").Failure.Kept)
	require.Empty(t, r.groupActive())
	uuid := r.lvs("lv_uuid,lv_tags", "debian")
	require.Contains(t, uuid, "trayd.incomplete.")
	r.must("image", "retry", "debian")
	require.Len(t, web.asked(), 1, "it did not go on where it was")
	require.Empty(t, r.groupActive())
	want, _, _ := strings.Cut(uuid, " ")
	require.Equal(t, want, r.lvs("lv_uuid,lv_tags", "debian"), "another volume, or one that isn't finished")
	st, err := os.Stat(file)
	require.NoError(t, err)
	require.Equal(t, (st.Size()+extent-1)/extent*extent, atoi(t, r.lvs("lv_size", "debian")))
	r.reads("debian", file)
	require.Empty(t, r.groupActive())
	r.must("image", "rm", "debian")
	require.Empty(t, r.images())

	t.Log("killed in the middle, then stopped in the middle")
	r.must("image", "add", "debian", web.URL+"/slow/DEBIAN.iso", "--detach")
	require.Eventually(t, func() bool { return len(r.groupActive()) == 1 && r.image("debian").Progress != nil }, soon, poll)
	uuid = r.lvs("lv_uuid", "debian")
	r.kill()
	r.start("")
	r.up()
	require.Eventually(t, func() bool {
		p := r.image("debian").Progress
		return p != nil && p.Bytes > 1<<20
	}, soon, poll)
	r.stop()
	require.Empty(t, r.groupActive())
	web.asked()
	web.hurry()
	r.start("")
	r.up()
	r.becomes("debian", wire.ImageReady)
	require.Len(t, web.asked(), 1, "it did not go on where it was")
	require.Equal(t, uuid, r.lvs("lv_uuid", "debian"))
	require.Empty(t, r.groupActive())
	r.reads("debian", file)
	r.must("image", "rm", "debian")
	require.Empty(t, r.images())
	r.ok()
}

// TestVolumeImageNames: two names of one content are one volume. A byte of it that is
// changed behind trayd's back is found, and it is in no drive any more.
func TestVolumeImageNames(t *testing.T) {
	r, web, file := newImagePool(t)
	_, guest := r.machine("vm", qemutest.SATA.With("")...)
	r.start("")
	r.up()
	r.must("image", "add", "debian", web.URL+"/DEBIAN.iso")
	r.must("image", "add", "same", web.URL+"/DEBIAN.iso")
	require.Equal(t, "debian", r.images())
	require.Equal(t, r.image("debian").Place, r.image("same").Place)
	r.must("insert", "vm", "image:same")
	r.shows("vm/cd0", "image:same", "DEBIAN", guest)
	st, err := os.Stat(file)
	require.NoError(t, err)
	require.Equal(t, st.Size(), guest.Size())
	require.Equal(t, string(agent.ImageInUse), r.fails(1, "image", "rm", "same").Code)
	r.must("image", "verify", "debian") // while a drive has it
	require.Equal(t, "DEBIAN", guest.Volume())
	r.must("image", "rm", "debian")
	require.Equal(t, "debian", r.images(), "the volume keeps its name, for the other name")
	require.Equal(t, "DEBIAN", guest.Volume())
	r.must("eject", "vm")
	require.Empty(t, r.groupActive())

	t.Log("a byte is changed behind our back")
	r.flipLV("debian", 3<<20)
	p := r.fails(1, "image", "verify", "same")
	require.Equal(t, string(wire.ImageDamaged), p.Code)
	require.Contains(t, p.Next, "image retry same")
	require.Equal(t, string(wire.ImageNotReady), r.fails(1, "insert", "vm", "image:same").Code)
	require.Empty(t, r.groupActive())
	r.must("image", "retry", "same")
	r.reads("same", file)
	r.must("insert", "vm", "image:same")
	r.shows("vm/cd0", "image:same", "DEBIAN", guest)
	r.must("eject", "vm")
	r.must("image", "rm", "same")
	require.Empty(t, r.images())
	require.Empty(t, r.groupActive())
	r.ok()
}

// atoi is a number of bytes.
func atoi(t testing.TB, s string) (n int64) {
	t.Helper()
	require.NoError(t, json.Unmarshal([]byte(strings.TrimSpace(s)), &n))
	return n
}

// dirPool is a pool in a directory.
func (r *volumeRig) dirPool(name string) string {
	return "[[pool]]\nname = \"" + name + "\"\ntype = \"dir\"\npath = \"" + filepath.Join(r.dir, name) + "\"\n"
}

// bare demands that nothing of an image is in the kernel.
func (r *volumeRig) bare() {
	r.t.Helper()
	require.Empty(r.t, r.mine())
	require.Empty(r.t, r.groupActive())
	require.NotContains(r.t, tool(r.t, "losetup", "--all"), r.dir)
}

// TestVerityImages: an image that is added with integrity = "verity" is checked on each
// read, in a directory and in a volume group. A changed byte is an error to the guest.
func TestVerityImages(t *testing.T) {
	for _, pool := range []string{"local", "fast"} {
		t.Run(pool, func(t *testing.T) {
			r := newVolumeRig(t)
			r.extra = loopback
			if pool == "fast" {
				r.extra += r.lvPool()
			} else {
				r.extra += r.dirPool(pool)
			}
			r.extra += "integrity = \"verity\"\n"
			web := newSource(t, r.discs())
			file := largeDisc(t, r.discs(), "CHECKED", 1<<20+2048) // no whole blocks of 4096
			_, guest := r.machine("vm", qemutest.SATA.With("")...)
			r.start("")
			r.up()
			r.must("image", "add", "checked", web.URL+"/CHECKED.iso")
			i := r.image("checked")
			require.Equal(t, "verity", i.Integrity)
			require.Len(t, i.RootHash, 64)
			r.bare()

			for _, point := range []string{"volume-activated", released} {
				t.Log("killed at", point)
				r.stop()
				r.start(point)
				r.up()
				if point == released {
					r.must("insert", "vm", "image:checked")
					require.Equal(t, 3, r.trayctl("eject", "vm").code)
				} else {
					require.Equal(t, 3, r.trayctl("insert", "vm", "image:checked").code)
				}
				r.died()
				r.start("")
				r.up()
				r.settled("vm/cd0")
				require.Eventually(t, func() bool { return len(r.mine())+len(r.groupActive()) == 0 }, soon, poll, "%v %v", r.mine(), r.groupActive())
				r.bare()
			}

			events := r.events()
			r.must("insert", "vm", "image:checked")
			r.shows("vm/cd0", "image:checked", "CHECKED", guest)
			st, err := os.Stat(file)
			require.NoError(t, err)
			require.Equal(t, st.Size(), guest.Size())
			require.Len(t, r.mine(), 1)
			require.Contains(t, tool(t, "dmsetup", "table", r.mine()[0]), i.RootHash)

			t.Log("damaged while a drive has it")
			const at = 16*2048 + 100 // in the volume descriptor
			if pool == "fast" {
				r.flipLV("checked", at)
			} else {
				require.NoError(t, os.Chmod(i.Place, 0o644))
				flip(t, i.Place, at)
			}
			said := guest.Volume()
			for end := time.Now().Add(soon); !strings.Contains(said, "sense key"); said = guest.Volume() {
				require.True(t, time.Now().Before(end), "the guest reads %s", said)
				dropCaches(t) // a page that somebody is just reading stays, and is right
			}
			require.NotEqual(t, qemutest.NoMedium, said)
			e := r.next(events, agent.EventVolumeCorrupt)
			t.Log(e.Detail)
			require.Equal(t, "vm/cd0", e.VM+"/"+e.Drive)
			r.must("eject", "vm")
			r.bare()
			r.fails(1, "insert", "vm", "image:checked")
			r.bare()
			if pool == "local" { // lvm2 takes its time; TestVolumeImageNames has it
				require.Equal(t, string(wire.ImageDamaged), r.fails(1, "image", "verify", "checked").Code)
				r.must("image", "retry", "checked")
				r.must("insert", "vm", "image:checked")
				r.shows("vm/cd0", "image:checked", "CHECKED", guest)
				require.Equal(t, string(agent.ImageInUse), r.fails(1, "image", "rm", "checked").Code)
				r.must("eject", "vm")
			}
			r.must("image", "rm", "checked")
			r.bare()
			if pool == "fast" {
				require.Empty(t, r.images())
			} else {
				left, err := filepath.Glob(filepath.Join(r.dir, pool, "sha256", "*"))
				require.NoError(t, err)
				require.Empty(t, left)
			}
			r.ok()
		})
	}
}

// TestStagedImages: what is used of a slow pool is copied while a drive has it, and comes
// from the copy the next time, without a mount.
func TestStagedImages(t *testing.T) {
	r := newVolumeRig(t)
	r.extra = r.mountPools("ONE", "TWO")
	r.extra = strings.Replace(r.extra, "fstype = \"ext4\"", "fstype = \"ext4\"\nstage = \"local\"", 1) + r.dirPool("local")
	_, guest := r.machine("vm", qemutest.SATA.With("")...)
	r.start("")
	r.up()
	r.must("insert", "vm", "image:stick/ONE.iso")
	r.shows("vm/cd0", "image:stick/ONE.iso", "ONE", guest)
	require.Equal(t, []string{"stick"}, mounted(t, "self"))
	i := r.becomes("stick.ONE.iso", wire.ImageReady)
	require.Equal(t, "local", i.Pool)
	require.Equal(t, "image:stick/ONE.iso", i.Source)
	require.True(t, read(t, filepath.Join(r.dir, "from", "ONE.iso")) == read(t, i.Place), "the copy is another")
	require.Equal(t, []string{"stick"}, mounted(t, "self"), "the drive still has the first one")
	r.must("eject", "vm")
	require.Empty(t, mounted(t, "self"))

	t.Log("from the copy")
	r.must("insert", "vm", "image:stick/ONE.iso")
	r.shows("vm/cd0", "image:stick/ONE.iso", "ONE", guest)
	require.Empty(t, mounted(t, "self"))
	require.Equal(t, string(agent.ImageInUse), r.fails(1, "image", "rm", "stick.ONE.iso").Code)
	r.kill()
	r.start("")
	r.up()
	r.shows("vm/cd0", "image:stick/ONE.iso", "ONE", guest)
	r.must("eject", "vm")

	t.Log("the source is changed: that is seen where the pool is mounted")
	stick := filepath.Join(r.dir, "stick.img")
	at := filepath.Join(r.dir, "mnt")
	require.NoError(t, os.Mkdir(at, 0o755))
	tool(t, "mount", "-o", "loop", stick, at)
	require.NoError(t, os.WriteFile(filepath.Join(at, "ONE.iso"), []byte(read(t, r.disc("NEW"))), 0o644))
	require.NoError(t, unix.Unmount(at, 0))
	_, guest2 := r.machine("vm2", qemutest.SATA.With("")...)
	require.Eventually(t, func() bool { return r.trayctl("drives", "vm2").code == 0 }, soon, poll)
	r.must("insert", "vm2", "image:stick/TWO.iso") // it is mounted now
	require.Equal(t, "TWO", guest2.Volume())
	r.must("insert", "vm", "image:stick/ONE.iso")
	r.shows("vm/cd0", "image:stick/ONE.iso", "NEW", guest)
	require.Eventually(t, func() bool {
		i := r.image("stick.ONE.iso")
		return i.State == wire.ImageReady && i.VolumeID == "NEW"
	}, soon, poll, "the copy isn't renewed")
	r.becomes("stick.TWO.iso", wire.ImageReady)
	r.must("eject", "vm")
	r.must("eject", "vm2")
	require.Empty(t, mounted(t, "self"))
	r.must("insert", "vm", "image:stick/ONE.iso")
	r.shows("vm/cd0", "image:stick/ONE.iso", "NEW", guest)
	require.Empty(t, mounted(t, "self"))
	r.must("eject", "vm")

	t.Log("not staged any more: the copies are of no use")
	r.stop()
	r.extra = strings.Replace(r.extra, "stage = \"local\"\n", "", 1)
	r.start("")
	r.up()
	require.Contains(t, r.must("image", "gc"), "image:local/stick.ONE.iso")
	files, err := filepath.Glob(filepath.Join(r.dir, "local", "sha256", "*"))
	require.NoError(t, err)
	require.Empty(t, files)
	r.must("insert", "vm", "image:stick/ONE.iso")
	require.Equal(t, []string{"stick"}, mounted(t, "self"))
	r.must("eject", "vm")
	r.bare()
	r.ok()
}
