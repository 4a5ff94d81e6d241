package iso

import (
	"fmt"
	"strings"
	"time"
)

// A Report is what [Inspect] found in an image. Its texts are printable UTF-8: what an image has else is U+FFFD.
type Report struct {
	// Format is a [Format] of discs, or one short stable word for what the input is instead: see [NotDiscError].
	Format Format `json:"format"`
	Found  string `json:"found"`          // the same for people, as in "a qcow2 disk image"
	Hint   string `json:"hint,omitempty"` // what people do about an input that is no disc

	// VolumeID is UDF's logical volume identifier where there is one. Else it is Joliet's, which has characters and
	// cases that the primary one may not have; but the primary's (32 bytes) when Joliet's 16 characters have cut it.
	VolumeID    string `json:"volume_id"`
	Publisher   string `json:"publisher,omitempty"`
	Preparer    string `json:"preparer,omitempty"`
	Application string `json:"application,omitempty"` // of a disc with only UDF, the implementation that wrote it
	// Created and Modified are of the volume, with the time zone that it records; zero where it records none.
	Created  time.Time `json:"created,omitzero"`
	Modified time.Time `json:"modified,omitzero"`

	Size         int64 `json:"size"`          // bytes of the input
	DeclaredSize int64 `json:"declared_size"` // bytes that the volume has at least, by its own descriptors
	Truncated    bool  `json:"truncated"`     // DeclaredSize is more than Size

	Boot Boot `json:"boot"`
	// Hybrid says that the same image starts a machine from a USB stick or a disk: it has boot code and an active
	// partition for a BIOS, or an EFI system partition that holds a boot loader. Such a partition counts here alone:
	// from a CD drive firmware takes only what El Torito's catalogue lists.
	Hybrid         bool   `json:"hybrid"`
	PartitionTable string `json:"partition_table"` // "none", or of "mbr", "gpt" and "apm" those it has, joined by "+"

	RockRidge bool `json:"rock_ridge"`
	Joliet    bool `json:"joliet"`
	// Sessions is how many were found: an image doesn't list them, so it is a lower bound.
	Sessions      int      `json:"sessions"`
	UDFRevision   string   `json:"udf_revision,omitempty"`   // as in "2.50"
	UDFPartitions []string `json:"udf_partitions,omitempty"` // of "physical", "virtual", "sparable", "metadata"

	Defects []Defect `json:"defects"` // in the order of their offsets; at most maxDefects
}

// Boot is what El Torito's catalogue offers to the firmware that boots from a CD drive.
type Boot struct {
	// BIOS says that a bootable entry of platform 0 has an image inside the file that doesn't begin with zeroes.
	BIOS bool `json:"bios"`
	// UEFIx64 and UEFIarm64 say that a bootable entry of platform 0xEF is a FAT file system with the boot loader of
	// that architecture, EFI/BOOT/BOOTX64.EFI or EFI/BOOT/BOOTAA64.EFI.
	UEFIx64   bool        `json:"uefi_x64"`
	UEFIarm64 bool        `json:"uefi_arm64"`
	Entries   []BootEntry `json:"entries"`
}

// A BootEntry is one of El Torito's catalogue.
type BootEntry struct {
	Platform    string `json:"platform"` // "bios", "powerpc", "mac", "efi", or the number as in "0x42"
	Media       string `json:"media"`    // "none" for no emulation, "1.2M", "1.44M" or "2.88M" floppy, "hard-disk"
	LoadSegment uint16 `json:"load_segment"`
	Sectors     uint16 `json:"sectors"` // of 512 bytes that a BIOS loads; often 0 or 1 for EFI
	Offset      int64  `json:"offset"`  // bytes
	// Size is bytes: those of the FAT file system of an EFI image, of the disk that is emulated, or of the sectors.
	Size     int64 `json:"size"`
	Bootable bool  `json:"bootable"`
	// Holds lists the boot loaders in an EFI image, as in "EFI/BOOT/BOOTX64.EFI".
	Holds []string `json:"holds,omitempty"`
}

// A Defect is something that an intact disc doesn't have.
type Defect struct {
	Offset int64  `json:"offset"` // of the structure that has it, in bytes
	Defect string `json:"defect"`
	// Fatal says that readers would see different discs or none: [Probe] refuses such an image.
	Fatal bool `json:"fatal,omitempty"`
}

// maxDefects is how many a report lists: an input made to be wrong can have any number.
const maxDefects = 100

// IsDisc says whether there is an ISO 9660 or UDF volume, sound or not.
func (r *Report) IsDisc() bool {
	return r.Format == ISO9660 || r.Format == UDF || r.Format == Bridge
}

// Err is nil for a sound disc; else what is worst: a *NotDiscError, a *TruncatedError or a *DamagedError.
func (r *Report) Err() error {
	if !r.IsDisc() {
		return &NotDiscError{r.Format, r.Found, r.Hint}
	}
	worst := -1
	for i, d := range r.Defects {
		if worst < 0 || d.Fatal && !r.Defects[worst].Fatal {
			worst = i
		}
	}
	switch {
	case worst >= 0 && r.Defects[worst].Fatal, worst >= 0 && !r.Truncated:
		return &DamagedError{r.Defects[worst].Defect, r.Defects[worst].Offset}
	case r.Truncated:
		return &TruncatedError{r.DeclaredSize, r.Size}
	}
	return nil
}

// found says for people which disc it is.
func (r *Report) found() string {
	var with []string
	if r.RockRidge {
		with = append(with, "Rock Ridge")
	}
	if r.Joliet {
		with = append(with, "Joliet")
	}
	text := "an ISO 9660 disc"
	switch r.Format {
	case UDF:
		text = "a UDF disc"
	case Bridge:
		text = "a disc with both ISO 9660 and UDF"
	}
	if r.UDFRevision != "" {
		text = strings.Replace(text, "UDF", "UDF "+r.UDFRevision, 1)
	}
	if len(with) > 0 {
		text += fmt.Sprintf(" (%s)", strings.Join(with, ", "))
	}
	return text
}
