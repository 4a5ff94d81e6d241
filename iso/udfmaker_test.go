package iso

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"
	"unicode/utf16"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A udfMaker writes UDF volumes with files: mkudffs makes only empty ones, and none with a metadata partition.
type udfMaker struct {
	image     []byte
	metadata  bool
	extended  bool // extended file entries
	next      uint32
	nextPlain uint32
}

const (
	udfPartition = 257 // the first sector of the partition
	udfBlocks    = 400
	udfPlain     = 200 // blocks of file data begin here
	metaFile     = 1   // the block of a metadata partition's file
	metaFirst    = 10  // the blocks of its first piece
	metaPieces   = 8   // in a piece; the second begins 50 blocks later
)

func newUDFMaker(metadata, extended bool) *udfMaker {
	u := &udfMaker{image: make([]byte, (udfPartition+udfBlocks+16)*sectorSize), metadata: metadata, extended: extended, next: 1, nextPlain: udfPlain}
	for i, id := range []string{"BEA01", "NSR03", "TEA01"} {
		copy(u.image[(16+i)*sectorSize:], "\x00"+id+"\x01")
	}
	for _, sequence := range []int{32, 48} {
		u.sequence(sequence)
	}
	last := len(u.image)/sectorSize - 1
	for _, at := range []int{256, last} {
		d := u.image[at*sectorSize:][:sectorSize]
		for n, sequence := range []uint32{32, 48} {
			binary.LittleEndian.PutUint32(d[16+8*n:], 16*sectorSize)
			binary.LittleEndian.PutUint32(d[20+8*n:], sequence)
		}
		tagged(d, tagAnchor, uint32(at), 512)
	}
	return u
}

func (u *udfMaker) sequence(at int) {
	descriptor := func(n int, tag uint16, fill func(d []byte)) {
		d := u.image[(at+n)*sectorSize:][:sectorSize]
		fill(d)
		tagged(d, tag, uint32(at+n), 512)
	}
	descriptor(0, tagPrimary, func(d []byte) { copy(d[389:], "*maker") })
	descriptor(1, tagPartition, func(d []byte) {
		binary.LittleEndian.PutUint32(d[188:], udfPartition)
		binary.LittleEndian.PutUint32(d[192:], udfBlocks)
	})
	descriptor(2, tagLogicalVolume, func(d []byte) {
		copy(d[84:], "\x08MADE")
		d[84+127] = 5
		binary.LittleEndian.PutUint32(d[212:], sectorSize)
		copy(d[217:], "*OSTA UDF Compliant")
		binary.LittleEndian.PutUint16(d[240:], 0x250)
		maps := []byte{1, 6, 1, 0, 0, 0}
		if u.metadata {
			m := make([]byte, 64)
			m[0], m[1] = 2, 64
			copy(m[5:], "*UDF Metadata Partition")
			binary.LittleEndian.PutUint32(m[40:], metaFile)
			binary.LittleEndian.PutUint32(m[44:], metaFile)
			maps = append(maps, m...)
			binary.LittleEndian.PutUint16(d[256:], 1) // of the file set: in partition 1
		}
		binary.LittleEndian.PutUint32(d[248:], sectorSize)
		binary.LittleEndian.PutUint32(d[264:], uint32(len(maps)))
		binary.LittleEndian.PutUint32(d[268:], map[bool]uint32{false: 1, true: 2}[u.metadata])
		copy(d[440:], maps)
	})
	descriptor(3, tagTerminator, func([]byte) {})
}

// tagged gives a descriptor its tag, with a CRC over what is behind the tag in its first length bytes.
func tagged(d []byte, tag uint16, location uint32, length int) {
	clear(d[:16])
	binary.LittleEndian.PutUint16(d, tag)
	binary.LittleEndian.PutUint16(d[2:], 3)
	binary.LittleEndian.PutUint16(d[8:], crcITU(d[16:length]))
	binary.LittleEndian.PutUint16(d[10:], uint16(length-16))
	binary.LittleEndian.PutUint32(d[12:], location)
	var sum byte
	for _, b := range d[:16] {
		sum += b
	}
	d[4] = sum
}

// block is one of the partition in which directories and file entries are.
func (u *udfMaker) block(n uint32) []byte {
	if u.metadata {
		if n >= metaPieces {
			n += 50
		}
		n += metaFirst
	}
	return u.plain(n)
}

