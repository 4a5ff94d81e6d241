//go:build edge

package integration_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/blockdev/volume"
	"github.com/trayd/trayd/internal/agent"
	"github.com/trayd/trayd/internal/edge"
	"github.com/trayd/trayd/internal/qemutest"
)

// What trayd does by itself takes a moment, also where everything is emulated.
const (
	soon = 10 * time.Second
	poll = 50 * time.Millisecond
)

// volumeRig is a rig whose discs are on volumes. Each has a prefix of its own for the
// names of its logical volumes, so that two can be at work at once.
type volumeRig struct {
	*rig
	group  string // the volume group
	prefix string
	api    *http.Client
}

// newVolumeRig has a logical volume, inactive, for each disc.
func newVolumeRig(t *testing.T, discs ...string) *volumeRig {
	return newVolumeRigNamed(t, "t-", discs...)
}

func newVolumeRigNamed(t *testing.T, prefix string, discs ...string) *volumeRig {
	r := &volumeRig{rig: newRig(t), group: sharedGroup(t), prefix: prefix}
	r.limit = "10s" // for two emulated machines in one that is emulated, too
	r.api = &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", r.socket())
		},
	}}
	t.Cleanup(func() {
		r.kill()
		for _, name := range mounted(t, "self") {
			tool(t, "umount", "/run/trayd/mounts/"+name)
		}
		for _, name := range r.mine() {
			_ = exec.Command("dmsetup", "remove", "--retry", name).Run() // by a tool of the killed trayd, maybe
		}
	})
	for _, name := range discs {
		r.volume(name)
	}
	return r
}

// theGroup is the volume group of all tests: lvm2 needs half a second for each of its
// commands here. It goes with the host. Hyphens are double in device-mapper.
const theGroup = "edge-test"

var makeTheGroup sync.Once

func sharedGroup(t testing.TB) string {
	makeTheGroup.Do(func() { tool(t, "vgcreate", "--yes", theGroup, edge.Disks[0]) })
	return theGroup
}

// makeGroup makes a volume group that ends with the test.
func makeGroup(t testing.TB, vg string, disks ...string) {
	t.Helper()
	t.Cleanup(func() {
		tool(t, "vgremove", "--yes", "--force", vg)
		tool(t, append([]string{"pvremove", "--yes"}, disks...)...)
	})
	tool(t, append([]string{"vgcreate", "--yes", vg}, disks...)...)
}

// volume makes a logical volume with a disc, unless an earlier test has left it there.
func (r *volumeRig) volume(name string) {
	r.t.Helper()
	path := r.path(name)
	disc := r.disc(name)
	if exec.Command("lvs", path).Run() == nil {
		return
	}
	tool(r.t, "lvcreate", "--yes", "--wipesignatures", "n", "--size", "4m", "--name", r.prefix+name, r.group)
	fill(r.t, "/dev/"+path, disc)
	tool(r.t, "lvchange", "--activate", "n", path)
}

// lv is the medium of a disc on a volume.
func (r *volumeRig) lv(name string) string { return "lvm:" + r.path(name) }

// path is a volume as lvm2 names it.
func (r *volumeRig) path(name string) string { return r.group + "/" + r.prefix + name }

// fill writes a disc onto a device.
func fill(t testing.TB, device, disc string) {
	t.Helper()
	content, err := os.ReadFile(disc)
	require.NoError(t, err)
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	require.NoError(t, err)
	defer f.Close()
	_, err = f.Write(content)
	require.NoError(t, err)
	require.NoError(t, f.Sync())
}

