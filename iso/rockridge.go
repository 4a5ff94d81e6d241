package iso

import (
	"encoding/binary"
	"io/fs"
	"math"
	"strings"
)

// attributes is what Rock Ridge (RRIP 1.12, chapter 4) says of a file.
type attributes struct {
	name      string
	hasMode   bool
	mode      fs.FileMode
	modified  int64 // seconds since 1970; math.MinInt64 for none
	target    string
	child     int64 // block of the directory that stands elsewhere; 0 for none
	relocated bool  // this is such a directory where it stands; it is listed where it belongs
}

// maxName is how long the parts of a name may be together. Linux has 255 bytes.
const maxName = 1 << 10

// attributes reads the system use area of a record.
func (t *isoTree) attributes(r record) (attributes, error) {
	a := attributes{modified: math.MinInt64}
	var name, target []byte
	slash := false
	area := r.systemUse[min(t.skip, len(r.systemUse)):]
	more, err := t.systemUse(area, t.volume.block, t.scratch, func(signature string, data []byte) {
		switch {
		case signature == "NM" && len(data) >= 1:
			const special = 1<<1 | 1<<2 // "." and ".."
			if data[0]&special == 0 && len(name) < maxName {
				name = append(name, data[1:]...)
			}
		case signature == "PX" && len(data) >= 8:
			a.mode, a.hasMode = posixMode(binary.LittleEndian.Uint32(data)), true
		case signature == "TF" && len(data) >= 1:
			a.modified = modified(data)
		case signature == "SL" && len(data) >= 1 && len(target) < maxLink:
			target, slash = appendLink(target, slash, data[1:])
		case signature == "CL" && len(data) >= 8:
			a.child = int64(binary.LittleEndian.Uint32(data))
		case signature == "RE":
			a.relocated = true
		}
	})
	a.name, a.target = string(name), strings.ToValidUTF8(string(target), "\ufffd")
	if err == nil {
		err = t.charge(more)
	}
	return a, err
}

// posixMode takes a file's mode as stat has it (RRIP 4.1.1).
func posixMode(m uint32) fs.FileMode {
	mode := fs.FileMode(m & 0o777)
	for _, bit := range []struct {
		mask uint32
		mode fs.FileMode
	}{{0o4000, fs.ModeSetuid}, {0o2000, fs.ModeSetgid}, {0o1000, fs.ModeSticky}} {
		if m&bit.mask != 0 {
			mode |= bit.mode
		}
	}
	switch m & 0o170000 {
	case 0o040000:
		mode |= fs.ModeDir
	case 0o120000:
		mode |= fs.ModeSymlink
	case 0o020000:
		mode |= fs.ModeDevice | fs.ModeCharDevice
	case 0o060000:
		mode |= fs.ModeDevice
	case 0o010000:
		mode |= fs.ModeNamedPipe
	case 0o140000:
		mode |= fs.ModeSocket
	}
	return mode
}

// modified takes the time of the last change of content from a TF entry (RRIP 4.1.6): times stand in it in the order of
// the flags' bits, of which creation is the first and modification the second.
func modified(data []byte) int64 {
	const creation, modification, long = 1 << 0, 1 << 1, 1 << 7
	size := 7
	if data[0]&long != 0 {
		size = dateSize
	}
	at := 1
	if data[0]&creation != 0 {
		at += size
	}
	if data[0]&modification == 0 || at+size > len(data) {
		return math.MinInt64
	}
	if size == dateSize {
		return unix(readDate(data[at:]))
	}
	return unix(readRecordDate(data[at:]))
}

// appendLink adds the components of an SL entry to a link's target (RRIP 4.1.3). A component may go on in the next
// one; slash says that one is to be put before the next.
func appendLink(target []byte, slash bool, components []byte) ([]byte, bool) {
	const goesOn, current, parent, root = 1 << 0, 1 << 1, 1 << 2, 1 << 3
	for len(components) >= 2 && 2+int(components[1]) <= len(components) {
		flags, text := components[0], components[2:2+components[1]]
		components = components[2+len(text):]
		if slash {
			target = append(target, '/')
		}
		switch {
		case flags&root != 0:
			target = append(target[:0], '/')
		case flags&current != 0:
			target = append(target, '.')
		case flags&parent != 0:
			target = append(target, ".."...)
		default:
			target = append(target, text...)
		}
		slash = flags&goesOn == 0 && flags&root == 0
	}
	return target, slash
}
