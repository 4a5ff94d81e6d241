package disk

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/bits"
)

// What follows is QEMU's docs/interop/qcow2.txt; the limits are those of block/qcow2.h, unless another is named.

const magic = "QFI\xfb"

const (
	headerV2 = 72  // bytes
	headerV3 = 104 // at least

	minClusterBits = 9
	maxClusterBits = 21
	maxL1          = 32 << 20 // bytes of the first-level table
	maxRefTable    = 8 << 20  // bytes of the refcount table
	maxSnapshots   = 65536
	maxName        = 1023 // bytes of a file's name
	maxFormatName  = 64   // bytes; block.h's block driver names have less

	// What is read here, in bytes. QEMU's own images have all of the header within the first
	// 64 KiB, whatever their clusters.
	maxHeader = 64 << 10
	maxTable  = 128 << 10 // of each table; a first-level table of 128 KiB is of a disk of 8 TiB
)

// Incompatible features: an image that has one that isn't known may not be opened.
const (
	dirtyBit = 1 << iota
	corruptBit
	externalDataBit
	compressionBit
	extendedL2Bit

	knownBits = dirtyBit | corruptBit | externalDataBit | compressionBit | extendedL2Bit
)

// Header extensions that matter here.
const (
	extEnd           = 0
	extBackingFormat = 0xe2792aca
	extDataFile      = 0x44415441
)

// qcow2 is a header that is being read.
type qcow2 struct {
	r    io.ReaderAt
	size int64  // of the file
	head []byte // the first maxHeader bytes, or what there is
	info Info

	clusterBits   int
	features      uint64
	length        int // of the header
	backingAt     int64
	l1At, l1Size  int64 // bytes, entries
	refAt         int64
	refClusters   int64
	refBits       int // of one refcount: log2
	snapshotsAt   int64
	snapshotCount int64
}

func probeQCOW2(r io.ReaderAt, size int64) (Info, error) {
	q := &qcow2{r: r, size: size, info: Info{Format: QCOW2}}
	q.head = make([]byte, maxHeader)
	n, err := read(r, size, q.head, 0)
	if err != nil {
		return q.info, err
	}
	q.head = q.head[:n]
	for _, step := range []func() error{q.header, q.extensions, q.names, q.allowed, q.tables, q.end} {
		if err := step(); err != nil {
			return q.info, err
		}
	}
	return q.info, nil
}

func (q *qcow2) u32(at int) uint32 { return binary.BigEndian.Uint32(q.head[at:]) }
func (q *qcow2) u64(at int) uint64 { return binary.BigEndian.Uint64(q.head[at:]) }

// header reads the fixed part.
func (q *qcow2) header() error {
	if len(q.head) < headerV2 {
		return cutOff("the header", headerV2, q.size)
	}
	version := q.u32(4)
	switch version {
	case 2, 3:
		q.info.Version = int(version)
	default:
		return refuse(Unsupported, "convert it: `qemu-img convert -O qcow2 OLD NEW`", "it is QEMU's copy-on-write format of version %d, and 2 and 3 are known", version)
	}
	q.length = headerV2
	q.refBits = 4
	if version == 3 {
		if len(q.head) < headerV3 {
			return cutOff("the header", headerV3, q.size)
		}
		q.features = q.u64(72)
		q.refBits = int(min(q.u32(96), 64))
		q.length = int(min(q.u32(100), 1<<30))
	}
	bits := q.u32(20)
	if bits < minClusterBits || bits > maxClusterBits {
		return damaged("a cluster has 2^%d bytes", bits)
	}
	q.clusterBits = int(bits)
	q.info.ClusterSize = 1 << bits
	most := min(q.info.ClusterSize, maxHeader)
	switch {
	case q.refBits > 6:
		return damaged("a refcount has 2^%d bits", q.refBits)
	case version == 3 && (q.length < headerV3 || q.length%8 != 0 || int64(q.length) > most):
		return damaged("it says that it has %d bytes", q.length)
	case q.length > len(q.head):
		return cutOff("the header", int64(q.length), q.size)
	}
	q.info.Dirty, q.info.Corrupt = q.features&dirtyBit != 0, q.features&corruptBit != 0
	q.info.ExternalData = q.features&externalDataBit != 0
	q.info.Compression = Zlib
	if kind := byte(0); q.features&compressionBit != 0 {
		if q.length > headerV3 {
			kind = q.head[headerV3]
		}
		if kind != 1 {
			return refuse(Unsupported, "convert it on the host that made it: `qemu-img convert -O qcow2 OLD NEW`", "its compression is of type %d, which isn't known here", kind)
		}
		q.info.Compression = Zstd
	}
	switch crypt := q.u32(32); crypt {
	case 0:
	case 1:
		q.info.Encryption = AES
	case 2:
		q.info.Encryption = LUKS
	default:
		return refuse(Unsupported, "convert it on the host that made it: `qemu-img convert -O qcow2 OLD NEW`", "it is encrypted by method %d, which isn't known here", crypt)
	}
	q.backingAt, q.l1At = int64(q.u64(8)), int64(q.u64(40))
	q.l1Size = int64(q.u32(36))
	q.refAt, q.refClusters = int64(q.u64(48)), int64(q.u32(56))
	q.snapshotCount, q.snapshotsAt = int64(q.u32(60)), int64(q.u64(64))
	q.info.Snapshots = int(q.snapshotCount)
	q.info.VirtualSize = int64(q.u64(24))
	if q.info.VirtualSize <= 0 || q.info.VirtualSize > MaxVirtualSize {
		declared := q.u64(24)
		q.info.VirtualSize = 0
		return refuse(BadSize, "give an image of a disk that has between a sector and 64 TiB", "its disk has %d bytes", declared)
	}
	return nil
}