func (u *udfMaker) plain(n uint32) []byte {
	return u.image[(udfPartition+int(n))*sectorSize:][:sectorSize]
}

func (u *udfMaker) partition() uint16 {
	if u.metadata {
		return 1
	}
	return 0
}

// A udfPart is an allocation descriptor to be.
type udfPart struct {
	length uint32 // with the kind in its highest two bits
	block  uint32
}

// entry writes a file entry into its own block: content inside (parts nil), short descriptors, or long ones.
func (u *udfMaker) entry(d []byte, at uint32, kind byte, length int64, inside []byte, parts []udfPart, long bool) {
	clear(d)
	head, tag := 176, uint16(tagFileEntry)
	if u.extended {
		head, tag = 216, tagExtendedEntry
	}
	binary.LittleEndian.PutUint16(d[20:], 4)
	d[27] = kind
	allocation, text := uint16(3), bytes.Clone(inside)
	if parts != nil {
		allocation = 0
		for _, p := range parts {
			text = binary.LittleEndian.AppendUint32(text, p.length)
			text = binary.LittleEndian.AppendUint32(text, p.block)
			if long {
				allocation = 1
				text = append(text, make([]byte, 8)...) // partition 0
			}
		}
	}
	binary.LittleEndian.PutUint16(d[34:], allocation)
	binary.LittleEndian.PutUint32(d[44:], 0o5<<10|0o5<<5|0o5)
	binary.LittleEndian.PutUint64(d[56:], uint64(length))
	stamp := d[84:]
	if u.extended {
		stamp = d[92:]
	}
	copy(stamp, []byte{0, 0x10, 0xea, 0x07, 5, 3, 22, 12, 13, 50})
	binary.LittleEndian.PutUint32(d[head-4:], uint32(len(text)))
	copy(d[head:], text)
	tagged(d, tag, at, head+len(text))
}

// identifier is a file identifier descriptor.
func (u *udfMaker) identifier(name string, flags byte, icb uint32) []byte {
	text := append([]byte{8}, name...)
	if strings.ContainsFunc(name, func(r rune) bool { return r > 127 }) {
		text = []byte{16}
		for _, unit := range utf16.Encode([]rune(name)) {
			text = binary.BigEndian.AppendUint16(text, unit)
		}
	}
	if name == "" {
		text = nil
	}
	d := make([]byte, (fidHead+len(text)+3)/4*4)
	d[18], d[19] = flags, byte(len(text))
	binary.LittleEndian.PutUint32(d[24:], icb)
	binary.LittleEndian.PutUint16(d[28:], u.partition())
	copy(d[fidHead:], text)
	tagged(d, tagFileIdentifier, 0, len(d))
	return d
}

// data writes bytes to blocks of the physical partition.
func (u *udfMaker) data(b []byte) uint32 {
	first := u.nextPlain
	for ; len(b) > 0; u.nextPlain++ {
		b = b[copy(u.plain(u.nextPlain), b):]
	}
	return first
}

