//go:build edge

package integration_test

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/blockdev"
	"github.com/trayd/trayd/internal/agent"
	"github.com/trayd/trayd/internal/qemutest"
	"github.com/trayd/trayd/internal/wire"
	"github.com/trayd/trayd/state"
)

// rest has the guests let go and close their trays, and waits until trayd has nothing to do.
// Then it compares what trayd says of each drive with QEMU, sees that trayd itself has no disc
// open any more, and stops it.
func (s *soak) rest() {
	t := s.t
	t.Helper()
	s.up()
	var (
		vms    []agent.VMStatus
		images []wire.Image
	)
	require.Eventually(t, func() bool {
		for _, v := range s.all {
			v.hand.Lock()
			v.guest.Unlock()
			v.guest.Load()
			v.hand.Unlock()
		}
		vms = nil
		if s.get("/v1/vms", &vms) != nil || len(vms) != len(s.all) {
			return false
		}
		for _, rec := range s.records() {
			if rec.Change != nil || rec.Releasing != nil {
				return false
			}
		}
		return !slices.ContainsFunc(vms, busyVM) && s.get("/v1/images", &images) == nil && !slices.ContainsFunc(images, onItsWay)
	}, soakRest, 4*poll, "no rest")
	for _, v := range vms {
		i := slices.IndexFunc(s.all, func(o *soakVM) bool { return o.name == v.Name })
		st, err := blockdev.ObserveAll(t.Context(), s.all[i].side)
		require.NoError(t, err)
		require.Len(t, st, 1)
		require.Equal(t, st[0].Node(), nodeOf(v.Drives[0]), "what trayd says of %s: %+v", v.Name, v.Drives[0])
		require.False(t, st[0].TrayOpen, "%s", v.Name)
		require.False(t, st[0].Locked, "%s", v.Name)
	}
	for _, discs := range []string{"/dev/dm-", s.pool()} {
		require.Empty(t, qemutest.OpenFiles(t, s.daemon.Process.Pid, discs), "of trayd at rest")
	}
	s.images = images
	s.stop()
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
	values, report, err := state.Read(s.stateFile())
	require.NoError(t, err)
	require.Nil(t, report.Damage)
	records := make(map[string]agent.Record)
	for key, value := range values {
		if drive, ok := strings.CutPrefix(key, "drive/"); ok {
			var rec agent.Record
			require.NoError(t, json.Unmarshal(value, &rec), key)
			records[drive] = rec
		}
	}
	used := make(map[string]bool)
	for _, v := range s.all {
		in := s.checkVM(v, records[v.name+"/cd0"])
		delete(records, v.name+"/cd0")
		if in != "" && slices.Contains(soakVolumes, in) {
			used[in] = true
		}
	}
	require.Empty(t, records, "of drives that aren't there")
	var names []string
	for name := range used {
		names = append(names, name)
	}
	s.active(names...)
	s.checkImages()
}

// checkVM returns the disc that is in.
func (s *soak) checkVM(v *soakVM, rec agent.Record) (in string) {
	t := s.t
	t.Helper()
	v.hand.Lock()
	defer v.hand.Unlock()
	require.Nil(t, rec.Change, v.name)
	require.Empty(t, rec.Releasing, v.name)
	nodes := []string(nil)
	if rec.Loaded != nil {
		in, nodes = rec.Loaded.Medium.VolumeID, []string{rec.Loaded.Node}
		require.Equal(t, s.medium(in), rec.Loaded.Medium.Name, v.name)
	}
	may := slices.Clone(v.may)
	if v.ejected {
		may = append(may, "")
	}
	require.Contains(t, may, in, "%s: a disc that nobody confirmed", v.name)
	v.may, v.ejected = []string{in}, false

	st, err := blockdev.ObserveAll(t.Context(), v.side)
	require.NoError(t, err)
	require.Len(t, st, 1)
	ours, err := blockdev.Nodes(t.Context(), v.side, "trayd-")
	require.NoError(t, err)
	require.ElementsMatch(t, nodes, ours, "nodes of %s", v.name)
	require.Equal(t, strings.Join(nodes, ""), st[0].Node(), "in the drive of %s", v.name)
	loans, err := blockdev.Lent(t.Context(), v.side, "trayd-")
	require.NoError(t, err)
	require.Empty(t, loans, v.name)
	read := v.guest.Volume()
	if in == "" {
		require.Equal(t, qemutest.NoMedium, read, v.name)
	} else {
		require.Equal(t, in, read, "what the guest of %s reads", v.name)
	}
	require.ElementsMatch(t, s.shouldHaveOpen(in), s.hasOpen(v), "what %s has open", v.name)
	return in
}

// shouldHaveOpen is what QEMU should have open for a disc: the volume's name in device-mapper, or "image".
func (s *soak) shouldHaveOpen(disc string) []string {
	switch {
	case disc == "":
		return nil
	case slices.Contains(soakImages, disc):
		return []string{"image"}
	}
	return []string{s.device(disc)}
}

// hasOpen is what it has, as the kernel says.
func (s *soak) hasOpen(v *soakVM) (open []string) {
	for _, path := range slices.Compact(v.vm.OpenFiles(s.t, "/dev/dm-")) {
		open = append(open, strings.TrimSpace(read(s.t, "/sys/class/block/"+strings.TrimPrefix(path, "/dev/")+"/dm/name")))
	}
	for range slices.Compact(v.vm.OpenFiles(s.t, filepath.Join(s.dir, "state")+"/")) {
		open = append(open, "image")
	}
	return open
}

// pool is the directory of the images.
func (s *soak) pool() string { return filepath.Join(s.dir, "state", "images") }

// checkImages compares the files of the images with the web server's.
func (s *soak) checkImages() {
	t := s.t
	t.Helper()
	may := make(map[string]bool)
	for _, i := range s.images {
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
		if err == nil && !f.IsDir() {
			require.Contains(t, may, path, "a file that is no image's: %+v", s.images)
		}
		return err
	}))
}
