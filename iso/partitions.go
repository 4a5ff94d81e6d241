package iso

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"strings"
)

// Partition tables of a hybrid image, as a disk would have them. (UEFI 2.10, chapter 5: MBR and GPT.)
const (
	diskSector      = 512
	mbrCode         = 440 // bytes of boot code
	mbrTable        = 446
	mbrSignature    = 510
	mbrActive       = 0x80
	typeProtective  = 0xee
	typeEFI         = 0xef
	gptHeaderSize   = 92
	maxGPTEntries   = 64 << 10 // bytes; tools write 16 KiB
	appleDriver     = "ER"
	applePartition  = "PM"
	applePartBlocks = 16 // an APM is looked for in so many blocks of 512 bytes; xorriso writes it from 2048 on
)

// efiSystem is the type of a GPT's EFI system partition, C12A7328-F81F-11D2-BA4B-00A0C93EC93B as it is recorded.
const efiSystem = "\x28\x73\x2a\xc1\x1f\xf8\xd2\x11\xba\x4b\x00\xa0\xc9\x3e\xc9\x3b"

// partitionTables finds what makes a disk of the image.
func (i *inspection) partitionTables() error {
	var tables []string
	mbr, err := i.mbr()
	if err != nil {
		return err
	}
	gpt, err := i.gpt()
	if err != nil {
		return err
	}
	if mbr && !(gpt && i.protectiveOnly()) {
		tables = append(tables, "mbr")
	}
	if gpt {
		tables = append(tables, "gpt")
	}
	if i.apm() {
		tables = append(tables, "apm")
	}
	if len(tables) > 0 {
		i.PartitionTable = strings.Join(tables, "+")
	}
	return nil
}

// mbr reads the four partitions of a master boot record. A boot sector without any partition is none.
func (i *inspection) mbr() (bool, error) {
	if len(i.head) < diskSector || string(i.head[mbrSignature:diskSector]) != "\x55\xaa" {
		return false, nil
	}
	found, code := false, len(bytes.Trim(i.head[:mbrCode], "\x00")) > 0
	for n := range 4 {
		e := i.head[mbrTable+16*n:][:16]
		start, sectors := int64(binary.LittleEndian.Uint32(e[8:])), int64(binary.LittleEndian.Uint32(e[12:]))
		if sectors == 0 || e[0] != 0 && e[0] != mbrActive {
			continue
		}
		found = true
		switch {
		case e[4] == typeEFI:
			if err := i.efiPartition(start * diskSector); err != nil {
				return true, err
			}
		case e[4] != typeProtective && e[0] == mbrActive && code:
			i.Hybrid = true
		}
	}
	return found, nil
}

// protectiveOnly says whether the master boot record has but the partition that keeps others off a GPT's disk.
func (i *inspection) protectiveOnly() bool {
	for n := range 4 {
		if kind := i.head[mbrTable+16*n+4]; kind != 0 && kind != typeProtective {
			return false
		}
	}
	return true
}

// gpt reads the primary GPT, and checks it by its checksums. The backup isn't looked at: it is at the end of a disk,
// and an image may have something behind it.
func (i *inspection) gpt() (bool, error) {
	if len(i.head) < 2*diskSector || string(i.head[diskSector:diskSector+8]) != "EFI PART" {
		return false, nil
	}
	h := i.head[diskSector : 2*diskSector]
	size := binary.LittleEndian.Uint32(h[12:])
	if size < gptHeaderSize || size > diskSector {
		i.defect(diskSector+12, "the GPT's header has %d bytes, not %d", size, gptHeaderSize)
		return true, nil
	}
	sum := bytes.Clone(h[:size])
	clear(sum[16:20])
	want := binary.LittleEndian.Uint32(h[16:])
	if got := crc32.ChecksumIEEE(sum); got != want {
		i.defect(diskSector+16, "the CRC of the GPT's header is %#08x, its content has %#08x", want, got)
		return true, nil
	}
	at := int64(min(binary.LittleEndian.Uint64(h[72:]), 1<<50)) * diskSector
	count, entry := int64(binary.LittleEndian.Uint32(h[80:])), int64(binary.LittleEndian.Uint32(h[84:]))
	if entry < 128 || entry > 4096 || count*entry > maxGPTEntries {
		i.defect(diskSector+80, "the GPT has %d entries of %d bytes", count, entry)
		return true, nil
	}
	if i.outside(diskSector+72, at, count*entry, "the GPT's list of partitions") {
		return true, nil
	}
	entries := make([]byte, count*entry)
	if err := i.read(entries, at); err != nil {
		return true, err
	}
	want = binary.LittleEndian.Uint32(h[88:])
	if got := crc32.ChecksumIEEE(entries); got != want {
		i.defect(at, "the CRC of the GPT's partitions is %#08x, their content has %#08x", want, got)
		return true, nil
	}
	for ; int64(len(entries)) >= entry; entries = entries[entry:] {
		if string(entries[:16]) == efiSystem {
			start := int64(min(binary.LittleEndian.Uint64(entries[32:]), 1<<50)) * diskSector
			if err := i.efiPartition(start); err != nil {
				return true, err
			}
		}
	}
	return true, nil
}

// efiPartition looks for a boot loader in an EFI system partition.
func (i *inspection) efiPartition(start int64) error {
	var b [diskSector]byte
	if i.Hybrid || !i.has(start, diskSector) {
		return nil
	}
	if err := i.read(b[:], start); err != nil {
		return err
	}
	f, ok := readFAT(b[:], i.source, start)
	if !ok {
		return nil
	}
	loaders, err := i.bootLoaders(f)
	for _, name := range loaders {
		i.Hybrid = i.Hybrid || strings.HasPrefix(name, "EFI/BOOT/BOOT")
	}
	return err
}

// bootLoaders looks into a FAT file system, if it is one of the first few.
func (i *inspection) bootLoaders(f fat) ([]string, error) {
	if i.fats++; i.fats > maxFATs {
		return nil, nil
	}
	return f.bootLoaders()
}

// apm looks for an Apple partition map, whose driver descriptor may share its block with a master boot record.
func (i *inspection) apm() bool {
	if len(i.head) < applePartBlocks*diskSector || string(i.head[:2]) != appleDriver {
		return false
	}
	for n := 1; n < applePartBlocks; n++ {
		if string(i.head[n*diskSector:][:2]) == applePartition {
			return true
		}
	}
	return false
}
