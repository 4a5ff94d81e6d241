package iso

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

// A partitionMap says how the blocks of a partition of the logical volume are found.
type partitionMap struct {
	kind   string // "physical", "virtual", "sparable" or "metadata"
	number uint16 // of the partition descriptor
	file   uint32 // block of a metadata partition's file
	mirror uint32 // and of its copy
	tables []uint32
	blocks []uint32 // of a virtual partition, once read: the block of each
	pieces []piece  // of a metadata partition, once read
}

func readPartitionMap(b []byte) (partitionMap, bool) {
	if b[0] == 1 {
		return partitionMap{kind: "physical", number: binary.LittleEndian.Uint16(b[4:])}, true
	}
	if b[0] != 2 || len(b) < 64 {
		return partitionMap{}, false
	}
	m := partitionMap{number: binary.LittleEndian.Uint16(b[38:])}
	switch id := b[5:28]; {
	case bytes.HasPrefix(id, []byte("*UDF Virtual Partition")):
		m.kind = "virtual"
	case bytes.HasPrefix(id, []byte("*UDF Sparable Partition")):
		m.kind = "sparable"
		for n := range min(int(b[42]), 4) {
			m.tables = append(m.tables, binary.LittleEndian.Uint32(b[48+4*n:]))
		}
	case bytes.HasPrefix(id, []byte("*UDF Metadata Partition")):
		m.kind = "metadata"
		m.file, m.mirror = binary.LittleEndian.Uint32(b[40:]), binary.LittleEndian.Uint32(b[44:])
	default:
		return partitionMap{}, false
	}
	return m, true
}

// A place is a block of a partition of the logical volume (ECMA-167 4/7.1).
type place struct {
	block     uint32
	partition uint16
}

func (p place) id() uint64 { return uint64(p.partition)<<32 | uint64(p.block) }

// A piece is one of a file's content: bytes of the image, or zeroes that aren't recorded.
type piece struct {
	extent
	zeroes bool
}

// locate says where n bytes from a place on are. They are in one piece but in a metadata partition; there the answer
// may be shorter.
func (v *udfVolume) locate(p place, n int64) (extent, error) {
	if int(p.partition) >= len(v.maps) {
		return extent{}, &DamagedError{fmt.Sprintf("block %d of partition %d, which the volume hasn't", p.block, p.partition), 0}
	}
	m := &v.maps[p.partition]
	block := int64(p.block)
	switch m.kind {
	case "virtual":
		if block >= int64(len(m.blocks)) || m.blocks[block] == 0xffffffff {
			return extent{}, &DamagedError{fmt.Sprintf("block %d isn't in the virtual allocation table", p.block), 0}
		}
		block = int64(m.blocks[block])
		n = min(n, v.sector)
	case "metadata":
		from := block * v.sector
		for _, r := range m.pieces {
			if from < r.length && !r.zeroes {
				return extent{r.start + from, min(n, r.length-from)}, nil
			}
			from -= r.length
			if from < 0 {
				break
			}
		}
		return extent{}, &DamagedError{fmt.Sprintf("block %d isn't in the metadata file", p.block), 0}
	}
	for _, d := range v.sequence.partitions[:v.sequence.count] {
		if d.number == m.number {
			e := extent{d.extent.start + block*v.sector, n}
			if e.end() > d.extent.end() || !v.has(e.start, n) {
				return extent{}, &DamagedError{fmt.Sprintf("block %d lies outside of its partition or of the file", p.block), e.start}
			}
			return e, nil
		}
	}
	return extent{}, &DamagedError{fmt.Sprintf("no descriptor of partition %d", m.number), 0}
}

// maxTable is how much is read of a virtual allocation table: 131,072 blocks.
const maxTable = 512 << 10

