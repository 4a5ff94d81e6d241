package iso

import (
	"encoding/binary"
	"fmt"
)

// A record is one of a directory (ECMA-119 9.1).
type record struct {
	extent     extent // where the content is, behind an extended attribute record
	flags      byte
	interleave bool
	date       []byte
	name       []byte
	systemUse  []byte // what SUSP and others keep behind the name
	raw        []byte
}

// Flags of a record (9.1.6).
const (
	flagHidden    = 1 << 0
	flagDirectory = 1 << 1
	flagMore      = 1 << 7 // the file goes on in the next record
)

const minRecord = 34

// readRecord reads the record that begins b; b is the rest of its sector, which it may not leave (6.8.1.1).
func readRecord(b []byte, block int64) (record, error) {
	length := int(b[0])
	if length < minRecord || length > len(b) {
		return record{}, fmt.Errorf("a directory record of %d bytes, where at least %d and at most %d are", length, minRecord, len(b))
	}
	b = b[:length]
	end := 33 + int(b[32])
	if b[32] == 0 || end > length {
		return record{}, fmt.Errorf("a name of %d bytes in a directory record of %d", b[32], length)
	}
	r := record{
		extent: extent{
			(int64(binary.LittleEndian.Uint32(b[2:])) + int64(b[1])) * block,
			int64(binary.LittleEndian.Uint32(b[10:])),
		},
		flags:      b[25],
		interleave: b[26] != 0,
		date:       b[18:25],
		name:       b[33:end],
		raw:        b,
	}
	if b[32]%2 == 0 {
		end++ // padding
	}
	r.systemUse = b[min(end, length):]
	return r, nil
}

// special says whether the record is the directory itself or its parent.
func (r record) special() bool { return len(r.name) == 1 && r.name[0] < 2 }

// records calls visit for every record of the directory in e, with its offset, until that is false. buf is scratch of
// a multiple of sectorSize bytes; records are valid until visit returns. A *DamagedError is of the directory.
func (s source) records(e extent, block int64, buf []byte, visit func(at int64, r record) bool) error {
	for done := int64(0); done < e.length; done += int64(len(buf)) {
		part := buf[:min(int64(len(buf)), e.length-done)]
		if !s.has(e.start+done, int64(len(part))) {
			return &DamagedError{"a directory lies outside of the file", e.start}
		}
		if err := s.read(part, e.start+done); err != nil {
			return err
		}
		for at := 0; at < len(part); {
			sector := part[at:min(at-at%sectorSize+sectorSize, len(part))]
			if sector[0] == 0 { // nothing more in this sector
				at += len(sector)
				continue
			}
			offset := e.start + done + int64(at)
			r, err := readRecord(sector, block)
			if err != nil {
				return &DamagedError{err.Error(), offset}
			}
			if !visit(offset, r) {
				return nil
			}
			at += len(r.raw)
		}
	}
	return nil
}
