package disk

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"io"
)

// probeRaw takes a file for a raw disk image that has a partition table. Without one
// nothing tells it from any other file.
func probeRaw(r io.ReaderAt, size int64) (Info, error) {
	info := Info{Format: Raw, VirtualSize: size}
	head := make([]byte, sector)
	n, err := read(r, size, head, 0)
	if err != nil {
		return info, err
	}
	none := refuse(NotADisk, "give a qcow2 image, or a raw one with an MBR or a GPT", "it is no disk image: it has neither qcow2's header nor a partition table")
	if n < sector || head[510] != 0x55 || head[511] != 0xaa {
		return Info{}, none
	}
	parts, ok := mbr(head)
	if !ok {
		return Info{}, none
	}
	info.Table = MBR
	end := int64(0) // of what the table speaks of, in sectors
	for _, p := range parts {
		if p.kind == protective {
			info.Table = GPT
		}
		end = max(end, p.start+p.length)
	}
	if info.Table == GPT { // the protective partition may say more than there is (UEFI 5.2.3)
		end, err = gptEnd(r, size)
		if err != nil {
			return info, err
		}
	}
	switch {
	case end*sector > size:
		return info, cutOff("what its partition table speaks of", end*sector, size)
	case size%sector != 0:
		return info, refuse(CutOff, "get it again and compare its checksum", "it is cut off: it has %d bytes, and a disk has whole sectors of 512", size)
	case size > MaxVirtualSize:
		return info, refuse(BadSize, "give an image of a disk that has between a sector and 64 TiB", "its disk has %d bytes", size)
	}
	return info, nil
}

// partition is an entry of an MBR, in sectors.
type partition struct {
	kind          byte
	start, length int64
}

// protective is the kind of the partition that stands for a GPT.
const protective = 0xee

// mbr reads the four entries. A boot sector of a file system ends in 55AA as well, and has
// code where they would be: at least one has to be there, and each that is has to make sense.
func mbr(head []byte) (parts []partition, ok bool) {
	for at := 446; at < 510; at += 16 {
		e := head[at : at+16]
		if bytes.Equal(e, make([]byte, 16)) {
			continue
		}
		p := partition{kind: e[4], start: int64(binary.LittleEndian.Uint32(e[8:])), length: int64(binary.LittleEndian.Uint32(e[12:]))}
		if e[0]&0x7f != 0 || p.kind == 0 || p.start == 0 || p.length == 0 {
			return nil, false
		}
		for _, other := range parts {
			if p.start < other.start+other.length && other.start < p.start+p.length {
				return nil, false
			}
		}
		parts = append(parts, p)
	}
	return parts, len(parts) > 0
}

// gptEnd is where the disk of a GPT ends at least, in sectors of 512 bytes: behind its
// second header. Sectors of 4096 bytes are tried, too.
func gptEnd(r io.ReaderAt, size int64) (int64, error) {
	for _, unit := range []int64{sector, 4096} {
		h := make([]byte, sector)
		n, err := read(r, size, h, unit)
		if err != nil {
			return 0, err
		}
		if n < len(h) || !bytes.HasPrefix(h, []byte("EFI PART")) {
			continue
		}
		length := binary.LittleEndian.Uint32(h[12:])
		if length < 92 || length > sector {
			return 0, gptDamaged("its GPT says that it has %d bytes", length)
		}
		sum := binary.LittleEndian.Uint32(h[16:])
		copy(h[16:20], make([]byte, 4))
		if crc32.ChecksumIEEE(h[:length]) != sum || binary.LittleEndian.Uint64(h[24:]) != 1 {
			return 0, gptDamaged("its GPT's checksum is wrong")
		}
		last := max(binary.LittleEndian.Uint64(h[32:]), binary.LittleEndian.Uint64(h[48:]))
		if last >= 1<<53 {
			return 0, gptDamaged("its GPT speaks of sector %d", last)
		}
		return (int64(last) + 1) * (unit / sector), nil
	}
	return 0, gptDamaged("its MBR says that there is a GPT, and there is none")
}

func gptDamaged(format string, args ...any) *Error {
	return refuse(Damaged, "`sgdisk --verify` says more; a disk whose table was repaired can be taken", format, args...)
}