// made is the volume with its files. The file set is in block 0 and the root in block 1.
func (u *udfMaker) made() ([]byte, fstest.MapFS) {
	want := fstest.MapFS{}
	set := u.block(0)
	binary.LittleEndian.PutUint32(set[400:], sectorSize)
	binary.LittleEndian.PutUint32(set[404:], 1)
	binary.LittleEndian.PutUint16(set[408:], u.partition())
	tagged(set, tagFileSet, 0, 512)
	if u.metadata {
		u.entry(u.plain(metaFile), metaFile, 250, 2*metaPieces*sectorSize, nil,
			[]udfPart{{metaPieces * sectorSize, metaFirst}, {metaPieces * sectorSize, metaFirst + metaPieces + 50}}, false)
	}
	icb := uint32(2)
	root := u.identifier("", fidParent|2, 1)
	add := func(name string, kind byte, content []byte, length int64, inside []byte, parts []udfPart, long bool) {
		u.entry(u.block(icb), icb, kind, length, inside, parts, long)
		root = append(root, u.identifier(name, 0, icb)...)
		if content != nil {
			want[name] = &fstest.MapFile{Data: content, Mode: 0o555}
		}
		icb++
	}
	hello := []byte("hello, inside the file entry")
	add("inside.txt", 5, hello, int64(len(hello)), hello, nil, false)
	long := bytes.Repeat([]byte("0123456789abcdef"), 300) // two blocks and a half
	add("größe 日本", 5, long, int64(len(long)), nil, []udfPart{{uint32(len(long)), u.data(long)}}, true)
	// Two pieces with a hole between them, and the rest of the descriptors in an extent of their own.
	one, two := u.data(long[:sectorSize]), u.data(long[:100])
	more := u.plain(u.nextPlain)
	binary.LittleEndian.PutUint32(more[20:], 16)
	binary.LittleEndian.PutUint32(more[24:], 100)
	binary.LittleEndian.PutUint32(more[28:], two)
	if u.metadata { // the descriptor of the second piece is a long one
		binary.LittleEndian.PutUint32(more[20:], 16)
	} else {
		binary.LittleEndian.PutUint32(more[20:], 8)
	}
	tagged(more, tagExtents, u.nextPlain, 40)
	pieces := append(append(bytes.Clone(long[:sectorSize]), make([]byte, sectorSize)...), long[:100]...)
	add("pieces", 5, pieces, int64(len(pieces)), nil,
		[]udfPart{{sectorSize, one}, {2<<30 | sectorSize, 0}, {3<<30 | sectorSize, u.nextPlain}}, u.metadata)
	u.nextPlain++
	add("link", fileLink, nil, 15, append([]byte{5, 11, 0, 0}, "\x08inside.txt"...), nil, false)
	root = append(root, u.identifier("deleted", fidDeleted, icb)...)
	u.entry(u.block(icb), icb, fileDirectory, 0, nil, nil, false)
	sub := append(u.identifier("", fidParent|2, 1), u.identifier("again", 0, 2)...)
	u.entry(u.block(icb), icb, fileDirectory, int64(len(sub)), sub, nil, false)
	root = append(root, u.identifier("sub", 2, icb)...)
	want["sub/again"] = &fstest.MapFile{Data: hello}
	if u.metadata {
		icb++
		first := icb
		for b := root; len(b) > 0; icb++ {
			b = b[copy(u.block(icb), b):]
		}
		u.entry(u.block(1), 1, fileDirectory, int64(len(root)), nil, []udfPart{{uint32(len(root)), first}}, false)
	} else {
		u.entry(u.block(1), 1, fileDirectory, int64(len(root)), root, nil, false)
	}
	return u.image, want
}

func TestUDFTrees(t *testing.T) {
	for _, metadata := range []bool{false, true} {
		for _, extended := range []bool{false, true} {
			t.Run(fmt.Sprintf("metadata %t extended %t", metadata, extended), func(t *testing.T) {
				image, want := newUDFMaker(metadata, extended).made()
				r, err := inspectBytes(image)
				require.NoError(t, err)
				require.Empty(t, r.Defects)
				kinds := []string{"physical", "metadata"}[:map[bool]int{false: 1, true: 2}[metadata]]
				assert.Equal(t, kinds, r.UDFPartitions)
				assert.Equal(t, "2.50", r.UDFRevision)
				assert.Equal(t, "MADE", r.VolumeID)
				assert.Equal(t, "maker", r.Application)
				files, err := Files(bytes.NewReader(image), int64(len(image)))
				require.NoError(t, err)
				for name, file := range want {
					got, err := fs.ReadFile(files, name)
					require.NoError(t, err, name)
					require.Equal(t, file.Data, got, name)
				}
				entries, err := fs.ReadDir(files, ".")
				require.NoError(t, err)
				require.Len(t, entries, 5, "without the one that was deleted")
				target, err := fs.ReadLink(files, "link")
				require.NoError(t, err)
				assert.Equal(t, "inside.txt", target)
				linked, err := fs.ReadFile(files, "link")
				require.NoError(t, err)
				assert.Equal(t, want["inside.txt"].Data, linked)
				st, err := fs.Stat(files, "inside.txt")
				require.NoError(t, err)
				assert.Equal(t, "2026-05-03 22:12:13 +0000 UTC", st.ModTime().String())
				assert.Equal(t, fs.FileMode(0o555), st.Mode())
				require.NoError(t, fstest.TestFS(files, "inside.txt", "sub/again"))
			})
		}
	}
}
