package machine

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/wire"
)

func TestBootOrder(t *testing.T) {
	d := &Definition{
		Disks:  []wire.Disk{{Name: "a"}, {Name: "b"}},
		CDROMs: []wire.CDROM{{Name: "x"}, {Name: "y"}, {Name: "seed", Seed: true}},
	}
	for _, row := range []struct {
		boot string
		own  map[string]int
		want []string
	}{
		{wire.BootDisk, nil, []string{"a", "b", "x", "y"}},
		{wire.BootCDROM, nil, []string{"x", "y", "a", "b"}},
		{wire.BootCDROMOnce, nil, []string{"x", "y", "a", "b"}},
		{wire.BootDisk, map[string]int{"y": 1}, []string{"y", "a", "b", "x"}},
		{wire.BootDisk, map[string]int{"y": 20, "b": 3}, []string{"b", "y", "a", "x"}},
	} {
		d.Boot = row.boot
		for i := range d.Disks {
			d.Disks[i].BootOrder = row.own[d.Disks[i].Name]
		}
		for i := range d.CDROMs {
			d.CDROMs[i].BootOrder = row.own[d.CDROMs[i].Name]
		}
		require.Equal(t, row.want, BootOrder(d))
	}
}

// TestWhyNotBooted: each way to end at the firmware's shell has its sentence, and a machine
// that boots has none.
func TestWhyNotBooted(t *testing.T) {
	bios, uefi := &wire.ImageBoot{BIOS: true}, &wire.ImageBoot{UEFIx64: true}
	arm, none := &wire.ImageBoot{UEFIarm64: true}, &wire.ImageBoot{}
	for _, row := range []struct {
		name     string
		firmware string
		boot     string
		in       InDrive
		written  bool
		noDisk   bool
		says     []string // a part of each note; none: it boots
	}{
		{"a BIOS disc on BIOS", wire.FirmwareBIOS, wire.BootCDROM, InDrive{Medium: "m", Boot: bios}, false, false, nil},
		{"a UEFI disc on UEFI", wire.FirmwareUEFI, wire.BootCDROM, InDrive{Medium: "m", Boot: uefi}, false, false, nil},
		{"an unknown disc", wire.FirmwareUEFI, wire.BootCDROM, InDrive{Medium: "m"}, false, false, nil},
		{"an installed disk", wire.FirmwareBIOS, wire.BootDisk, InDrive{}, true, false, nil},
		{"a UEFI disc on BIOS", wire.FirmwareBIOS, wire.BootCDROM, InDrive{Medium: "m", Boot: uefi}, false, false,
			[]string{"m doesn't boot on BIOS, but on UEFI: `trayctl vm set v --firmware uefi`", "disk d is blank", "nothing that boots"}},
		{"a BIOS disc on UEFI", wire.FirmwareUEFI, wire.BootCDROM, InDrive{Medium: "m", Boot: bios}, false, true,
			[]string{"doesn't boot on UEFI, but on BIOS", "nothing that boots"}},
		{"ARM's", wire.FirmwareUEFI, wire.BootCDROM, InDrive{Medium: "m", Boot: arm}, false, true, []string{"ARM machines only", "nothing"}},
		{"no boot disc", wire.FirmwareUEFI, wire.BootCDROM, InDrive{Medium: "m", Boot: none}, false, true, []string{"isn't bootable at all", "nothing"}},
		{"an empty drive", wire.FirmwareBIOS, wire.BootCDROM, InDrive{}, false, true, []string{"drive c is empty", "nothing"}},
		{"a disc that can't be had", wire.FirmwareBIOS, wire.BootCDROM, InDrive{Medium: "m", Err: "gone"}, false, true, []string{"can't be had: gone", "nothing"}},
		{"the disk is first", wire.FirmwareBIOS, wire.BootDisk, InDrive{Medium: "m", Boot: bios}, true, false,
			[]string{"disk d is booted before m in drive c: `trayctl vm set v --boot cdrom`"}},
		{"a blank disk is passed over", wire.FirmwareBIOS, wire.BootDisk, InDrive{Medium: "m", Boot: bios}, false, false, []string{"disk d is blank"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			d := &Definition{Name: "v", Firmware: row.firmware, Boot: row.boot, CDROMs: []wire.CDROM{{Name: "c", Medium: row.in.Medium}}}
			if !row.noDisk {
				d.Disks = []wire.Disk{{Name: "d"}}
			}
			notes := WhyNotBooted(d, map[string]InDrive{"c": row.in}, map[string]bool{"d": row.written})
			require.Len(t, notes, len(row.says), "%q", notes)
			for i, part := range row.says {
				require.Contains(t, notes[i], part)
			}
		})
	}
	require.Contains(t, WhyNotBooted(&Definition{Name: "v"}, nil, nil)[0], "nothing to boot from")
}

// TestInstalled: what was installed is booted, also where the installer's disc was given the
// first place by name.
func TestInstalled(t *testing.T) {
	d := complete(t, &Definition{Name: "m", Disks: []wire.Disk{{}, {BootOrder: 2}}, CDROMs: []wire.CDROM{{Medium: "installer", BootOrder: 1}, {Medium: "drivers"}}})
	require.Equal(t, wire.BootCDROMOnce, d.Boot)
	require.Equal(t, []string{"cd0", "disk1", "cd1", "disk0"}, BootOrder(d))
	next := Installed(d)
	require.Equal(t, []string{"disk1", "disk0", "cd0", "cd1"}, BootOrder(next))
	require.NoError(t, Check(next))
	require.Equal(t, 1, d.CDROMs[0].BootOrder, "the old one stays as it was")
}
