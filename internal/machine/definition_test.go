package machine

import (
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/wire"
)

func complete(t *testing.T, d *Definition) *Definition {
	t.Helper()
	for i := range d.Disks {
		set(&d.Disks[i].Size, 1<<30)
	}
	require.NoError(t, Complete(d, []Flavour{{Name: "small", Memory: 2 << 30, CPUs: 2}}))
	return d
}

// TestDefaultsJustBoot: what nobody says is such that an installer boots and sees its disc.
func TestDefaultsJustBoot(t *testing.T) {
	d := complete(t, &Definition{
		Name: "m", Disks: []wire.Disk{{}}, CDROMs: []wire.CDROM{{Medium: "image:installer"}, {Medium: "image:drivers"}}, Networks: []wire.Network{{}},
	})
	require.NoError(t, Check(d))
	require.Equal(t, wire.BootCDROMOnce, d.Boot)
	require.Equal(t, wire.MachineQ35, d.Machine)
	require.Equal(t, wire.FirmwareBIOS, d.Firmware)
	require.Equal(t, wire.Size(1<<30), d.Memory)
	require.Equal(t, "disk0 virtio qcow2", d.Disks[0].Name+" "+d.Disks[0].Bus+" "+d.Disks[0].Format)
	require.Equal(t, []string{"cd0 sata", "cd1 sata"}, []string{d.CDROMs[0].Name + " " + d.CDROMs[0].Bus, d.CDROMs[1].Name + " " + d.CDROMs[1].Bus})
	require.Regexp(t, "^52:54:00:", d.Networks[0].MAC)
	require.Len(t, d.UUID, 36)

	require.Equal(t, wire.BusIDE, complete(t, &Definition{Name: "m", Machine: wire.MachinePC, CDROMs: []wire.CDROM{{}}}).CDROMs[0].Bus)
	require.Equal(t, wire.BootCDROM, complete(t, &Definition{Name: "m", CDROMs: []wire.CDROM{{Medium: "live"}}}).Boot, "there is nothing else")
	require.Equal(t, wire.BootDisk, complete(t, &Definition{Name: "m", Disks: []wire.Disk{{Image: "golden"}}, CDROMs: []wire.CDROM{{Medium: "tools"}}}).Boot, "it is installed")
	require.Equal(t, wire.BootDisk, complete(t, &Definition{Name: "m", Disks: []wire.Disk{{}}, CDROMs: []wire.CDROM{{Medium: "seed", Seed: true}}}).Boot)
}

func TestFlavour(t *testing.T) {
	d := complete(t, &Definition{Name: "m", Flavour: "small"})
	require.Equal(t, wire.Size(2<<30), d.Memory)
	require.Equal(t, 2, d.CPUs)
	require.Equal(t, 7, complete(t, &Definition{Name: "m", Flavour: "small", CPUs: 7}).CPUs, "what is said wins")
	var e *InvalidError
	require.ErrorAs(t, Complete(&Definition{Name: "m", Flavour: "huge"}, []Flavour{{Name: "small"}}), &e)
	require.Equal(t, "flavours: small", e.Next())
}

