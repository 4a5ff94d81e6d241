package iso

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// What an inspection reads of tables that may be of any size.
const (
	maxPathTable = 256 << 10 // bytes: about 10,000 directories
	maxRoot      = 512 << 10 // bytes: about 4,000 files with Rock Ridge
	dirBuffer    = 32 << 10
)

// eachVolume calls f for the volumes of the primary and of Joliet's descriptor.
func (i *inspection) eachVolume(f func(at int, whose string, v volume) error) error {
	for _, d := range []struct {
		at    int
		whose string
	}{{i.set.primary, ""}, {i.set.joliet, "Joliet's "}} {
		if d.at == 0 || d.at+sectorSize > len(i.head) {
			continue
		}
		if err := f(d.at, d.whose, readVolume(i.head[d.at:])); err != nil {
			return err
		}
	}
	return nil
}

// pathTables compares the two copies of each path table (ECMA-119 6.9, 9.4).
func (i *inspection) pathTables() error {
	var buf []byte
	return i.eachVolume(func(at int, whose string, v volume) error {
		if i.outside(int64(at+pvdPathL), v.pathL, v.pathSize, fmt.Sprintf("%spath table", whose)) ||
			v.pathM != 0 && i.outside(int64(at+pvdPathM), v.pathM, v.pathSize, fmt.Sprintf("%sbig-endian path table", whose)) {
			return nil
		}
		if v.pathSize < 10 {
			i.defect(int64(at+pvdPathTable), "%spath table of %d bytes doesn't list even the root", whose, v.pathSize)
			return nil
		}
		if buf == nil {
			buf = make([]byte, 2*min(maxPathTable, max(v.pathSize, 64<<10)))
		}
		half := len(buf) / 2
		n := int(min(int64(half), v.pathSize))
		l, m := buf[:n], buf[half:half+n]
		if err := i.read(l, v.pathL); err != nil {
			return err
		}
		if v.pathM == 0 {
			m = nil
		} else if err := i.read(m, v.pathM); err != nil {
			return err
		}
		if root := int64(binary.LittleEndian.Uint32(l[2:])); root*v.block != v.root.start-int64(i.head[at+pvdRoot+1])*v.block {
			i.defect(v.pathL, "%spath table has the root in block %d, the descriptor in %d", whose, root, v.root.start/v.block)
		}
		if where, what := comparePathTables(l, m, n < int(v.pathSize)); what != "" {
			i.defect(v.pathL+int64(where), "%spath table: %s", whose, what)
		}
		return nil
	})
}

// comparePathTables walks over a path table and, if there is one, its copy in the other byte order. It returns the
// first thing that is wrong and where. A table that was cut may end in the middle of an entry.
func comparePathTables(l, m []byte, cut bool) (int, string) {
	for at, number := 0, 1; at < len(l); number++ {
		size := 8 + int(l[at]) + int(l[at])%2
		if l[at] == 0 || at+8+int(l[at]) > len(l) {
			if cut {
				return 0, ""
			}
			return at, fmt.Sprintf("entry %d doesn't fit", number)
		}
		e := l[at : at+8+int(l[at])]
		if parent := int(binary.LittleEndian.Uint16(e[6:])); parent == 0 || parent > number {
			return at, fmt.Sprintf("entry %d has parent %d, which doesn't stand before it", number, parent)
		}
		if m != nil {
			o := m[at:min(at+len(e), len(m))]
			if len(o) < len(e) || e[0] != o[0] || e[1] != o[1] || !bytes.Equal(e[8:], o[8:]) ||
				binary.LittleEndian.Uint32(e[2:]) != binary.BigEndian.Uint32(o[2:]) ||
				binary.LittleEndian.Uint16(e[6:]) != binary.BigEndian.Uint16(o[6:]) {
				return at, fmt.Sprintf("entry %d differs from the big-endian one", number)
			}
		}
		at += size
	}
	return 0, ""
}

// rootDirectory checks the records of the root directories and looks for Rock Ridge in the first.
func (i *inspection) rootDirectory() error {
	buf := make([]byte, dirBuffer)
	return i.eachVolume(func(at int, whose string, v volume) error {
		if i.outside(int64(at+pvdRoot), v.root.start, v.root.length, whose+"root directory") {
			return nil
		}
		if v.root.length == 0 {
			i.defect(int64(at+pvdRoot+10), "%sroot directory is empty: it lists not even itself", whose)
			return nil
		}
		first, susp := true, error(nil)
		e := extent{v.root.start, min(v.root.length, maxRoot)}
		err := i.records(e, v.block, buf, func(at int64, r record) bool {
			if first {
				if r.name[0] != 0 || r.extent != v.root {
					i.defect(at, "%sroot directory's first record isn't of itself", whose)
				}
				if whose == "" {
					i.RockRidge, susp = i.rockRidge(r, v.block)
				}
			}
			first = false
			i.checkRecord(at, whose, r)
			return susp == nil && len(i.Defects) < maxDefects
		})
		var damaged *DamagedError
		if errors.As(err, &damaged) {
			i.defect(damaged.Offset, "%sroot directory: %s", whose, damaged.Defect)
			err = nil
		}
		return errors.Join(err, susp)
	})
}

// checkRecord checks a record of a root directory that begins at the offset.
func (i *inspection) checkRecord(at int64, whose string, r record) {
	for _, f := range []struct {
		at, size int
		what     string
	}{{2, 4, "location"}, {10, 4, "size"}, {28, 2, "volume sequence number"}} {
		if same, little, big := orders(r.raw[f.at:], f.size); !same {
			i.defect(at+int64(f.at), "the two byte orders of the %s of %s in %sroot directory disagree: %d and %d",
				f.what, recordName(r), whose, little, big)
			return
		}
	}
	if r.extent.length > 0 && !r.special() {
		i.outside(at, r.extent.start, r.extent.length, fmt.Sprintf("%s in %sroot directory", recordName(r), whose))
	}
}

func recordName(r record) string {
	if r.special() {
		return []string{`"."`, `".."`}[r.name[0]]
	}
	return fmt.Sprintf("%q", printable(string(r.name)))
}