// mapped are the names of the device-mapper devices that are there.
func mapped(t testing.TB) []string {
	t.Helper()
	var names []string
	for _, line := range strings.Split(tool(t, "dmsetup", "ls"), "\n") {
		if name, _, ok := strings.Cut(line, "\t"); ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// device is a volume's name in device-mapper.
func (r *volumeRig) device(name string) string {
	double := strings.NewReplacer("-", "--")
	return double.Replace(r.group) + "-" + double.Replace(r.prefix+name)
}

// mine are the devices that are there and of this rig's doing, or its trayd's.
func (r *volumeRig) mine() []string {
	r.t.Helper()
	return slices.DeleteFunc(mapped(r.t), func(name string) bool {
		return !strings.HasPrefix(name, r.device("")) && !strings.HasPrefix(name, "trayd-")
	})
}

// active demands that just these volumes are active: device-mapper says so, not trayd.
func (r *volumeRig) active(names ...string) {
	r.t.Helper()
	var want []string
	for _, name := range names {
		want = append(want, r.device(name))
	}
	slices.Sort(want)
	require.ElementsMatch(r.t, slices.Compact(want), r.mine(), "active volumes")
}

// get asks the API.
func (r *volumeRig) get(path string, into any) error {
	resp, err := r.api.Get("http://trayd" + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", path, resp.Status)
	}
	return json.NewDecoder(resp.Body).Decode(into)
}

// up waits until trayd's API answers, which it does when every machine has had its time.
func (r *volumeRig) up() {
	r.t.Helper()
	var vms []agent.VMStatus
	for end := time.Now().Add(soon); r.get("/v1/vms", &vms) != nil; time.Sleep(5 * time.Millisecond) {
		require.False(r.t, time.Now().After(end), "trayd does not answer")
	}
}

// records is the state file, as it is shown.
func (r *volumeRig) records() map[string]agent.Record {
	r.t.Helper()
	var list []agent.Record
	require.NoError(r.t, json.Unmarshal([]byte(r.must("-o", "json", "state", "show")), &list))
	records := make(map[string]agent.Record)
	for _, rec := range list {
		records[rec.VM+"/"+rec.Drive] = rec
	}
	return records
}

// look is what the API says of a drive once QEMU has answered: a host under load may take
// more than the second that a look is given.
func (r *volumeRig) look(drive string) agent.DriveStatus {
	r.t.Helper()
	var d agent.DriveStatus
	require.Eventually(r.t, func() bool {
		d = r.driveStatus(drive)
		return d.Tray != ""
	}, soon, poll, "QEMU doesn't answer")
	return d
}

// shows demands that everybody says the same of a drive: the API, the state file, and the
// guest (nil is not asked). medium is "" for an empty drive.
func (r *volumeRig) shows(drive, medium, volumeID string, guest *qemutest.Guest) {
	t := r.t
	t.Helper()
	d := r.look(drive)
	rec, recorded := r.records()[drive]
	require.Nil(t, d.Operation)
	require.Nil(t, rec.Change, "in the state file")
	require.Empty(t, d.Releasing)
	require.Empty(t, rec.Releasing, "in the state file")
	require.Equal(t, "closed", d.Tray)
	if medium == "" {
		require.Equal(t, agent.StateEmpty, d.State)
		require.Nil(t, d.Medium)
		require.Nil(t, rec.Loaded, "in the state file")
		volumeID = qemutest.NoMedium
	} else {
		require.Equal(t, agent.StateLoaded, d.State)
		require.NotNil(t, d.Medium)
		require.Equal(t, medium, d.Medium.Name)
		require.Equal(t, volumeID, d.Medium.VolumeID)
		require.True(t, d.Medium.Ours)
		require.True(t, d.Medium.ReadOnly)
		require.True(t, recorded, "no record")
		require.NotNil(t, rec.Loaded, "in the state file")
		require.Equal(t, medium, rec.Loaded.Medium.Name)
		require.Equal(t, d.Medium.Node, rec.Loaded.Node)
	}
	if guest != nil {
		require.Equal(t, volumeID, guest.Volume(), "what the guest reads")
	}
}

// holds is shows for a disc on a logical volume.
func (r *volumeRig) holds(drive, name string, guest *qemutest.Guest) {
	r.t.Helper()
	if name == "" {
		r.shows(drive, "", "", guest)
		return
	}
	r.shows(drive, r.lv(name), name, guest)
	ref := r.records()[drive].Loaded.Medium.Volume
	require.Equal(r.t, &volume.Ref{Kind: volume.LVM, Name: r.path(name)}, ref, "in the state file")
}

// ok is trayd's own check.
func (r *volumeRig) ok() {
	r.t.Helper()
	got := r.trayctl("state", "check")
	for end := time.Now().Add(6 * soon); strings.Contains(got.stdout, "doesn't answer") && time.Now().Before(end); { // a host under load
		got = r.trayctl("state", "check")
	}
	require.Zero(r.t, got.code, got.stdout+got.stderr)
}

// fails demands that a command is refused or fails, and returns the problem.
func (r *volumeRig) fails(code int, args ...string) problem {
	r.t.Helper()
	got := r.trayctl(append([]string{"-o", "json"}, args...)...)
	require.Equal(r.t, code, got.code, "%s%s", got.stdout, got.stderr)
	var p problem
	lines := strings.Split(strings.TrimSpace(got.stderr), "\n")
	require.NoError(r.t, json.Unmarshal([]byte(lines[len(lines)-1]), &p), got.stderr)
	assert.NotEmpty(r.t, p.Detail)
	assert.NotEmpty(r.t, p.Next, "nobody is left without a next step: %s", p.Detail)
	return p
}

// problem is what trayctl prints of an error.
type problem struct{ Type, Code, Detail, Next string }

// hold has a process that is no business of trayd's hold a device open, until its end.
func hold(t testing.TB, path string) (end func()) {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	cmd := exec.Command("sleep", "1000")
	cmd.ExtraFiles = []*os.File{f}
	require.NoError(t, cmd.Start())
	require.NoError(t, f.Close())
	ended := false
	end = func() {
		if !ended {
			ended = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	t.Cleanup(end)
	return end
}

// mapperPath is the device of an active volume. udev's links may come later.
func mapperPath(t testing.TB, name string) string {
	t.Helper()
	return "/dev/" + tool(t, "dmsetup", "info", "--columns", "--noheadings", "--options", "blkdevname", name)
}

// machine starts a machine that runs, and its guest. QEMU up to 8.2 keeps what was lent
// to it open while its machine is paused.
func (r *volumeRig) machine(name string, args ...string) (*qemutest.VM, *qemutest.Guest) {
	r.t.Helper()
	vm, _ := r.running(name, args...)
	return vm, vm.Guest(r.t)
}

// twoDrives is a machine with two CD drives.
var twoDrives = []string{"-M", "pc", "-device", "ide-cd,id=cd0,bus=ide.1,unit=0", "-device", "ide-cd,id=cd1,bus=ide.1,unit=1"}

// discAt is the plain file of a disc.
func (r *volumeRig) discAt(name string) string { return filepath.Join(r.discs(), name+".iso") }