func TestWhatNoMachineCanBe(t *testing.T) {
	disks := func(n int, bus string) []wire.Disk {
		var all []wire.Disk
		for range n {
			all = append(all, wire.Disk{Bus: bus})
		}
		return all
	}
	for _, row := range []struct {
		says string
		d    Definition
	}{
		{"is not within", Definition{Memory: 1 << 20}},
		{"whole number of MiB", Definition{Memory: 1<<30 + 1}},
		{"processors", Definition{CPUs: -1}},
		{"processors", Definition{CPUs: 1000}},
		{`"microvm" is none of q35, pc`, Definition{Machine: "microvm"}},
		{`"efi" is none of bios, uefi`, Definition{Firmware: "efi"}},
		{`"cd" is none of disk, cdrom, cdrom-once`, Definition{Boot: "cd"}},
		{"not a UUID", Definition{UUID: "x"}},
		{`"vda" is none of virtio`, Definition{Disks: []wire.Disk{{Bus: "vda"}}}},
		{`"virtio" is none of sata`, Definition{CDROMs: []wire.CDROM{{Bus: wire.BusVirtio}}}},
		{`"raw" is none of qcow2`, Definition{Disks: []wire.Disk{{Format: "raw"}}}},
		{"is not within", Definition{Disks: []wire.Disk{{Size: 1}}}},
		{"whole sectors", Definition{Disks: []wire.Disk{{Size: 1<<30 + 1}}}},
		{"there twice", Definition{Disks: []wire.Disk{{Name: "x"}}, CDROMs: []wire.CDROM{{Name: "x"}}}},
		{"same boot_order 1", Definition{Disks: []wire.Disk{{BootOrder: 1}}, CDROMs: []wire.CDROM{{BootOrder: 1}}}},
		{"not within 1 and 1000", Definition{Disks: []wire.Disk{{BootOrder: -1}}}},
		{"can't be a device's name", Definition{Disks: []wire.Disk{{Name: "a,b=c"}}}},
		{"can't be a device's name", Definition{CDROMs: []wire.CDROM{{Name: "0cd"}}}},
		{"can't be a device's name", Definition{Disks: []wire.Disk{{Name: strings.Repeat("a", 27)}}}},
		{"another device stands on", Definition{Disks: []wire.Disk{{Name: "disk0-base"}}}},
		{"stands on nothing", Definition{Disks: []wire.Disk{{Image: "image:local/golden", Base: "/etc/shadow"}}}},
		{"not a MAC address", Definition{Networks: []wire.Network{{MAC: "5254.0012.3456"}}}},
		{"every machine has", Definition{CDROMs: []wire.CDROM{{Name: "vars"}}}},
		{"q35 has no IDE", Definition{Disks: disks(1, wire.BusIDE)}},
		{"room for 4", Definition{Machine: wire.MachinePC, Disks: disks(5, wire.BusIDE)}},
		{"room for 6", Definition{Disks: disks(7, wire.BusSATA)}},
		{"needs the image", Definition{Disks: []wire.Disk{{Linked: true}}}},
		{"zero byte", Definition{CDROMs: []wire.CDROM{{Medium: "a\x00b"}}}},
		{"more than one drive for cloud-init", Definition{CDROMs: []wire.CDROM{{Seed: true}, {Seed: true}}}},
		{"not the name of a network interface", Definition{Networks: []wire.Network{{Type: wire.NetworkBridge}}}},
		{"not the name of a network interface", Definition{Networks: []wire.Network{{Type: wire.NetworkTap, Tap: "a,script=/bin/sh"}}}},
		{"type user has none", Definition{Networks: []wire.Network{{Bridge: "br0"}}}},
		{"not a MAC address", Definition{Networks: []wire.Network{{MAC: "x"}}}},
		{"a group's address", Definition{Networks: []wire.Network{{MAC: "01:00:5e:00:00:01"}}}},
		{"none of virtio, e1000", Definition{Networks: []wire.Network{{Model: "ne2k"}}}},
		{"needs PCI Express", Definition{Machine: wire.MachinePC, Networks: []wire.Network{{Model: "e1000e"}}}},
	} {
		t.Run(row.says, func(t *testing.T) {
			d := row.d
			d.Name = "m"
			complete(t, &d)
			err := Check(&d)
			require.ErrorContains(t, err, row.says)
			var e *InvalidError
			require.ErrorAs(t, err, &e)
			require.NotEmpty(t, e.Next())
		})
	}
}

func TestNames(t *testing.T) {
	for _, good := range []string{"a", "web-1_example", "0", strings.Repeat("x", 28)} {
		require.NoError(t, CheckName(good))
	}
	for _, bad := range []string{"", ".", "..", "-a", "a/b", "a b", "ä", "a\n", "web.1", strings.Repeat("x", 29), ".making-a"} {
		require.Error(t, CheckName(bad), bad)
	}
}

// TestFile: a definition read back is the one that was written, and what is wrong in an
// edited one is said with its line.
func TestFile(t *testing.T) {
	d := complete(t, &Definition{
		Name: "m", Flavour: "small", Firmware: wire.FirmwareUEFI, Autostart: true, VNC: true,
		Disks:    []wire.Disk{{Image: "image:local/golden", Linked: true, Base: "/pool/x.qcow2", BaseFormat: "qcow2"}, {Bus: wire.BusSATA, BootOrder: 1}},
		CDROMs:   []wire.CDROM{{Medium: `image:"odd'\name`}, {Optional: true}, {Seed: true, Medium: "seed"}},
		Networks: []wire.Network{{Type: wire.NetworkBridge, Bridge: "br0"}},
	})
	text, err := encode(d)
	require.NoError(t, err)
	back, err := decode("m", text)
	require.NoError(t, err)
	require.Equal(t, d, back)
	require.Contains(t, string(text), "memory = '2GiB'")

	for _, row := range []struct{ from, to, says string }{
		{"cpus = 2", "cpus = 'two'", "line 8"},
		{"cpus = 2", "cpu = 2", "line 8: no such key cpu"},
		{"cpus = 2", "cpus = 0", "0 processors"},
		{"memory = '2GiB'", "memory = 'lots'", `"lots" is not a size`},
		{"name = 'm'", "name = 'n'", "can't be renamed"},
		{"name = 'm'", "name = ", "line 4"},
	} {
		changed := strings.Replace(string(text), row.from, row.to, 1)
		require.NotEqual(t, string(text), changed)
		_, err := decode("m", []byte(changed))
		require.ErrorContains(t, err, row.says)
		var e *InvalidError
		require.True(t, errors.As(err, &e))
	}
}