// loadMaps reads what virtual and metadata partitions are made of.
func (t *udfTree) loadMaps() error {
	for n := range t.maps {
		m := &t.maps[n]
		physical := uint16(n)
		for k, other := range t.maps {
			if other.kind == "physical" && other.number == m.number || other.kind == "sparable" && other.number == m.number {
				physical = uint16(k)
			}
		}
		var err error
		switch m.kind {
		case "metadata":
			err = t.loadMetadata(m, physical)
		case "virtual":
			err = t.loadVirtual(m, physical)
		case "sparable":
			err = t.checkSparing(m)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (t *udfTree) loadMetadata(m *partitionMap, physical uint16) error {
	if m.kind == t.maps[physical].kind {
		return &DamagedError{"a metadata partition without the partition that it is in", 0}
	}
	i, err := t.readICB(place{m.file, physical})
	if err == nil {
		m.pieces, err = t.pieces(i)
	}
	if err != nil {
		if i, err = t.readICB(place{m.mirror, physical}); err == nil {
			m.pieces, err = t.pieces(i)
		}
	}
	return err
}

// loadVirtual finds the virtual allocation table: its ICB is the last block that was written (UDF 2.2.11). That is
// the last of the file or shortly before, when the file is a copy of the medium; a file that tools made for a medium
// still to be filled has it somewhere at the beginning of the partition.
func (t *udfTree) loadVirtual(m *partitionMap, physical uint16) error {
	if m.kind == t.maps[physical].kind {
		return &DamagedError{"a virtual partition without the partition that it is in", 0}
	}
	base, err := t.locate(place{0, physical}, t.sector)
	if err != nil {
		return err
	}
	last := (t.size - base.start) / t.sector
	var candidates []int64
	for _, back := range []int64{1, 3, 151, 153} { // run-out blocks; as Linux looks for it
		candidates = append(candidates, last-back)
	}
	for block := min(last, 512) - 1; block >= 0; block-- {
		candidates = append(candidates, block)
	}
	for _, block := range candidates {
		if block < 0 || block > 1<<32-1 {
			continue
		}
		i, err := t.readICB(place{uint32(block), physical})
		if err != nil || i.kind != fileVAT && i.kind != fileVAT150 {
			continue
		}
		if found, err := t.readVAT(m, i); found || err != nil {
			return err
		}
	}
	return &unsupportedError{"a disc that isn't closed, whose virtual allocation table isn't at its end,"}
}

// readVAT takes the table in a file: behind a header that says how long it is, or in UDF 1.50 before an identifier and
// the previous table's place (UDF 1.50, 2.2.10). It says whether it is one.
func (t *udfTree) readVAT(m *partitionMap, i icb) (bool, error) {
	const trailer, identifier = 36, "*UDF Virtual Alloc Tbl"
	pieces, err := t.pieces(i)
	if err != nil || i.length < 4 || i.length > maxTable {
		return false, err
	}
	table := make([]byte, i.length)
	if _, err := io.ReadFull(&content{source: t.source, pieces: pieces, size: i.length}, table); err != nil {
		return false, err
	}
	if i.kind == fileVAT {
		table = table[min(int(binary.LittleEndian.Uint16(table)), len(table)):]
	} else {
		end := len(table) - trailer
		if end < 0 || !bytes.HasPrefix(table[end+1:], []byte(identifier)) {
			return false, nil
		}
		table = table[:end]
	}
	for ; len(table) >= 4; table = table[4:] {
		m.blocks = append(m.blocks, binary.LittleEndian.Uint32(table))
	}
	return true, nil
}

// checkSparing refuses a rewritable disc of which packets were replaced (UDF 2.2.12): images of such are not known.
func (t *udfTree) checkSparing(m *partitionMap) error {
	d := make([]byte, t.sector)
	for _, block := range m.tables {
		at := int64(block) * t.sector
		if !t.has(at, t.sector) {
			continue
		}
		if err := t.read(d, at); err != nil {
			return err
		}
		count := min(int(binary.LittleEndian.Uint16(d[48:])), (len(d)-56)/8)
		for n := range count {
			if packet := binary.LittleEndian.Uint32(d[56+8*n:]); packet != 0 && packet < 0xfffffff0 {
				return &unsupportedError{"a disc with replaced packets"}
			}
		}
		return nil
	}
	return nil
}
