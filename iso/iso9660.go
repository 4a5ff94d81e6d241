package iso

import (
	"encoding/binary"
	"fmt"
)

// Positions in the primary volume descriptor (ECMA-119 8.4, counted from 0).
const (
	pvdVersion   = 6
	pvdVolumeID  = 40  // 32 bytes, 8.4.6
	pvdSpaceSize = 80  // blocks, both byte orders, 8.4.8
	pvdBlockSize = 128 // bytes, both byte orders, 8.4.12
	pvdPathTable = 132 // bytes, both byte orders, 8.4.13
	pvdRoot      = 156 // a directory record, 8.4.18 and 9.1
	pvdRootEnd   = 190
)

// readPrimary reads the primary volume descriptor at offset. Of a descriptor that the file cuts it reads what is
// there.
func (i *Info) readPrimary(head []byte, offset int) error {
	d := head[offset:min(offset+sectorSize, len(head))]
	damaged := func(at int, format string, args ...any) error {
		return &DamagedError{Defect: fmt.Sprintf(format, args...), Offset: int64(offset + at)}
	}
	if len(d) < pvdPathTable {
		return damaged(0, "the file ends inside the primary volume descriptor")
	}
	if d[pvdVersion] != 1 {
		return damaged(pvdVersion, "the primary volume descriptor has version %d, not 1", d[pvdVersion])
	}
	blocks, ok := both32(d[pvdSpaceSize:])
	if !ok {
		return damaged(pvdSpaceSize, "the two byte orders of the volume space size disagree")
	}
	block, ok := both16(d[pvdBlockSize:])
	if !ok {
		return damaged(pvdBlockSize, "the two byte orders of the logical block size disagree")
	}
	// A power of two, at least 512 and at most a sector (6.2.2).
	if block != 512 && block != 1024 && block != 2048 {
		return damaged(pvdBlockSize, "the logical block size is %d, not 512, 1024 or 2048", block)
	}
	declared := int64(blocks) * int64(block)
	if end := int64(offset) + sectorSize; declared < end {
		return damaged(pvdSpaceSize, "the volume space size is %d bytes, its own descriptor ends at %d", declared, end)
	}
	if err := i.declare(declared); err != nil {
		return err
	}
	if _, ok := both32(d[pvdPathTable:]); !ok {
		return damaged(pvdPathTable, "the two byte orders of the path table size disagree")
	}
	root := d[pvdRoot:pvdRootEnd]
	if root[0] != 34 {
		return damaged(pvdRoot, "the root directory's record has %d bytes, not 34", root[0])
	}
	if _, ok := both32(root[2:]); !ok {
		return damaged(pvdRoot+2, "the two byte orders of the root directory's location disagree")
	}
	if _, ok := both32(root[10:]); !ok {
		return damaged(pvdRoot+10, "the two byte orders of the root directory's size disagree")
	}
	i.VolumeID = printable(string(d[pvdVolumeID : pvdVolumeID+32]))
	return nil
}

// both32 reads a number recorded in both byte orders (ECMA-119 7.3.3) and says whether they agree.
func both32(b []byte) (uint32, bool) {
	n := binary.LittleEndian.Uint32(b)
	return n, n == binary.BigEndian.Uint32(b[4:])
}

// both16 is both32 for 16 bits (ECMA-119 7.2.3).
func both16(b []byte) (uint16, bool) {
	n := binary.LittleEndian.Uint16(b)
	return n, n == binary.BigEndian.Uint16(b[2:])
}