// extensions reads what follows the header, up to the first cluster's end.
func (q *qcow2) extensions() error {
	end := int(min(q.info.ClusterSize, int64(len(q.head))))
	if 0 < q.backingAt && q.backingAt < int64(end) {
		end = int(q.backingAt)
	}
	for at := q.length; at+8 <= end; {
		kind, length := q.u32(at), q.u32(at+4)
		if kind == extEnd {
			return nil
		}
		at += 8
		if uint64(length) > uint64(end-at) {
			return damaged("an extension of type %#x has %d bytes, and %d are left", kind, length, end-at)
		}
		content := q.head[at : at+int(length)]
		switch kind {
		case extBackingFormat:
			if length > maxFormatName {
				return damaged("the name of the format of its backing file has %d bytes", length)
			}
			q.info.BackingFormat = string(content)
		case extDataFile:
			if length > maxName {
				return damaged("the name of its data file has %d bytes", length)
			}
			q.info.DataFile = string(bytes.TrimRight(content, "\x00"))
		}
		at += (int(length) + 7) &^ 7
	}
	return nil // QEMU takes the backing file's name, or the cluster's end, for an end, too
}

// names reads the backing file's.
func (q *qcow2) names() error {
	length := int64(q.u32(16))
	switch {
	case q.backingAt == 0: // QEMU looks at nothing else
		return nil
	case length > maxName || q.backingAt < int64(q.length) || q.backingAt > q.info.ClusterSize-length:
		q.info.BackingFile = "?"
		return damaged("the name of its backing file is at %d, with %d bytes", uint64(q.backingAt), length)
	}
	name := make([]byte, length)
	n, err := read(q.r, q.size, name, q.backingAt)
	if err != nil {
		return err
	}
	q.info.BackingFile = string(name[:n])
	if n == 0 {
		q.info.BackingFile = "?" // there is to be one, and that is enough to know
	}
	return nil
}

// allowed refuses what the header says openly.
func (q *qcow2) allowed() error {
	i := &q.info
	const alone = "give one that stands alone: `qemu-img convert -O qcow2 OLD NEW` where its files are"
	switch unknown := q.features &^ knownBits; {
	case i.BackingFile != "":
		return refuse(BackingFile, alone, "it is an overlay of another file, %q, and an image of a library may not name files of the host", i.BackingFile)
	case i.ExternalData || i.DataFile != "":
		return refuse(ExternalData, alone, "its data is in another file (%q), and an image of a library may not name files of the host", i.DataFile)
	case i.Encryption != "":
		return refuse(Encrypted, "decrypt it first: `qemu-img convert` with --image-opts and its secret", "it is encrypted (%s)", i.Encryption)
	case unknown != 0:
		return refuse(Unsupported, "convert it on the host that made it: `qemu-img convert -O qcow2 OLD NEW`",
			"it needs a feature of qcow2 that isn't known here (bit %d)", bits.TrailingZeros64(unknown))
	case i.Corrupt:
		return refuse(Unclean, "`qemu-img check -r all` repairs what can be", "QEMU has marked it as corrupt")
	case i.Dirty:
		return refuse(Unclean, "is a machine still using it? stop that first; otherwise `qemu-img check -r all` repairs it", "it was not closed by the QEMU that wrote it")
	}
	return nil
}