func TestChange(t *testing.T) {
	d := complete(t, &Definition{Name: "m", Disks: []wire.Disk{{}, {}}, CDROMs: []wire.CDROM{{Medium: "x"}}})
	cpus, small := 4, "small"
	next, err := Change(d, wire.MachineChange{
		CPUs: &cpus, Flavour: &small, AddDisks: []wire.Disk{{Bus: wire.BusSATA}}, RemoveDisks: []string{"disk0"},
		ResizeDisks: []wire.Disk{{Name: "disk1", Size: 3 << 30}}, AddCDROMs: []wire.CDROM{{}}, BootOrder: []string{"disk1", "cd1"},
		Networks: []wire.Network{{Type: wire.NetworkNone}},
	}, []Flavour{{Name: "small", Memory: 4 << 30, CPUs: 2}})
	require.NoError(t, err)
	require.Equal(t, 4, next.CPUs)
	require.Equal(t, wire.Size(4<<30), next.Memory)
	require.Equal(t, []string{"disk1", "cd1", "cd0", "disk2"}, BootOrder(next))
	require.Equal(t, []string{"disk1", "disk2"}, []string{next.Disks[0].Name, next.Disks[1].Name}, "no new disk is taken for the one that goes")
	require.Equal(t, wire.Size(3<<30), next.Disks[0].Size)
	require.Equal(t, wire.Size(DefaultDisk), next.Disks[1].Size)
	require.Len(t, d.Disks, 2, "the old one stays as it was")
	require.Equal(t, wire.Size(1<<30), d.Disks[1].Size)

	for _, row := range []struct {
		says string
		c    wire.MachineChange
	}{
		{"there is no disk x", wire.MachineChange{RemoveDisks: []string{"x"}}},
		{"there is no CD drive x", wire.MachineChange{RemoveCDROMs: []string{"x"}}},
		{"there is no disk x", wire.MachineChange{ResizeDisks: []wire.Disk{{Name: "x"}}}},
		{"can't become", wire.MachineChange{ResizeDisks: []wire.Disk{{Name: "disk0", Size: 1 << 20}}}},
		{"is being removed", wire.MachineChange{RemoveDisks: []string{"disk0"}, AddDisks: []wire.Disk{{Name: "disk0"}}}},
		{"stands on nothing", wire.MachineChange{AddDisks: []wire.Disk{{Base: "/etc/shadow", BaseFormat: "raw"}}}},
		{"can't be added to a machine", wire.MachineChange{AddDisks: []wire.Disk{{Image: "x"}}}},
		{"can't be added later", wire.MachineChange{AddCDROMs: []wire.CDROM{{Seed: true}}}},
		{"no disk or drive x", wire.MachineChange{BootOrder: []string{"x"}}},
		{"there twice", wire.MachineChange{BootOrder: []string{"cd0", "cd0"}}},
	} {
		_, err := Change(d, row.c, nil)
		require.ErrorContains(t, err, row.says)
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]wire.Size{"0": 0, "20G": 20 << 30, "20GiB": 20 << 30, "1.5GiB": 3 << 29, "512M": 512 << 20, "1GB": 1e9, "1024": 1024, "4 KiB": 4096} {
		got, err := wire.ParseSize(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
	for _, text := range []string{"", "G", "-1G", "1e3", "0x10", "NaN", "inf", "1 2", "1_000", "20 Gigs"} {
		_, err := wire.ParseSize(text)
		require.Error(t, err, text)
	}
	require.Equal(t, "20GiB", wire.Size(20<<30).String())
	require.Equal(t, "1536MiB", wire.Size(3<<29).String())
	require.Equal(t, "1000000000", wire.Size(1e9).String())
}
