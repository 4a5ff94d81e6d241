package machine

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Firmware is a UEFI firmware of two flash chips.
type Firmware struct {
	Code string // the program
	Vars string // what a new machine's variables begin as
}

// firmwareDirs are where QEMU's firmware is described, what comes first wins
// (docs/interop/firmware.json of QEMU).
func firmwareDirs() []string {
	return []string{"/etc/qemu/firmware", "/usr/share/qemu/firmware"}
}

// descriptor is a description of a firmware, as far as it matters here.
type descriptor struct {
	Interface []string `json:"interface-types"`
	Mapping   struct {
		Device     string `json:"device"`
		Mode       string `json:"mode"`
		Executable struct {
			File   string `json:"filename"`
			Format string `json:"format"`
		} `json:"executable"`
		Template struct {
			File   string `json:"filename"`
			Format string `json:"format"`
		} `json:"nvram-template"`
	} `json:"mapping"`
	Targets []struct {
		Architecture string   `json:"architecture"`
		Machines     []string `json:"machines"`
	} `json:"targets"`
	Features []string `json:"features"`
}

// NoFirmwareError is a host without UEFI firmware for a machine.
type NoFirmwareError struct{ Machine string }

func (e *NoFirmwareError) Error() string {
	return fmt.Sprintf("this host has no UEFI firmware for machines of type %s", e.Machine)
}

// Next is what to do about it.
func (e *NoFirmwareError) Next() string {
	return "install it (Debian: apt-get install ovmf), or use --firmware bios"
}

// UEFI finds the firmware for a type of machine: without Secure Boot, which needs SMM and
// keys, and would refuse most discs.
func (h *Host) UEFI(machine string) (Firmware, error) {
	for _, file := range h.descriptors() {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		var d descriptor
		if json.Unmarshal(text, &d) == nil && d.fits(machine) {
			return Firmware{Code: d.Mapping.Executable.File, Vars: d.Mapping.Template.File}, nil
		}
	}
	return Firmware{}, &NoFirmwareError{machine}
}

func (d *descriptor) fits(machine string) bool {
	m := d.Mapping
	if !slices.Contains(d.Interface, "uefi") || m.Device != "flash" || m.Mode != "" && m.Mode != "split" ||
		m.Executable.Format != "raw" || m.Template.Format != "raw" {
		return false
	}
	for _, f := range d.Features {
		if f == "secure-boot" || f == "requires-smm" {
			return false
		}
	}
	for _, t := range d.Targets {
		if t.Architecture != "x86_64" {
			continue
		}
		for _, pattern := range t.Machines { // such as pc-q35-*
			if ok, _ := filepath.Match(pattern, "pc-"+typeName(machine)+"-9.9"); ok {
				return there(m.Executable.File) && there(m.Template.File)
			}
		}
	}
	return false
}

// typeName is a machine's type in the versioned names: pc-i440fx-9.9, pc-q35-9.9.
func typeName(machine string) string {
	if machine == "pc" {
		return "i440fx"
	}
	return machine
}

func there(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode().IsRegular()
}

// descriptors are the descriptions' files in the order in which they count: by name, and
// a file hides one of the same name in a later directory.
func (h *Host) descriptors() []string {
	byName := make(map[string]string)
	for _, dir := range slices.Backward(h.FirmwareDirs) {
		files, _ := os.ReadDir(dir) // one that is missing has none
		for _, f := range files {
			if strings.HasSuffix(f.Name(), ".json") {
				byName[f.Name()] = filepath.Join(dir, f.Name())
			}
		}
	}
	var all []string
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		all = append(all, byName[name])
	}
	return all
}
