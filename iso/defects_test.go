package iso

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// An edit damages an image, and says where.
type edit struct {
	name   string
	defect string // what is said of it
	fatal  bool
	damage func(image []byte) int64
}

// bytesAt is an edit's damage at a place that is known beforehand.
func bytesAt(at int, b ...byte) func([]byte) int64 {
	return func(image []byte) int64 {
		copy(image[at:], b)
		return int64(at)
	}
}

func le32(b []byte) int64 { return int64(binary.LittleEndian.Uint32(b)) }

func everyDefectIsFound(t *testing.T, all []disc) {
	made := map[string][]byte{}
	for _, d := range all {
		switch d.name {
		case "everything", "all-genisoimage", "appended", "bridge":
		default:
			continue
		}
		image, err := os.ReadFile(d.path)
		require.NoError(t, err)
		made[d.name] = image
	}
	const pvd = systemArea
	root := func(image []byte) int64 { return le32(image[pvd+pvdRoot+2:]) * sectorSize }
	catalogue := func(image []byte) int64 {
		return le32(image[scanDescriptors(image[:headSize]).boot+bootCatalogueAt:]) * sectorSize
	}
	joliet := func(image []byte) int { return scanDescriptors(image[:headSize]).joliet }
	// second is the record behind "." and ".." of the root.
	second := func(image []byte) int64 {
		at := root(image)
		at += int64(image[at])
		return at + int64(image[at])
	}
	anchor := func(image []byte) []byte { return image[256*sectorSize:] }
	for name, edits := range map[string][]edit{
		"everything": {
			{"version", "has version 9", true, bytesAt(pvd+pvdVersion, 9)},
			{"space size", "byte orders of the volume space size disagree", true, func(image []byte) int64 { image[pvd+87] ^= 1; return pvd + 80 }},
			{"set size", "byte orders of the volume set size disagree: 1 and 9", false, func(image []byte) int64 { image[pvd+123] = 9; return pvd + 120 }},
			{"set number", "byte orders of the volume sequence number disagree", false, func(image []byte) int64 { image[pvd+127] = 9; return pvd + 124 }},
			{"block size", "byte orders of the logical block size disagree", true, func(image []byte) int64 { image[pvd+130] = 1; return pvd + 128 }},
			{"path table size", "byte orders of the path table size disagree", true, func(image []byte) int64 { image[pvd+139] ^= 1; return pvd + 132 }},
			{"root location", "byte orders of the root directory's location disagree", true, func(image []byte) int64 { image[pvd+pvdRoot+9] ^= 1; return pvd + pvdRoot + 2 }},
			{"root size", "byte orders of the root directory's size disagree", true, func(image []byte) int64 { image[pvd+pvdRoot+17] ^= 1; return pvd + pvdRoot + 10 }},
			{"root number", "byte orders of the root directory's volume sequence number disagree", false, func(image []byte) int64 { image[pvd+pvdRoot+31] ^= 1; return pvd + pvdRoot + 28 }},
			{"root record", "has 33 bytes, not 34", true, bytesAt(pvd+pvdRoot, 33)},
			{"terminator", "no terminator", true, func(image []byte) int64 {
				for at := pvd; ; at += sectorSize {
					if image[at] == typeTerminator {
						clear(image[at : at+sectorSize])
						return int64(at) + sectorSize
					}
				}
			}},
			{"joliet's root", "root directory's size in Joliet's descriptor disagree", false, func(image []byte) int64 {
				image[joliet(image)+pvdRoot+17] ^= 1
				return int64(joliet(image) + pvdRoot + 10)
			}},
			{"path table outside", "path table lies outside of the file", false, bytesAt(pvd+pvdPathL, 0xff, 0xff, 0xff, 0x7f)},
			{"path table M outside", "big-endian path table lies outside of the file", false, bytesAt(pvd+pvdPathM, 0x7f, 0xff, 0xff, 0xff)},
			{"path tables differ", "entry 2 differs from the big-endian one", false, func(image []byte) int64 {
				l := le32(image[pvd+pvdPathL:]) * sectorSize
				image[l+12] ^= 1
				return l + 10
			}},
			{"path table parent", "has parent 99, which doesn't stand before it", false, func(image []byte) int64 {
				l := le32(image[pvd+pvdPathL:]) * sectorSize
				image[l+16] = 99
				return l + 10
			}},
			{"path table without root", "path table has the root in block 1,", false, func(image []byte) int64 {
				l := le32(image[pvd+pvdPathL:]) * sectorSize
				binary.LittleEndian.PutUint32(image[l+2:], 1)
				return l
			}},
			{"root outside", "root directory lies outside of the file", false, func(image []byte) int64 {
				copy(image[pvd+pvdRoot+2:], "\xff\xff\xff\x00\x00\xff\xff\xff")
				return pvd + pvdRoot
			}},
			{"root isn't itself", "first record isn't of itself", false, func(image []byte) int64 { image[root(image)+33] = 7; return root(image) }},
			{"record too short", "a directory record of 20 bytes", false, func(image []byte) int64 { image[second(image)] = 20; return second(image) }},
			{"record's name", "a name of 250 bytes in a directory record", false, func(image []byte) int64 { image[second(image)+32] = 250; return second(image) }},
			{"record's location", "byte orders of the location of", false, func(image []byte) int64 { image[second(image)+9] ^= 1; return second(image) + 2 }},
			{"record's size", "byte orders of the size of", false, func(image []byte) int64 { image[second(image)+17] ^= 1; return second(image) + 10 }},
			{"record outside", "lies outside of the file", false, func(image []byte) int64 {
				copy(image[second(image)+2:], "\x00\xff\xff\x00\x00\xff\xff\x00")
				return second(image)
			}},
		},
		"all-genisoimage": {
			{"checksum", "boot catalogue's checksum is wrong", false, func(image []byte) int64 { image[catalogue(image)+5] = 1; return catalogue(image) + 28 }},
			{"key bytes", "key bytes are 55 ab", false, func(image []byte) int64 { image[catalogue(image)+31] = 0xab; return catalogue(image) + 30 }},
			{"header", "begins with 0x02, not with a validation entry", false, func(image []byte) int64 { image[catalogue(image)] = 2; return catalogue(image) }},
			{"indicator", "an entry of the boot catalogue begins with 0x77", false, func(image []byte) int64 { image[catalogue(image)+32] = 0x77; return catalogue(image) + 32 }},
			{"section", "a section of the boot catalogue begins with 0x45", false, func(image []byte) int64 { image[catalogue(image)+64] = 0x45; return catalogue(image) + 64 }},
			{"image outside", "a boot image lies outside of the file", false, func(image []byte) int64 {
				binary.LittleEndian.PutUint32(image[catalogue(image)+40:], 0xffffff)
				return catalogue(image) + 32
			}},
			{"EFI image outside", "a boot image lies outside of the file", false, func(image []byte) int64 {
				binary.LittleEndian.PutUint32(image[catalogue(image)+104:], 0xffffff)
				return catalogue(image) + 96
			}},
			{"catalogue outside", "the boot catalogue lies outside of the file", false, func(image []byte) int64 {
				at := scanDescriptors(image[:headSize]).boot + bootCatalogueAt
				binary.LittleEndian.PutUint32(image[at:], 0xffffff)
				return int64(at)
			}},
		},
		"appended": {
			{"GPT header", "the CRC of the GPT's header is", false, func(image []byte) int64 { image[512+40] ^= 1; return 512 + 16 }},
			{"GPT entries", "the CRC of the GPT's partitions is", false, func(image []byte) int64 { image[1024+3] ^= 1; return 1024 }},
			{"GPT list outside", "list of partitions lies outside", false, func(image []byte) int64 {
				binary.LittleEndian.PutUint64(image[512+72:], 1<<40)
				h := image[512 : 512+92]
				clear(h[16:20])
				binary.LittleEndian.PutUint32(h[16:], crc32.ChecksumIEEE(h))
				return 512 + 72
			}},
		},
		"bridge": {
			{"anchor", "its tag's checksum is", false, func(image []byte) int64 { anchor(image)[4] ^= 1; return 256 * sectorSize }},
			{"anchor gone", "1 anchor of the UDF volume", false, func(image []byte) int64 {
				clear(image[len(image)-160*sectorSize:]) // genisoimage fills 150 sectors with anchors
				return 256 * sectorSize
			}},
			{"both anchors", "no anchor of the UDF volume", true, func(image []byte) int64 {
				clear(image[len(image)-160*sectorSize:])
				clear(anchor(image)[:sectorSize])
				return 256 * sectorSize
			}},
			{"sequence's CRC", "its CRC is", false, func(image []byte) int64 {
				at := le32(anchor(image)[20:]) * sectorSize
				image[at+100] ^= 1
				return at
			}},
			{"reserve's CRC", "its CRC is", false, func(image []byte) int64 {
				at := le32(anchor(image)[28:]) * sectorSize
				image[at+100] ^= 1
				return at
			}},
			{"copies differ", "the two copies of the volume descriptor sequence differ", false, func(image []byte) int64 {
				at := le32(anchor(image)[28:]) * sectorSize
				for n := range int64(16) {
					if d := image[at+n*sectorSize:][:sectorSize]; binary.LittleEndian.Uint16(d) == tagPartition {
						d[192] ^= 1
						tagged(d, tagPartition, uint32(at/sectorSize+n), 512)
					}
				}
				return at
			}},
			{"copy without partition", "has no partition or no logical volume descriptor", false, func(image []byte) int64 {
				at := le32(anchor(image)[28:]) * sectorSize
				clear(image[at : at+16*sectorSize])
				return at
			}},
			{"location", "it says that it is in sector", false, func(image []byte) int64 {
				at := le32(anchor(image)[28:]) * sectorSize
				image[at+12] ^= 1
				image[at+4] += image[at+12] - (image[at+12] ^ 1)
				return at
			}},
			{"file set", "file set descriptor", false, func(image []byte) int64 { image[257*sectorSize+100] ^= 1; return 257 * sectorSize }},
		},
	} {
		for _, e := range edits {
			t.Run(name+"/"+e.name, func(t *testing.T) {
				bad := bytes.Clone(made[name])
				at := e.damage(bad)
				r, err := inspectBytes(bad)
				require.NoError(t, err)
				found := false
				for _, d := range r.Defects {
					if d.Offset == at && strings.Contains(d.Defect, e.defect) {
						found = true
						assert.Equal(t, e.fatal, d.Fatal)
					}
				}
				require.True(t, found, "want %q at %d, got %+v", e.defect, at, r.Defects)
				require.Error(t, r.Err())
				_, err = Probe(bytes.NewReader(bad), int64(len(bad)))
				assert.Equal(t, e.fatal, err != nil, "fatal is what Probe refuses: %v", err)
			})
		}
	}
}

