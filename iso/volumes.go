package iso

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"unicode/utf8"
)

// primaryVolume checks the primary volume descriptor and takes what it says.
func (i *inspection) primaryVolume() {
	at := i.set.primary
	if at == 0 {
		return
	}
	d := i.head[at:min(at+sectorSize, len(i.head))]
	if len(d) < sectorSize {
		if len(d) > pvdSpaceSize+4 { // the file ends inside; how much is missing may still be said
			i.declared(int64(binary.LittleEndian.Uint32(d[pvdSpaceSize:])) * sectorSize)
		}
		return
	}
	if d[pvdVersion] != 1 {
		i.broken(int64(at+pvdVersion), "the primary volume descriptor has version %d, not 1", d[pvdVersion])
	}
	block := int64(binary.LittleEndian.Uint16(d[pvdBlockSize:]))
	if block != 512 && block != 1024 && block != 2048 {
		i.broken(int64(at+pvdBlockSize), "the logical block size is %d, not 512, 1024 or 2048", block)
		binary.LittleEndian.PutUint16(d[pvdBlockSize:], sectorSize) // what it is on every disc that was ever read
		block = sectorSize
	}
	declared := int64(binary.LittleEndian.Uint32(d[pvdSpaceSize:])) * block
	if end := int64(at) + sectorSize; declared < end {
		i.broken(int64(at+pvdSpaceSize), "the volume space size is %d bytes, its own descriptor ends at %d", declared, end)
	}
	i.declared(declared)
	i.bothOrders(at, "", true)
	i.VolumeID = printable(string(d[pvdVolumeID : pvdVolumeID+32]))
	i.Publisher = identifier(d[pvdPublisher:])
	i.Preparer = identifier(d[pvdPreparer:])
	i.Application = identifier(d[pvdApplication:])
	i.Created = readDate(d[pvdCreated : pvdCreated+dateSize])
	i.Modified = readDate(d[pvdModified : pvdModified+dateSize])
}

// identifier reads one of 128 bytes. An underscore or a zero at its beginning says that a file has it (8.4.20).
func identifier(b []byte) string {
	return printable(string(bytes.ToValidUTF8(b[:128], []byte("\ufffd"))))
}

// bothOrders checks the numbers of the descriptor at an offset that are recorded in both byte orders.
func (i *inspection) bothOrders(at int, whose string, fatal bool) {
	d := i.head[at : at+sectorSize]
	for _, f := range []struct {
		at, size int
		what     string
		fatal    bool // as Probe sees it
	}{
		{pvdSpaceSize, 4, "the volume space size", true},
		{pvdSetSize, 2, "the volume set size", false},
		{pvdSequence, 2, "the volume sequence number", false},
		{pvdBlockSize, 2, "the logical block size", true},
		{pvdPathTable, 4, "the path table size", true},
		{pvdRoot + 2, 4, "the root directory's location", true},
		{pvdRoot + 10, 4, "the root directory's size", true},
		{pvdRoot + 28, 2, "the root directory's volume sequence number", false},
	} {
		if same, little, big := orders(d[f.at:], f.size); !same {
			i.add(Defect{
				int64(at + f.at),
				fmt.Sprintf("the two byte orders of %s%s disagree: %d and %d", f.what, whose, little, big),
				f.fatal && fatal,
			})
		}
	}
	if n := d[pvdRoot]; n != 34 {
		i.add(Defect{int64(at + pvdRoot), fmt.Sprintf("the root directory's record%s has %d bytes, not 34", whose, n), fatal})
	}
}

// orders reads a number of size bytes that is recorded in both byte orders.
func orders(b []byte, size int) (same bool, little, big uint32) {
	if size == 2 {
		little, big = uint32(binary.LittleEndian.Uint16(b)), uint32(binary.BigEndian.Uint16(b[2:]))
	} else {
		little, big = binary.LittleEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
	}
	return little == big, little, big
}

// supplementaryVolumes checks Joliet's descriptor and takes its volume identifier where it is the fuller one.
func (i *inspection) supplementaryVolumes() error {
	if at := i.set.enhanced; at > 0 && at+sectorSize <= len(i.head) {
		i.bothOrders(at, " in the enhanced descriptor", false)
	}
	at := i.set.joliet
	if at == 0 || at+sectorSize > len(i.head) {
		return nil
	}
	i.Joliet = true
	i.bothOrders(at, " in Joliet's descriptor", false)
	if id := printable(ucs2(i.head[at+pvdVolumeID : at+pvdVolumeID+32])); fullerID(i.VolumeID, id) && i.Format != Bridge {
		i.VolumeID = id
	}
	return nil
}

// fullerID says whether Joliet's volume identifier, of up to 16 characters, has what the primary one hasn't.
func fullerID(primary, joliet string) bool {
	cut := utf8.RuneCountInString(joliet) >= 16 && utf8.RuneCountInString(primary) > 16
	return joliet != "" && !cut
}
