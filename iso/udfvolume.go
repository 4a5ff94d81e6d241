package iso

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// Tag identifiers of ECMA-167 4/7.2.1 and 3/7.2.1, beside those that a probe needs.
const (
	tagIntegrity      = 9
	tagFileSet        = 256
	tagFileIdentifier = 257
	tagExtents        = 258
	tagFileEntry      = 261
	tagExtendedEntry  = 266
)

const (
	maxPartitionMaps = 8
	maxAnchorScan    = 300 // sectors behind the volume in which an anchor may be, when something was appended to it
)

// A udfVolume is a volume structure that was read as far as it can be.
type udfVolume struct {
	source
	sector    int64    // bytes
	anchors   int      // that are sound
	declared  int64    // bytes
	sequence  sequence // of which the partitions count
	primary   []byte   // descriptors; nil when there is none
	logical   []byte
	maps      []partitionMap
	truncated bool // the partition goes on behind the file
}

// noteFunc is told of a defect.
type noteFunc func(offset int64, fatal bool, text string)

// readUDFVolume reads what stands before any file: anchors, both volume descriptor sequences, partition maps. It is nil
// when nothing can be read of them.
func (s source) readUDFVolume(isoEnd int64, note noteFunc) (*udfVolume, error) {
	buf := make([]byte, headSize)
	a, err := findAnchor(s.r, s.size, buf)
	var damaged *DamagedError
	if errors.As(err, &damaged) {
		note(damaged.Offset, true, damaged.Defect)
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	v := &udfVolume{source: s, sector: a.sector, declared: max(a.main.end(), a.reserve.end(), a.at+a.sector)}
	for _, e := range []extent{a.main, a.reserve} {
		if err := v.readDescriptors(e, buf, note); err != nil {
			return nil, err
		}
	}
	for _, p := range v.sequence.partitions[:v.sequence.count] {
		v.declared = max(v.declared, p.extent.end())
	}
	v.truncated = v.declared > s.size
	if v.logical != nil {
		v.readMaps(note, a.main.start)
	}
	return v, v.checkAnchors(isoEnd, buf, note)
}

// readDescriptors reads one of the two copies of the sequence. What a first copy had stays.
func (v *udfVolume) readDescriptors(e extent, buf []byte, note noteFunc) error {
	var c sequenceCopy
	first, noted := e.start, false
	say := func(at int64, text string) {
		noted = true
		note(at, false, text)
	}
	// One pointer to a second extent is followed, as by a probe.
	for pointers := 0; e.length > 0; pointers++ {
		length := min(e.length, maxSequence)
		length -= length % v.sector
		if !v.has(e.start, length) {
			return nil // the file is truncated: the volume's size includes both copies
		}
		if length == 0 || pointers > maxPointers {
			say(e.start, "a volume descriptor sequence is scattered over too many extents")
			break
		}
		if err := v.read(buf[:length], e.start); err != nil {
			return err
		}
		e = c.take(buf[:length], e.start, v.sector, say)
	}
	if !noted && (c.logical == nil || c.sequence.count == 0) {
		say(first, "a copy of the volume descriptor sequence has no partition or no logical volume descriptor")
	}
	switch {
	case v.logical == nil || v.sequence.count == 0:
		v.primary, v.logical, v.sequence = c.primary, c.logical, c.sequence
	case !noted && !c.same(v):
		say(first, "the two copies of the volume descriptor sequence differ")
	}
	return nil
}

// A sequenceCopy is what one copy of the sequence says.
type sequenceCopy struct {
	sequence         sequence // of which the partitions count
	primary, logical []byte   // descriptors
}

// same says whether the copy describes the same volume: logical volume identifier, block size, partitions.
func (c *sequenceCopy) same(v *udfVolume) bool {
	if !bytes.Equal(c.logical[84:264], v.logical[84:264]) || c.sequence.count != v.sequence.count {
		return false
	}
	for i, p := range c.sequence.partitions[:c.sequence.count] {
		if p.extent != v.sequence.partitions[i].extent {
			return false
		}
	}
	return true
}

// take reads the descriptors in one extent, and returns the next one if there is a pointer to it.
func (c *sequenceCopy) take(text []byte, start, sector int64, say func(int64, string)) extent {
	for at := int64(0); at < int64(len(text)); at += sector {
		d := text[at : at+sector]
		tag := binary.LittleEndian.Uint16(d)
		if tag == 0 {
			break
		}
		err := checkTag(d, (start+at)/sector)
		if err == nil {
			switch tag {
			case tagPrimary:
				c.primary = bytes.Clone(d)
			case tagLogicalVolume:
				if err = c.sequence.setLogical(d, sector, start+at); err == nil {
					c.logical = bytes.Clone(d)
				}
			case tagPartition:
				err = c.sequence.addPartition(d, sector, start+at)
			case tagPointer:
				return readExtent(d[20:], sector)
			case tagTerminator:
				return extent{}
			}
		}
		var damaged *DamagedError
		switch {
		case errors.As(err, &damaged):
			say(start+at, damaged.Defect)
		case err != nil:
			say(start+at, fmt.Sprintf("descriptor with tag %d: %v", tag, err))
		}
	}
	return extent{}
}

// readMaps reads the partition maps of the logical volume descriptor (ECMA-167 3/10.7, UDF 2.2.8 to 2.2.10).
func (v *udfVolume) readMaps(note noteFunc, at int64) {
	table := v.logical[min(440, len(v.logical)):]
	table = table[:min(int64(len(table)), int64(binary.LittleEndian.Uint32(v.logical[264:])))]
	for len(table) >= 2 && len(v.maps) < maxPartitionMaps {
		length := int(table[1])
		if length < 6 || length > len(table) {
			break
		}
		m, ok := readPartitionMap(table[:length])
		if !ok {
			break
		}
		v.maps = append(v.maps, m)
		table = table[length:]
	}
	if want := int(binary.LittleEndian.Uint32(v.logical[268:])); want != len(v.maps) {
		note(at, false, fmt.Sprintf("the logical volume has %d partition maps, of which %d can be read", want, len(v.maps)))
	}
}

// checkAnchors counts the sound anchors. There should be two of those in sector 256, in the last, and 256 before that
// (UDF 2.2.3); ECMA-167 3/8.4.2.1 has sector 512 too, for media that were not closed. A volume to which was appended has
// its last sector somewhere else than at the file's end; isoEnd is where the ISO 9660 half of a bridge says that it ends.
func (v *udfVolume) checkAnchors(isoEnd int64, buf []byte, note noteFunc) error {
	seen := make(map[int64]bool)
	check := func(location int64) error {
		at := location * v.sector
		d := buf[:descriptorSize]
		if location < 16 || seen[location] || !v.has(at, descriptorSize) {
			return nil
		}
		seen[location] = true
		if err := v.read(d, at); err != nil || binary.LittleEndian.Uint16(d) != tagAnchor {
			return err
		}
		if err := checkTag(d, location); err != nil {
			note(at, false, fmt.Sprintf("the anchor in sector %d: %v", location, err))
			return nil
		}
		v.anchors++
		return nil
	}
	last, declared, isoLast := v.size/v.sector-1, v.declared/v.sector-1, isoEnd/v.sector-1
	for _, location := range []int64{256, 512, last, last - 256, declared, declared - 256, isoLast, isoLast - 256} {
		if err := check(location); err != nil {
			return err
		}
	}
	for location := declared + 1; v.anchors == 1 && location <= declared+maxAnchorScan; location++ {
		if err := check(location); err != nil {
			return err
		}
	}
	if v.anchors < 2 && !v.truncated && !v.hasMap("virtual") {
		note(256*v.sector, false, fmt.Sprintf("%d anchor of the UDF volume, where at least two of those in sector 256, in the last and 256 before that should be", v.anchors))
	}
	return nil
}

// hasMap says whether one of the partitions is of a kind.
func (v *udfVolume) hasMap(kind string) bool {
	for _, m := range v.maps {
		if m.kind == kind {
			return true
		}
	}
	return false
}

// revision is that of UDF by the domain identifier's suffix (UDF 2.1.5.3), or empty.
func (v *udfVolume) revision() string {
	if v.logical == nil || !bytes.HasPrefix(v.logical[217:], []byte("*OSTA UDF Compliant")) {
		return ""
	}
	n := binary.LittleEndian.Uint16(v.logical[240:])
	return fmt.Sprintf("%x.%02x", n>>8, n&0xff)
}

// implementation is the program that wrote the volume, by the primary volume descriptor's identifier (ECMA-167
// 3/10.1.21).
func (v *udfVolume) implementation() string {
	if v.primary == nil {
		return ""
	}
	return printable(string(bytes.TrimPrefix(bytes.TrimRight(v.primary[389:412], "\x00"), []byte("*"))))
}

// readTimestamp reads one of ECMA-167 1/7.3. Its offset from UTC is in minutes, -2047 for none.
func readTimestamp(b []byte) time.Time {
	offset := int(int16(binary.LittleEndian.Uint16(b)<<4)) >> 4
	zone := time.UTC
	if offset != 0 && offset >= -1440 && offset <= 1440 {
		zone = time.FixedZone("", offset*60)
	}
	year, month, day := int(int16(binary.LittleEndian.Uint16(b[2:]))), b[4], b[5]
	if year < 1 || year > 9999 || month < 1 || month > 12 || day < 1 || day > 31 || b[6] > 23 || b[7] > 59 || b[8] > 59 {
		return time.Time{}
	}
	return time.Date(year, time.Month(month), int(day), int(b[6]), int(b[7]), int(b[8]), int(min(b[9], 99))*int(10*time.Millisecond), zone)
}