// TestAllDefectsAreListed damages an image in three places.
func TestAllDefectsAreListed(t *testing.T) {
	image := sampleNamed(t, "xorriso")
	image[systemArea+87] ^= 1
	image[systemArea+130] = 1
	image[systemArea+pvdPathL+3] = 0x7f
	r, err := inspectBytes(image)
	require.NoError(t, err)
	require.Len(t, r.Defects, 3)
	assert.Equal(t, []int64{systemArea + 80, systemArea + 128, systemArea + 140},
		[]int64{r.Defects[0].Offset, r.Defects[1].Offset, r.Defects[2].Offset})
	var damaged *DamagedError
	require.ErrorAs(t, r.Err(), &damaged)
	assert.Equal(t, int64(systemArea+80), damaged.Offset, "the first of the fatal ones")
}

// TestBootImageOfZeroesIsNoBootImage: a BIOS would start nothing.
func TestBootImageOfZeroesIsNoBootImage(t *testing.T) {
	dir := t.TempDir()
	w := &workshop{t: t, dir: dir, root: tree(t, dir)}
	require.NoError(t, os.WriteFile(w.root+"/boot.img", make([]byte, 4096), 0o644))
	w.add("zeroes", want{format: ISO9660, volume: "Z", is: "rock-ridge", entries: 1}, w.xorriso("-V", "Z", "-R", "-c", "boot.cat", "-b", "boot.img", "-no-emul-boot"))
	w.discs[0].want.check(t, inspectFile(t, w.discs[0].path))
}
