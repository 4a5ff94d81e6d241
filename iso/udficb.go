package iso

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"time"
)

// File types of an ICB (ECMA-167 4/14.6.6, UDF 2.2.11).
const (
	fileDirectory = 4
	fileLink      = 12
	fileVAT       = 248
	fileVAT150    = 0 // of UDF 1.50, which any file may have that isn't described
)

// What is followed of one file's allocation descriptors.
const (
	maxRuns    = 32 << 10
	maxChained = 512 // extents of allocation descriptors
)

// An icb is what is read of a file entry (ECMA-167 4/14.9) or an extended one (4/14.17).
type icb struct {
	at          place
	offset      int64 // bytes
	kind        byte
	allocation  uint16 // how the content is described: 0 short, 1 long, 3 inside
	length      int64
	mode        fs.FileMode
	modified    time.Time
	descriptors extent // of the content, or the content itself
}

// readICB reads a file entry. A *DamagedError is of it.
func (t *udfTree) readICB(p place) (icb, error) {
	e, err := t.locate(p, t.sector)
	if err != nil {
		return icb{}, err
	}
	damaged := func(format string, args ...any) (icb, error) {
		return icb{}, &DamagedError{fmt.Sprintf(format, args...), e.start}
	}
	if e.length < t.sector {
		return damaged("a file entry is cut by its partition")
	}
	if err := t.charge(t.sector); err != nil {
		return icb{}, err
	}
	d := t.block[:t.sector]
	if err := t.read(d, e.start); err != nil {
		return icb{}, err
	}
	if err := checkTag(d, int64(p.block)); err != nil {
		return damaged("a file entry: %v", err)
	}
	i := icb{
		at: p, offset: e.start,
		kind:       d[27],
		allocation: binary.LittleEndian.Uint16(d[34:]) & 7,
		length:     int64(binary.LittleEndian.Uint64(d[56:])),
		mode:       udfMode(binary.LittleEndian.Uint32(d[44:])),
	}
	var head, attributes, descriptors int64
	switch tag := binary.LittleEndian.Uint16(d); tag {
	case tagFileEntry:
		i.modified = readTimestamp(d[84:])
		head, attributes, descriptors = 176, int64(binary.LittleEndian.Uint32(d[168:])), int64(binary.LittleEndian.Uint32(d[172:]))
	case tagExtendedEntry:
		i.modified = readTimestamp(d[92:])
		head, attributes, descriptors = 216, int64(binary.LittleEndian.Uint32(d[208:])), int64(binary.LittleEndian.Uint32(d[212:]))
	default:
		return damaged("a descriptor with tag %d where a file entry should be", tag)
	}
	if head+attributes+descriptors > t.sector || i.length < 0 {
		return damaged("a file entry that is larger than its block")
	}
	if strategy := binary.LittleEndian.Uint16(d[20:]); strategy != 4 {
		return icb{}, &unsupportedError{fmt.Sprintf("a file entry with strategy %d", strategy)}
	}
	i.descriptors = extent{e.start + head + attributes, descriptors}
	switch i.kind {
	case fileDirectory:
		i.mode |= fs.ModeDir
	case fileLink:
		i.mode |= fs.ModeSymlink
	}
	return i, nil
}

// udfMode takes the permissions of others, group and owner, of five bits each: execute, write, read (4/14.9.5).
func udfMode(p uint32) fs.FileMode {
	return fs.FileMode(p&7 | p>>5&7<<3 | p>>10&7<<6)
}

// pieces reads the allocation descriptors of a file (4/14.14).
func (t *udfTree) pieces(i icb) ([]piece, error) {
	size := int64(8)
	switch i.allocation {
	case 3:
		return []piece{{extent: extent{i.descriptors.start, min(i.length, i.descriptors.length)}}}, nil
	case 1:
		size = 16
	case 0:
	default:
		return nil, &unsupportedError{"a file with extended allocation descriptors"}
	}
	var pieces []piece
	left := i.length
	buf := make([]byte, t.sector)
	for hops, list := 0, i.descriptors; list.length >= size && left > 0; hops++ {
		if hops > maxChained {
			return nil, &DamagedError{"a file's allocation descriptors are scattered over too many extents", i.offset}
		}
		b := buf[:min(list.length, t.sector)]
		if err := t.charge(t.sector); err != nil {
			return nil, err
		}
		if err := t.read(b, list.start); err != nil {
			return nil, err
		}
		list = extent{}
		for ; int64(len(b)) >= size && left > 0; b = b[size:] {
			head := binary.LittleEndian.Uint32(b)
			length, kind := int64(head&(1<<30-1)), head>>30
			if length == 0 {
				left = 0
				break
			}
			p := place{binary.LittleEndian.Uint32(b[4:]), i.at.partition}
			if size == 16 {
				p.partition = binary.LittleEndian.Uint16(b[8:])
			}
			if kind == 3 { // the rest of the descriptors are in an extent of their own
				var err error
				if list, err = t.moreDescriptors(p); err != nil {
					return nil, err
				}
				break
			}
			length = min(length, left)
			left -= length
			if kind != 0 { // allocated but not recorded, or neither
				pieces = append(pieces, piece{extent{0, length}, true})
			}
			for kind == 0 && length > 0 {
				e, err := t.locate(p, length)
				if err != nil {
					return nil, err
				}
				pieces = append(pieces, piece{extent: e})
				length -= e.length
				p.block += uint32((e.length + t.sector - 1) / t.sector)
				if len(pieces) > maxRuns {
					break
				}
			}
			if len(pieces) > maxRuns {
				return nil, &DamagedError{fmt.Sprintf("a file in more than %d pieces", maxRuns), i.offset}
			}
		}
	}
	return pieces, nil
}

// moreDescriptors reads the head of an allocation extent descriptor (4/14.5) and says where its descriptors are.
func (t *udfTree) moreDescriptors(p place) (extent, error) {
	e, err := t.locate(p, t.sector)
	if err != nil {
		return extent{}, err
	}
	var d [24]byte
	if err := t.read(d[:], e.start); err != nil {
		return extent{}, err
	}
	if binary.LittleEndian.Uint16(d[:]) != tagExtents {
		return extent{}, &DamagedError{"no allocation extent descriptor where one should be", e.start}
	}
	return extent{e.start + 24, min(int64(binary.LittleEndian.Uint32(d[20:])), t.sector-24)}, nil
}
