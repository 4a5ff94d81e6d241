package iso

import (
	"encoding/binary"
	"fmt"
	"io"
)

// Tag identifiers of ECMA-167 3/7.2.1.
const (
	tagPrimary       = 1
	tagAnchor        = 2
	tagPointer       = 3
	tagPartition     = 5
	tagLogicalVolume = 6
	tagTerminator    = 8
)

const (
	descriptorSize = 512 // of every descriptor that is read here (ECMA-167 3/10)
	tagSize        = 16

	// What is looked at, whatever the image says. UDF 2.2.3.1 asks for sequences of 16 sectors and has one or two
	// partitions in practice.
	maxSequence   = headSize // bytes of the first extent of a sequence
	maxNext       = 16 << 10 // bytes of an extent that the first one points to
	maxPointers   = 1
	maxPartitions = 4
)

// An extent is a run of bytes.
type extent struct{ start, length int64 }

func (e extent) end() int64 { return e.start + e.length }

// readExtent reads an extent descriptor: length in bytes, then location in sectors (ECMA-167 3/7.1).
func readExtent(b []byte, sector int64) extent {
	length := binary.LittleEndian.Uint32(b)
	return extent{int64(binary.LittleEndian.Uint32(b[4:])) * sector, int64(length)}
}

// An anchor is the anchor volume descriptor pointer: where the two copies of the sequence are (ECMA-167 3/10.2).
type anchor struct {
	at            int64
	sector        int64 // bytes
	main, reserve extent
}

// readUDF reads the volume structure. buf is scratch of headSize bytes.
func (i *Info) readUDF(r io.ReaderAt, buf []byte) error {
	a, err := findAnchor(r, i.Size, buf)
	if err != nil {
		return err
	}
	volume, err := readSequence(r, i.Size, a.main, a.sector, buf)
	if err != nil {
		// The copy is there for exactly this; but a disc of which neither is there is short, not damaged.
		var second error
		if volume, second = readSequence(r, i.Size, a.reserve, a.sector, buf); second != nil {
			if short := i.declare(max(a.main.end(), a.reserve.end())); short != nil {
				return short
			}
			return err
		}
	}
	declared := max(a.main.end(), a.reserve.end(), a.at+a.sector)
	for _, p := range volume.partitions[:volume.count] {
		declared = max(declared, p.extent.end())
	}
	if err := i.declare(declared); err != nil {
		return err
	}
	if i.VolumeID == "" {
		i.VolumeID = volume.name()
	}
	return nil
}

// findAnchor looks for the anchor where it may be: in sector 256, in the last, and 256 before that (ECMA-167 3/8.4.2.1,
// UDF 2.2.3). The sector size is the one with which an anchor is found in its place.
func findAnchor(r io.ReaderAt, size int64, buf []byte) (anchor, error) {
	d := buf[:descriptorSize]
	for place := range 3 {
		for _, sector := range [...]int64{2048, 512, 4096, 1024} {
			last := size/sector - 1
			location := [...]int64{256, last, last - 256}[place]
			at := location * sector
			if location < 0 || at+descriptorSize > size {
				continue
			}
			if err := readAt(r, d, at); err != nil {
				return anchor{}, err
			}
			if checkTag(d, location) == nil && binary.LittleEndian.Uint16(d) == tagAnchor {
				return anchor{at, sector, readExtent(d[16:], sector), readExtent(d[24:], sector)}, nil
			}
		}
	}
	return anchor{}, &DamagedError{"no anchor of the UDF volume, neither in sector 256 nor at the end (cut off?)", 256 * sectorSize}
}

// A sequence is what prevails of a volume descriptor sequence: of descriptors that say the same thing, the one with
// the highest number (ECMA-167 3/8.4.3).
type sequence struct {
	partitions [maxPartitions]partition
	count      int
	logical    [128]byte // logical volume identifier
	primary    [32]byte  // volume identifier
	hasLogical bool
	logicalSeq uint32
	pointers   int
	next       extent
}

type partition struct {
	number uint16
	seq    uint32
	extent extent
}

