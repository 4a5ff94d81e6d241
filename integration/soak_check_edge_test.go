//go:build edge

package integration_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/blockdev"
	"github.com/trayd/trayd/blockdev/volume"
	"github.com/trayd/trayd/internal/agent"
	"github.com/trayd/trayd/internal/qemutest"
	"github.com/trayd/trayd/internal/wire"
	"github.com/trayd/trayd/state"
)

// rest waits until trayd has nothing to do. Guests let go meanwhile, and those that eject by
// themselves close their trays; where only trayd has had a tray opened, trayd has to close it. Then
// it compares what trayd says of each drive with QEMU, sees that trayd itself has no disc open any
// more, and stops it.
func (s *soak) rest() {
	t := s.t
	t.Helper()
	s.up()
	var (
		vms    []agent.VMStatus
		images []wire.Image
	)
	for end := time.Now().Add(soakRest); ; time.Sleep(4 * poll) {
		var why string
		if vms, images, why = s.restless(); why == "" {
			break
		}
		require.True(t, time.Now().Before(end), "no rest: %s", why)
	}
	for _, status := range vms {
		v := s.all[slices.IndexFunc(s.all, func(v *soakVM) bool { return v.name == status.Name })]
		require.Len(t, status.Drives, len(v.drives))
		st := v.observe(t)
		for _, d := range status.Drives {
			require.Equal(t, st[d.Name].Node(), nodeOf(d), "what trayd says of %s: %+v", v.name, d)
			require.False(t, st[d.Name].TrayOpen, "%s/%s", v.name, d.Name)
			require.False(t, st[d.Name].Locked, "%s/%s", v.name, d.Name)
		}
	}
	for _, discs := range []string{"/dev/dm-", s.pool()} {
		require.Empty(t, qemutest.OpenFiles(t, s.daemon.Process.Pid, discs), "of trayd at rest")
	}
	s.stop()
	_, kept := s.written()
	require.ElementsMatch(t, namesOf(images), namesOf(kept), "the images of the API and of the state file")
}

// restless has the guests let go, and says what isn't at rest; "" for nothing.
func (s *soak) restless() (vms []agent.VMStatus, images []wire.Image, why string) {
	for _, v := range s.all {
		v.hand.Lock()
		v.guest.Unlock()
		if !v.obliging {
			v.guest.Load()
		}
		v.hand.Unlock()
	}
	if err := s.get("/v1/vms", &vms); err != nil {
		return nil, nil, err.Error()
	}
	if len(vms) != len(s.all) {
		return nil, nil, fmt.Sprintf("%d machines", len(vms))
	}
	for _, rec := range s.records() {
		if rec.Change != nil || rec.Releasing != nil {
			return nil, nil, fmt.Sprintf("in the state file: %+v", rec)
		}
	}
	if i := slices.IndexFunc(vms, busyVM); i >= 0 {
		return nil, nil, fmt.Sprintf("%+v", vms[i])
	}
	if err := s.get("/v1/images", &images); err != nil {
		return nil, nil, err.Error()
	}
	if i := slices.IndexFunc(images, onItsWay); i >= 0 {
		return nil, nil, fmt.Sprintf("%+v", images[i])
	}
	return vms, images, ""
}

// observe is what QEMU says of a machine's drives.
func (v *soakVM) observe(t testing.TB) map[string]blockdev.State {
	t.Helper()
	all, err := blockdev.ObserveAll(t.Context(), v.side)
	require.NoError(t, err)
	require.Len(t, all, len(v.drives))
	drives := make(map[string]blockdev.State)
	for _, st := range all {
		drives[blockdev.NameOf(st)] = st
	}
	return drives
}

func namesOf(images []wire.Image) (names []string) {
	for _, i := range images {
		names = append(names, i.String()+" is "+string(i.State))
	}
	return names
}