// tables wants each table that the header names within the file.
func (q *qcow2) tables() error {
	cluster := q.info.ClusterSize
	entry := int64(8) // bytes in a second-level table
	if q.features&extendedL2Bit != 0 {
		entry = 16
		if q.clusterBits < 14 {
			return damaged("clusters of %d bytes have no subclusters", cluster)
		}
	}
	perL2 := cluster / entry * cluster // bytes of the disk
	need := (q.info.VirtualSize + perL2 - 1) / perL2
	switch {
	case q.l1Size < need:
		return damaged("its first-level table has %d entries, and its disk needs %d", q.l1Size, need)
	case q.l1Size*8 > maxL1:
		return damaged("its first-level table has %d entries", q.l1Size)
	case q.refClusters == 0 || q.refClusters*cluster > max(maxRefTable, cluster):
		return damaged("its refcount table has %d clusters", q.refClusters)
	case q.snapshotCount > maxSnapshots:
		return damaged("it has %d snapshots", q.snapshotCount)
	}
	for _, t := range []struct {
		what        string
		at, n, unit int64
	}{
		{"the first-level table", q.l1At, q.l1Size, 8},
		{"the refcount table", q.refAt, q.refClusters * cluster, 1},
		{"the table of its snapshots", q.snapshotsAt, q.snapshotCount, 40},
	} {
		switch {
		case t.n == 0:
		case t.at < cluster || t.at&(cluster-1) != 0:
			return damaged("%s is at %d", t.what, uint64(t.at))
		case t.at > q.size-t.n*t.unit:
			return cutOff(t.what, t.at+min(t.n*t.unit, 1<<40), q.size)
		}
	}
	return nil
}

// offsetBits are those of an entry of a first-level or refcount table that are an offset in the file.
const offsetBits = 0x00fffffffffffe00

// end wants everything that the tables lead to within the file: an image that was cut off in the middle has all its
// tables, at its beginning. The refcounts of the last block say up to where the image goes; of a table that is larger
// than maxTable only the beginning is looked at.
func (q *qcow2) end() error {
	if err := q.targets("a second-level table", q.l1At, q.l1Size, nil); err != nil {
		return err
	}
	block, index := int64(0), int64(0)
	last := func(n, offset int64) { index, block = n, offset }
	if err := q.targets("a block of refcounts", q.refAt, q.refClusters*q.info.ClusterSize/8, last); err != nil {
		return err
	}
	if block == 0 {
		return damaged("it has no refcounts")
	}
	cluster := q.info.ClusterSize
	counts := make([]byte, min(cluster, maxTable))
	from := cluster - int64(len(counts)) // the end of it, if it is larger
	if _, err := read(q.r, q.size, counts, block+from); err != nil {
		return err
	}
	used := len(bytes.TrimRight(counts, "\x00")) - 1 // the last byte that isn't 0
	if used < 0 {
		return nil
	}
	perByte := int64(8)
	n := (from + int64(used)) * perByte >> q.refBits
	if q.refBits < 3 { // the highest bit of the byte is of the last of its clusters
		n += int64(bits.Len8(counts[used])-1) >> q.refBits
	}
	perBlock := cluster * perByte >> q.refBits
	if n += index * perBlock; n >= (q.size+cluster-1)>>q.clusterBits {
		return refuse(CutOff, "get it again and compare its checksum; if it is whole, `qemu-img convert -O qcow2 OLD NEW` makes it one that can be taken",
			"it is cut off: its refcounts go on to cluster %d of %d bytes, and the file has %d bytes", n, cluster, q.size)
	}
	return nil
}

// targets looks at the offsets in a table of n entries: each is of a cluster within the file. seen, which may be nil, hears of those that are.
func (q *qcow2) targets(what string, at, n int64, seen func(n, offset int64)) error {
	table := make([]byte, min(n*8, maxTable))
	got, err := read(q.r, q.size, table, at)
	if err != nil {
		return err
	}
	for k := int64(0); (k+1)*8 <= int64(got); k++ {
		offset := int64(binary.BigEndian.Uint64(table[k*8:]) & offsetBits)
		switch {
		case offset == 0:
			continue
		case offset&(q.info.ClusterSize-1) != 0:
			return damaged("%s is at %d", what, offset)
		case offset > q.size-q.info.ClusterSize:
			return cutOff(what, offset+q.info.ClusterSize, q.size)
		}
		if seen != nil {
			seen(k, offset)
		}
	}
	return nil
}