func (s *sequence) name() string {
	if name := dstring(s.logical[:]); name != "" {
		return name
	}
	return dstring(s.primary[:])
}

// readSequence reads the descriptors in e up to the terminator.
func readSequence(r io.ReaderAt, size int64, e extent, sector int64, buf []byte) (*sequence, error) {
	var s sequence
	for {
		s.next = extent{}
		if err := s.readExtent(r, size, e, sector, buf); err != nil {
			return nil, err
		}
		if s.next.length == 0 {
			break
		}
		if s.pointers++; s.pointers > maxPointers {
			return nil, &DamagedError{"the volume descriptor sequence is scattered over too many extents", e.start}
		}
		e = s.next
	}
	if s.count == 0 {
		return nil, &DamagedError{"the UDF volume has no partition descriptor", e.start}
	}
	if !s.hasLogical {
		return nil, &DamagedError{"the UDF volume has no logical volume descriptor", e.start}
	}
	return &s, nil
}

func (s *sequence) readExtent(r io.ReaderAt, size int64, e extent, sector int64, buf []byte) error {
	length := min(e.length, maxSequence)
	if s.pointers > 0 {
		length = min(length, maxNext)
	}
	length -= length % sector
	if length == 0 || e.start+length > size {
		return &DamagedError{"the volume descriptor sequence lies outside of the file", e.start}
	}
	text := buf[:length]
	if err := readAt(r, text, e.start); err != nil {
		return err
	}
	for at := int64(0); at < length; at += sector {
		d := text[at : at+sector]
		tag := binary.LittleEndian.Uint16(d)
		if tag == 0 { // an unrecorded sector ends the sequence as a terminator does (ECMA-167 3/8.4.2)
			return nil
		}
		if err := checkTag(d, (e.start+at)/sector); err != nil {
			return &DamagedError{fmt.Sprintf("descriptor with tag %d: %v", tag, err), e.start + at}
		}
		switch tag {
		case tagPrimary:
			copy(s.primary[:], d[24:56]) // ECMA-167 3/10.1.4
		case tagPointer:
			s.next = readExtent(d[20:], sector) // 3/10.3.3
			return nil
		case tagPartition:
			if err := s.addPartition(d, sector, e.start+at); err != nil {
				return err
			}
		case tagLogicalVolume:
			if err := s.setLogical(d, sector, e.start+at); err != nil {
				return err
			}
		case tagTerminator:
			return nil
		}
	}
	return nil
}

// addPartition takes a partition descriptor (ECMA-167 3/10.5): number at 22, start at 188 and length at 192 in sectors.
func (s *sequence) addPartition(d []byte, sector, at int64) error {
	p := partition{
		number: binary.LittleEndian.Uint16(d[22:]),
		seq:    binary.LittleEndian.Uint32(d[16:]),
		extent: extent{
			int64(binary.LittleEndian.Uint32(d[188:])) * sector,
			int64(binary.LittleEndian.Uint32(d[192:])) * sector,
		},
	}
	for i := range s.partitions[:s.count] {
		if s.partitions[i].number == p.number {
			if p.seq >= s.partitions[i].seq {
				s.partitions[i] = p
			}
			return nil
		}
	}
	if s.count == maxPartitions {
		return &DamagedError{fmt.Sprintf("the UDF volume has more than %d partitions", maxPartitions), at}
	}
	s.partitions[s.count] = p
	s.count++
	return nil
}

// setLogical takes a logical volume descriptor (ECMA-167 3/10.6): identifier at 84, logical block size at 212, which
// UDF 2.2.4.2 has equal to the sector.
func (s *sequence) setLogical(d []byte, sector, at int64) error {
	seq := binary.LittleEndian.Uint32(d[16:])
	if s.hasLogical && seq < s.logicalSeq {
		return nil
	}
	if block := binary.LittleEndian.Uint32(d[212:]); int64(block) != sector {
		return &DamagedError{fmt.Sprintf("the logical block size is %d, the sectors have %d", block, sector), at + 212}
	}
	s.hasLogical, s.logicalSeq = true, seq
	copy(s.logical[:], d[84:212])
	return nil
}