// written is what the state file says of drives and of images, read while nobody writes it.
func (s *soak) written() (records map[string]agent.Record, images []wire.Image) {
	t := s.t
	t.Helper()
	values, report, err := state.Read(s.stateFile())
	require.NoError(t, err)
	require.Nil(t, report.Damage)
	records = make(map[string]agent.Record)
	for key, value := range values {
		if drive, ok := strings.CutPrefix(key, "drive/"); ok {
			var rec agent.Record
			require.NoError(t, json.Unmarshal(value, &rec), key)
			records[drive] = rec
		}
		if strings.HasPrefix(key, "image/") {
			var i wire.Image
			require.NoError(t, json.Unmarshal(value, &i), key)
			images = append(images, i)
		}
	}
	return records, images
}

// checkKilled looks at QEMU and the kernel when trayd has been killed in whatever it did. Of
// each node of trayd's, each descriptor that it has lent, and each active volume there has to be
// a record: it was written before, and isn't given up before that is gone.
func (s *soak) checkKilled() {
	t := s.t
	t.Helper()
	records, _ := s.written()
	var volumes []string
	nodes := make(map[string][]string) // by machine
	for _, rec := range records {
		if l := rec.Loaded; l != nil {
			nodes[rec.VM] = append(nodes[rec.VM], l.Node)
			volumes = append(volumes, deviceOf(l.Medium.Volume))
		}
		if c := rec.Change; c != nil {
			nodes[rec.VM] = append(nodes[rec.VM], c.Node, c.From.Node)
			if c.Target != nil {
				volumes = append(volumes, deviceOf(c.Target.Volume))
			}
		}
		for _, r := range rec.Releasing {
			volumes = append(volumes, deviceOf(&r.Volume))
		}
	}
	require.Subset(t, volumes, s.mine(), "active volumes of which nothing is written: %+v", records)
	for _, v := range s.all {
		ours, err := blockdev.Nodes(t.Context(), v.side, "trayd-")
		require.NoError(t, err)
		loans, err := blockdev.Lent(t.Context(), v.side, "trayd-")
		require.NoError(t, err)
		for _, loan := range loans {
			ours = append(ours, loan.Node)
		}
		for i, name := range ours { // the disc tried in a node of its own, the old one opened again
			ours[i] = strings.TrimSuffix(strings.TrimSuffix(name, blockdev.TrySuffix), "-old")
		}
		require.Subset(t, nodes[v.name], ours, "nodes and loans in %s of which nothing is written: %+v", v.name, records)
	}
}

// deviceOf is a volume's name in device-mapper; "" for none.
func deviceOf(ref *volume.Ref) string {
	if ref == nil {
		return ""
	}
	double := strings.NewReplacer("-", "--")
	group, name, _ := strings.Cut(ref.Name, "/")
	return double.Replace(group) + "-" + double.Replace(name)
}

func nodeOf(d agent.DriveStatus) string {
	if d.Medium == nil {
		return ""
	}
	return d.Medium.Node
}

func busyVM(v agent.VMStatus) bool {
	return !v.Answered || slices.ContainsFunc(v.Drives, func(d agent.DriveStatus) bool {
		return d.Operation != nil || d.Tray != "closed" || len(d.Releasing) > 0 || d.State != agent.StateEmpty && d.State != agent.StateLoaded
	})
}

func onItsWay(i wire.Image) bool { return i.State != wire.ImageReady && i.State != wire.ImageFailed }

// check looks at QEMU, the kernel and the state file while trayd doesn't run. In each drive is
// a disc that may be there by what clients were told, and the guest reads it; QEMU has that one
// node, no descriptor besides, and nothing else open; the state file says so and of
// nothing else; just the volumes of these discs are active; and the pool holds the images that were
// ready before trayd ended, as the web server has them, what has come of the others, and no file
// besides.
func (s *soak) check() {
	t := s.t
	t.Helper()
	records, images := s.written()
	used := make(map[string]bool)
	for _, v := range s.all {
		for _, in := range s.checkVM(v, records) {
			if slices.Contains(soakVolumes, in) {
				used[in] = true
			}
		}
	}
	require.Empty(t, records, "of drives that aren't there")
	s.active(slices.Collect(maps.Keys(used))...)
	s.checkImages(images)
}

