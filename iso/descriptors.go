package iso

import (
	"bytes"
	"encoding/binary"
	"time"
	"unicode/utf16"
)

// Types of ISO 9660 volume descriptors (ECMA-119 8.1.1).
const (
	typeBoot          = 0
	typePrimary       = 1
	typeSupplementary = 2
	typeTerminator    = 255
)

// A descriptorSet is where the descriptors behind the system area are: byte offsets, 0 for none. Unlike recognize it
// takes what it can get of a damaged set.
type descriptorSet struct {
	primary  int
	joliet   int
	enhanced int // a supplementary descriptor of version 2 (ECMA-119, 4th edition, 8.5)
	boot     int // El Torito's boot record
	nsr      bool
	end      int // where the ISO 9660 descriptors ended
}

func scanDescriptors(head []byte) descriptorSet {
	s := descriptorSet{end: systemArea}
	terminated := false
	for offset := systemArea; offset+7 <= len(head); offset += sectorSize {
		d := head[offset:min(offset+sectorSize, len(head))]
		switch string(d[1:6]) {
		case "CD001":
			if terminated {
				continue
			}
			s.end = offset + sectorSize
			switch {
			case d[0] == typePrimary && s.primary == 0:
				s.primary = offset
			case d[0] == typeTerminator:
				terminated = true
			case len(d) < sectorSize:
			case d[0] == typeBoot && s.boot == 0 && bytes.HasPrefix(d[7:], []byte("EL TORITO SPECIFICATION")):
				s.boot = offset
			case d[0] == typeSupplementary && d[6] == 2 && s.enhanced == 0:
				s.enhanced = offset
			case d[0] == typeSupplementary && d[6] == 1 && isJoliet(d) && s.joliet == 0:
				s.joliet = offset
			}
		case "NSR02", "NSR03":
			s.nsr = true
		}
	}
	return s
}

func (s descriptorSet) format() Format {
	switch {
	case s.primary > 0 && s.nsr:
		return Bridge
	case s.nsr:
		return UDF
	}
	return ISO9660
}

// isJoliet knows the escape sequences of UCS-2, levels 1 to 3 (Joliet specification, "SVD Escape Sequences Field").
func isJoliet(d []byte) bool {
	escape := string(d[88:91])
	return escape == "%/@" || escape == "%/C" || escape == "%/E"
}

// Positions in the primary and the supplementary descriptors beside those that a probe reads (ECMA-119 8.4).
const (
	pvdSetSize     = 120 // both byte orders, 8.4.10
	pvdSequence    = 124 // both byte orders, 8.4.11
	pvdPathL       = 140 // block of the path table in little-endian order, 8.4.14
	pvdPathM       = 148 // and in big-endian order, 8.4.16
	pvdPublisher   = 318 // 128 bytes, 8.4.20
	pvdPreparer    = 446
	pvdApplication = 574
	pvdCreated     = 813 // 17 bytes, 8.4.26
	pvdModified    = 830
	dateSize       = 17
)

// A volume is what a primary or supplementary descriptor says of where things are.
type volume struct {
	block    int64 // bytes
	pathSize int64
	pathL    int64 // bytes from the beginning of the image
	pathM    int64
	root     extent
}

func readVolume(d []byte) volume {
	block := int64(binary.LittleEndian.Uint16(d[pvdBlockSize:]))
	at := func(n uint32) int64 { return int64(n) * block }
	root := d[pvdRoot:pvdRootEnd]
	return volume{
		block:    block,
		pathSize: int64(binary.LittleEndian.Uint32(d[pvdPathTable:])),
		pathL:    at(binary.LittleEndian.Uint32(d[pvdPathL:])),
		pathM:    at(binary.BigEndian.Uint32(d[pvdPathM:])),
		root: extent{
			// An extended attribute record may stand before the directory (9.1.2).
			at(binary.LittleEndian.Uint32(root[2:])) + at(uint32(root[1])),
			int64(binary.LittleEndian.Uint32(root[10:])),
		},
	}
}

// readDate reads a date and time in digits with the offset from UTC in quarters of an hour (ECMA-119 8.4.26.1). Zero is
// what isn't recorded, or no date.
func readDate(b []byte) time.Time {
	digits := func(from, to int) int {
		n := 0
		for _, c := range b[from:to] {
			if c < '0' || c > '9' {
				return -1
			}
			n = n*10 + int(c-'0')
		}
		return n
	}
	year, month, day := digits(0, 4), digits(4, 6), digits(6, 8)
	hour, minute, second, hundredths := digits(8, 10), digits(10, 12), digits(12, 14), digits(14, 16)
	if year < 1 || month < 1 || month > 12 || day < 1 || day > 31 ||
		hour < 0 || hour > 23 || minute < 0 || minute > 59 || second < 0 || second > 59 || hundredths < 0 {
		return time.Time{}
	}
	return time.Date(year, time.Month(month), day, hour, minute, second, hundredths*int(10*time.Millisecond), zone(b[16]))
}

// zone is that of a signed number of quarters of an hour, of -48 to 52 (ECMA-119 8.4.26.1); anything else is UTC.
func zone(quarters byte) *time.Location {
	n := int(int8(quarters))
	if n == 0 || n < -48 || n > 52 {
		return time.UTC
	}
	return time.FixedZone("", n*15*60)
}

// readRecordDate reads the seven bytes of a directory record (ECMA-119 9.1.5).
func readRecordDate(b []byte) time.Time {
	if b[1] < 1 || b[1] > 12 || b[2] < 1 || b[2] > 31 {
		return time.Time{}
	}
	return time.Date(1900+int(b[0]), time.Month(b[1]), int(b[2]), int(b[3]), int(b[4]), int(b[5]), 0, zone(b[6]))
}

// ucs2 reads Joliet's characters: two bytes each, the high one first.
func ucs2(b []byte) string {
	units := make([]uint16, 0, len(b)/2)
	for ; len(b) >= 2; b = b[2:] {
		units = append(units, binary.BigEndian.Uint16(b))
	}
	return string(utf16.Decode(units))
}
