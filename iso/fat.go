package iso

import (
	"encoding/binary"
	"math/bits"
	"strings"
	"unicode/utf16"
)

// What is read of a FAT file system to find its boot loaders, which stand in the first clusters of real ones.
const (
	maxFATDirectory = 32 << 10 // bytes
	maxFATs         = 8        // file systems in one image
	maxLoaders      = 16
	fatEntry        = 32 // bytes of a directory's
)

// A fat is a FAT file system (12, 16 or 32 bits) in an EFI boot image or system partition. It is read here and not by
// go-diskfs because of what that trusts: tables and chains of any size are read into memory at once.
type fat struct {
	source
	start    int64 // bytes, of the boot sector; the rest is counted from there
	size     int64
	table    int64
	root     int64 // of FAT12 and FAT16
	rootSize int64
	data     int64 // of cluster 2
	cluster  int64 // bytes
	clusters int64
	width    int    // bits of a table's entry
	root32   uint32 // of FAT32, its first cluster
}

// readFAT reads a boot sector. That it is one is told by its fields (Microsoft, FAT specification, "BPB").
func readFAT(b []byte, s source, start int64) (fat, bool) {
	f := fat{source: s, start: start}
	sector := int64(binary.LittleEndian.Uint16(b[11:]))
	perCluster := int64(b[13])
	reserved := int64(binary.LittleEndian.Uint16(b[14:]))
	tables := int64(b[16])
	entries := int64(binary.LittleEndian.Uint16(b[17:]))
	total := int64(binary.LittleEndian.Uint16(b[19:]))
	perTable := int64(binary.LittleEndian.Uint16(b[22:]))
	if total == 0 {
		total = int64(binary.LittleEndian.Uint32(b[32:]))
	}
	if perTable == 0 { // FAT32, which UEFI tells by this too, however few clusters there are
		f.width = 32
		perTable = int64(binary.LittleEndian.Uint32(b[36:]))
		f.root32 = binary.LittleEndian.Uint32(b[44:])
	}
	if b[0] != 0xeb && b[0] != 0xe9 || sector < 512 || sector > 4096 || bits.OnesCount64(uint64(sector)) != 1 ||
		perCluster == 0 || bits.OnesCount64(uint64(perCluster)) != 1 || reserved == 0 || tables == 0 || tables > 2 || perTable == 0 {
		return fat{}, false
	}
	f.size = total * sector
	f.table = reserved * sector
	f.root = (reserved + tables*perTable) * sector
	f.rootSize = entries * fatEntry
	f.data = f.root + (f.rootSize+sector-1)/sector*sector
	f.cluster = perCluster * sector
	f.clusters = (f.size - f.data) / f.cluster
	if f.size <= f.data {
		return fat{}, false
	}
	switch {
	case f.width == 32:
	case f.clusters < 4085:
		f.width = 12
	default:
		f.width = 16
	}
	return f, true
}

// A fatFile is an entry of a directory.
type fatFile struct {
	name    string // upper case
	short   string
	dir     bool
	cluster uint32
	size    uint32
}

// bootLoaders lists the programs in EFI/BOOT that aren't empty, in upper case.
func (f fat) bootLoaders() ([]string, error) {
	dir := fatFile{dir: true, cluster: f.root32}
	for _, name := range []string{"EFI", "BOOT"} {
		files, err := f.list(dir, name == "EFI")
		if err != nil {
			return nil, err
		}
		found := false
		for _, file := range files {
			if file.dir && (file.name == name || file.short == name) {
				dir, found = file, true
			}
		}
		if !found {
			return nil, nil
		}
	}
	files, err := f.list(dir, false)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, file := range files {
		name := file.name
		if name == "" {
			name = file.short
		}
		if !file.dir && file.size > 0 && strings.HasSuffix(name, ".EFI") && len(names) < maxLoaders {
			names = append(names, "EFI/BOOT/"+printable(name))
		}
	}
	return names, nil
}