// checkVM returns the discs that are in, and takes the machine's records from the others.
func (s *soak) checkVM(v *soakVM, records map[string]agent.Record) (in []string) {
	t := s.t
	t.Helper()
	v.hand.Lock()
	defer v.hand.Unlock()
	st := v.observe(t)
	var nodes, open []string
	for i, d := range v.drives {
		rec := records[d.name()]
		delete(records, d.name())
		require.Nil(t, rec.Change, d.name())
		require.Empty(t, rec.Releasing, d.name())
		disc, node := "", ""
		if rec.Loaded != nil {
			disc, node = rec.Loaded.Medium.VolumeID, rec.Loaded.Node
			require.Equal(t, s.medium(disc), rec.Loaded.Medium.Name, d.name())
			nodes = append(nodes, node)
			in = append(in, disc)
			open = append(open, s.opens(disc))
		}
		may := slices.Clone(d.may)
		if i == 0 && v.ejected {
			may = append(may, "")
		}
		require.Contains(t, may, disc, "%s: a disc that nobody confirmed", d.name())
		d.may = []string{disc}
		require.Equal(t, node, st[d.id].Node(), "in %s", d.name())
	}
	v.ejected = false
	ours, err := blockdev.Nodes(t.Context(), v.side, "trayd-")
	require.NoError(t, err)
	require.ElementsMatch(t, nodes, ours, "nodes of %s", v.name)
	loans, err := blockdev.Lent(t.Context(), v.side, "trayd-")
	require.NoError(t, err)
	require.Empty(t, loans, v.name)
	first := v.drives[0].may[0]
	if first == "" {
		first = qemutest.NoMedium
	}
	require.Equal(t, first, v.guest.Volume(), "what the guest of %s reads", v.name)
	slices.Sort(open)
	require.ElementsMatch(t, slices.Compact(open), s.hasOpen(v), "what %s has open", v.name)
	return in
}

// opens is what QEMU opens for a disc: the volume, by its name in device-mapper, or the image.
func (s *soak) opens(disc string) string {
	if slices.Contains(soakImages, disc) {
		sum := sha256.Sum256([]byte(read(s.t, filepath.Join(s.web.dir, disc+".iso"))))
		return filepath.Join(s.pool(), "sha256", hex.EncodeToString(sum[:])+".iso")
	}
	return s.device(disc)
}

// hasOpen is what it has, as the kernel says, each once.
func (s *soak) hasOpen(v *soakVM) (open []string) {
	for _, path := range v.vm.OpenFiles(s.t, "/dev/dm-") {
		open = append(open, strings.TrimSpace(read(s.t, "/sys/class/block/"+strings.TrimPrefix(path, "/dev/")+"/dm/name")))
	}
	open = append(open, v.vm.OpenFiles(s.t, s.pool()+"/")...)
	slices.Sort(open)
	return slices.Compact(open)
}

// pool is the directory of the images.
func (s *soak) pool() string { return filepath.Join(s.dir, "state", "images") }

// checkImages compares the files of the images with the web server's. The first image makes the
// pool's directory: a round may end before there is one.
func (s *soak) checkImages(images []wire.Image) {
	t := s.t
	t.Helper()
	may := make(map[string]bool)
	for _, i := range images {
		if i.State == wire.ImageFailed {
			may[filepath.Join(s.pool(), "."+i.Name+".partial")] = true
			continue
		}
		may[i.Place] = true
		got, err := os.ReadFile(i.Place)
		require.NoError(t, err)
		want, err := os.ReadFile(filepath.Join(s.web.dir, i.Name+".iso"))
		require.NoError(t, err)
		require.Equal(t, len(want), len(got), i.Name)
		require.True(t, slices.Equal(want, got), "the bytes of %s", i.Name)
	}
	require.NoError(t, filepath.WalkDir(s.pool(), func(path string, f fs.DirEntry, err error) error {
		if path == s.pool() && len(may) == 0 && errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && !f.IsDir() {
			require.Contains(t, may, path, "a file that is no image's: %+v", images)
		}
		return err
	}))
}
