//go:build integration

package integration_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/qemutest"
	"github.com/trayd/trayd/internal/wire"
	"github.com/trayd/trayd/qmp"
)

// inDrive is what QEMU says of its only drive: the file, "" for none.
func inDrive(t *testing.T, conn *qmp.Conn) string {
	t.Helper()
	var all []struct {
		Device   string `json:"qdev"`
		TrayOpen bool   `json:"tray_open"`
		Inserted *struct {
			Node string `json:"node-name"`
		} `json:"inserted"`
	}
	require.NoError(t, conn.Execute(t.Context(), "query-block", nil, &all))
	for _, d := range all {
		if d.Device == "cd0" {
			require.False(t, d.TrayOpen)
			if d.Inserted != nil {
				return d.Inserted.Node
			}
			return ""
		}
	}
	require.FailNow(t, "there is no drive cd0", "%+v", all)
	return ""
}

// TestHarvester: Harvester's actions on CD drives, by what QEMU says of them.
func TestHarvester(t *testing.T) {
	r := newRig(t)
	pool := filepath.Join(r.dir, "pool")
	require.NoError(t, os.Mkdir(pool, 0o755))
	r.extra = "wait = \"300ms\"\n[[pool]]\nname = \"local\"\ntype = \"dir\"\npath = \"" + pool + "\"\n"
	vm, conn := r.running("vm1", qemutest.IDE.With("")...)
	r.vm("fixed", "-M", "q35", "-blockdev", "driver=file,node-name=f0,filename="+r.disc("FIXED")+",read-only=on",
		"-device", "virtio-blk-pci,drive=f0,id=vda")
	r.start("")
	r.ready()
	a := r.local()
	a.check = described(r)
	for _, name := range []string{"image-x", "other"} {
		disc, err := os.ReadFile(r.disc(name))
		require.NoError(t, err)
		a.want(201, "PUT", "/v1/pools/local/images/"+name, string(disc))
	}
	const at = "/v1/harvester/vm/vm1"
	const insert, eject = at + "?link=x&action=insertCdRomVolume", at + "?action=ejectCdRomVolume" // as there, what is too much is left alone
	cd0 := `{"deviceName":"cd0"}`

	for _, name := range []string{"image-x", "default/image-x", "local/image-x", "any-namespace/image-x"} {
		got := a.want(204, "POST", insert, `{"deviceName":"cd0","imageName":"`+name+`"}`)
		require.Empty(t, got.body)
		require.NotEmpty(t, inDrive(t, conn), name)
		require.Equal(t, "image-x", r.driveStatus("vm1/cd0").Medium.VolumeID, "the disc that was asked for")
		a.problem(409, "drive-occupied", "POST", insert, `{"deviceName":"cd0","imageName":"other"}`)
		got = a.want(204, "POST", eject, cd0)
		require.Empty(t, got.body)
		require.Empty(t, inDrive(t, conn))
		a.problem(409, "drive-empty", "POST", eject, cd0)
	}
	images := decoded[[]wire.Image](t, a.want(200, "GET", "/v1/images", ""))
	require.Len(t, images, 2, "an image stays in the library")

	a.problem(404, "no-such-vm", "POST", "/v1/harvester/vm/nope?action=ejectCdRomVolume", cd0)
	a.problem(404, "no-such-vm", "POST", "/v1/harvester/vm/nope?action=insertCdRomVolume", `{"deviceName":"cd0","imageName":"other"}`)
	a.problem(404, "no-such-drive", "POST", eject, `{"deviceName":"cd7"}`)
	a.problem(404, "no-such-medium", "POST", insert, `{"deviceName":"cd0","imageName":"default/nope"}`)
	a.problem(404, "no-such-medium", "POST", insert, `{"deviceName":"cd0","imageName":"../../etc/passwd"}`)
	a.problem(409, "drive-fixed", "POST", "/v1/harvester/vm/fixed?action=insertCdRomVolume", `{"deviceName":"vda","imageName":"other"}`)
	a.problem(409, "drive-fixed", "POST", "/v1/harvester/vm/fixed?action=ejectCdRomVolume", `{"deviceName":"vda"}`)
	for _, body := range []string{"", "{", "[]", `{}`, `{"imageName":"other"}`, `{"deviceName":7}`, `{"deviceName":"cd0"}`} {
		a.problem(422, "invalid-body-content", "POST", insert, body)
	}
	for _, body := range []string{"", "{", `{}`, `{"deviceName":""}`} {
		a.problem(422, "invalid-body-content", "POST", eject, body)
	}
	a.want(204, "POST", insert, `{"deviceName":"cd0","imageName":"other","unknown":true}`) // as there
	for _, action := range []string{"", "?action=", "?action=start", "?action=insertcdromvolume"} {
		p := a.problem(405, "invalid-action", "POST", at+action, cd0)
		require.Contains(t, p.Next, "insertCdRomVolume")
	}
	p := a.problem(405, "invalid-action", "POST", at+"?action=ejectCdRom", `{"cdRomNames":["cd0"]}`)
	require.Contains(t, p.Next, `?action=ejectCdRomVolume with {"deviceName": "..."}`)
	require.NotEmpty(t, inDrive(t, conn), "the removed action does nothing")

	g := vm.Guest(t)
	g.Volume()
	g.Lock()
	began := time.Now()
	a.problem(423, "drive-locked", "POST", eject, cd0)
	require.GreaterOrEqual(t, time.Since(began), 300*time.Millisecond, "the guest is waited for")
	require.NotEmpty(t, inDrive(t, conn))
	g.Unlock()
	a.want(204, "POST", eject, cd0)
	require.Len(t, decoded[[]wire.Image](t, a.want(200, "GET", "/v1/images", "")), 2)
	r.clean(vm, "vm1/cd0")
}