// list reads a directory as far as it lies in the file and is no longer than maxFATDirectory.
func (f fat) list(dir fatFile, root bool) ([]fatFile, error) {
	content := make([]byte, 0, 4<<10)
	add := func(start, length int64) (bool, error) {
		start += f.start
		length = min(length, int64(maxFATDirectory-len(content)), f.source.size-start)
		if length <= 0 {
			return false, nil
		}
		n := len(content)
		content = append(content, make([]byte, length)...)
		return true, f.read(content[n:], start)
	}
	if root && f.width != 32 {
		if _, err := add(f.root, f.rootSize); err != nil {
			return nil, err
		}
		return parseFATDirectory(content), nil
	}
	for cluster := dir.cluster; cluster >= 2 && int64(cluster) < f.clusters+2; {
		more, err := add(f.data+int64(cluster-2)*f.cluster, f.cluster)
		if err != nil {
			return nil, err
		}
		if !more || len(content) == maxFATDirectory { // a chain in a circle ends here too
			break
		}
		if cluster, err = f.next(cluster); err != nil {
			return nil, err
		}
	}
	return parseFATDirectory(content), nil
}

// next is the cluster behind one, by the table; 0 when there is none.
func (f fat) next(cluster uint32) (uint32, error) {
	at := f.start + f.table + int64(cluster)*int64(f.width)/8
	var b [4]byte
	n := (f.width + 7) / 8
	if !f.has(at, int64(n)) {
		return 0, nil
	}
	if err := f.read(b[:n], at); err != nil {
		return 0, err
	}
	next := binary.LittleEndian.Uint32(b[:])
	switch f.width {
	case 12:
		if cluster%2 == 1 {
			next >>= 4
		}
		next &= 0xfff
	case 32:
		next &= 0x0fffffff
	}
	return next, nil
}

// parseFATDirectory reads the entries of a directory with their short and their long names.
func parseFATDirectory(b []byte) []fatFile {
	const (
		end, deleted          = 0, 0xe5
		label, directory, lfn = 0x08, 0x10, 0x0f
	)
	var files []fatFile
	var long longName // of the entries before the file's own, which have the name's end first
	for ; len(b) >= fatEntry && b[0] != end; b = b[fatEntry:] {
		attributes := b[11] & 0x3f
		switch {
		case b[0] == deleted:
			long.length = 0
		case attributes == lfn:
			long.add(b)
		case attributes&label != 0:
			long.length = 0
		default:
			name := strings.TrimRight(string(b[:8]), " ")
			if extension := strings.TrimRight(string(b[8:11]), " "); extension != "" {
				name += "." + extension
			}
			files = append(files, fatFile{
				name:    strings.ToUpper(string(utf16.Decode(long.units[:long.length]))),
				short:   strings.ToUpper(name),
				dir:     attributes&directory != 0,
				cluster: uint32(binary.LittleEndian.Uint16(b[20:]))<<16 | uint32(binary.LittleEndian.Uint16(b[26:])),
				size:    binary.LittleEndian.Uint32(b[28:]),
			})
			long.length = 0
		}
	}
	return files
}

// A longName is put together of up to 20 entries with 13 characters each.
type longName struct {
	units  [20 * 13]uint16
	length int
}

func (l *longName) add(b []byte) {
	const last = 0x40 // in the ordinal, of the name's last entry, which comes first
	ordinal := int(b[0] &^ last)
	if ordinal < 1 || ordinal > 20 {
		l.length = 0
		return
	}
	at := (ordinal - 1) * 13
	if b[0]&last != 0 {
		l.length = at
	}
	for _, part := range [][]byte{b[1:11], b[14:26], b[28:32]} {
		for ; len(part) >= 2; part = part[2:] {
			unit := binary.LittleEndian.Uint16(part)
			if unit == 0 || unit == 0xffff {
				return
			}
			l.units[at] = unit
			if at++; b[0]&last != 0 {
				l.length = at
			}
		}
	}
}
