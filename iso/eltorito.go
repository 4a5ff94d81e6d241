package iso

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// What El Torito's catalogue consists of (El Torito 1.0, chapter 2).
const (
	bootCatalogueAt  = 0x47 // in the boot record: the catalogue's block
	catalogueEntry   = 32   // bytes
	maxCatalogue     = 2 * sectorSize
	entryBootable    = 0x88
	entryNotBootable = 0x00
	headerMore       = 0x90
	headerLast       = 0x91
	entryExtension   = 0x44
	followsOn        = 1 << 5 // of a media type or an extension: an extension follows

	platformBIOS = 0
	platformEFI  = 0xef
)

// bootCatalogue reads El Torito's catalogue.
func (i *inspection) bootCatalogue() error {
	if i.set.boot == 0 {
		return nil
	}
	pointer := int64(i.set.boot + bootCatalogueAt)
	at := int64(binary.LittleEndian.Uint32(i.head[pointer:])) * sectorSize
	if i.outside(pointer, at, sectorSize, "the boot catalogue") {
		return nil
	}
	c := make([]byte, min(maxCatalogue, i.size-at))
	if err := i.read(c, at); err != nil {
		return err
	}
	c = c[:len(c)-len(c)%catalogueEntry]
	i.validationEntry(c, at)
	if err := i.bootEntry(c[catalogueEntry:], at+catalogueEntry, c[1]); err != nil {
		return err
	}
	for n := 2; (n+1)*catalogueEntry <= len(c); {
		header := c[n*catalogueEntry:]
		if header[0] != headerMore && header[0] != headerLast {
			if header[0] != 0 {
				i.defect(at+int64(n)*catalogueEntry, "a section of the boot catalogue begins with %#02x, not 0x90 or 0x91", header[0])
			}
			break
		}
		n++
		for range binary.LittleEndian.Uint16(header[2:]) {
			if (n+1)*catalogueEntry > len(c) {
				i.defect(at, "the boot catalogue has more entries than %d bytes hold", len(c))
				return nil
			}
			entry := c[n*catalogueEntry:]
			if err := i.bootEntry(entry, at+int64(n)*catalogueEntry, header[1]); err != nil {
				return err
			}
			n++
			for more := entry[1]; more&followsOn != 0 && (n+1)*catalogueEntry <= len(c) && c[n*catalogueEntry] == entryExtension; n++ {
				more = c[n*catalogueEntry+1]
			}
		}
		if header[0] == headerLast {
			break
		}
	}
	return nil
}

// validationEntry checks the catalogue's first entry: header, key bytes, and that its words add up to 0 (2.1).
func (i *inspection) validationEntry(c []byte, at int64) {
	if c[0] != 1 {
		i.defect(at, "the boot catalogue begins with %#02x, not with a validation entry", c[0])
	}
	if c[30] != 0x55 || c[31] != 0xaa {
		i.defect(at+30, "the boot catalogue's key bytes are %02x %02x, not 55 aa", c[30], c[31])
	}
	var sum uint16
	for n := 0; n < catalogueEntry; n += 2 {
		sum += binary.LittleEndian.Uint16(c[n:])
	}
	if sum != 0 {
		i.defect(at+28, "the boot catalogue's checksum is wrong: its first entry adds up to %#04x, not 0", sum)
	}
}

// bootEntry takes the default entry or one of a section (2.2, 2.4).
func (i *inspection) bootEntry(e []byte, at int64, platform byte) error {
	if e[0] != entryBootable && e[0] != entryNotBootable {
		i.defect(at, "an entry of the boot catalogue begins with %#02x, not with 0x88 or 0", e[0])
		return nil
	}
	b := BootEntry{
		Platform:    platformName(platform),
		Media:       "none",
		LoadSegment: binary.LittleEndian.Uint16(e[2:]),
		Sectors:     binary.LittleEndian.Uint16(e[6:]),
		Offset:      int64(binary.LittleEndian.Uint32(e[8:])) * sectorSize,
		Bootable:    e[0] == entryBootable,
	}
	if b.Offset == 0 && b.Sectors == 0 {
		return nil // an unused one
	}
	b.Size = int64(b.Sectors) * 512
	switch e[1] & 0x0f {
	case 1:
		b.Media, b.Size = "1.2M", 80*2*15*512
	case 2:
		b.Media, b.Size = "1.44M", 80*2*18*512
	case 3:
		b.Media, b.Size = "2.88M", 80*2*36*512
	case 4:
		b.Media = "hard-disk"
	}
	err := i.bootImage(&b, at, platform)
	i.Boot.Entries = append(i.Boot.Entries, b)
	return err
}

// bootImage looks at what an entry points to.
func (i *inspection) bootImage(b *BootEntry, at int64, platform byte) error {
	var start [512]byte
	if i.outside(at, b.Offset, int64(len(start)), "a boot image") {
		return nil
	}
	if err := i.read(start[:], b.Offset); err != nil {
		return err
	}
	if platform == platformEFI {
		fat, isFAT := readFAT(start[:], i.source, b.Offset)
		if isFAT {
			// The sector count is 16 bits wide and often left at 0 or 1; the file system says how large it is.
			b.Size = fat.size
			var err error
			if b.Holds, err = i.bootLoaders(fat); err != nil {
				return err
			}
		}
		inside := !i.outside(at, b.Offset, b.Size, "an EFI boot image")
		i.Boot.UEFIx64 = i.Boot.UEFIx64 || inside && b.Bootable && slices.Contains(b.Holds, "EFI/BOOT/BOOTX64.EFI")
		i.Boot.UEFIarm64 = i.Boot.UEFIarm64 || inside && b.Bootable && slices.Contains(b.Holds, "EFI/BOOT/BOOTAA64.EFI")
		return nil
	}
	inside := !i.outside(at, b.Offset, b.Size, "a boot image")
	if platform == platformBIOS && inside && b.Bootable && start != [512]byte{} {
		i.Boot.BIOS = true
	}
	return nil
}

func platformName(platform byte) string {
	switch platform {
	case platformBIOS:
		return "bios"
	case 1:
		return "powerpc"
	case 2:
		return "mac"
	case platformEFI:
		return "efi"
	}
	return fmt.Sprintf("%#02x", platform)
}
