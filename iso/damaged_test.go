package iso

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func sampleNamed(t testing.TB, name string) []byte {
	t.Helper()
	for _, s := range samples(t) {
		if s.name == name {
			image, err := os.ReadFile(s.path)
			require.NoError(t, err)
			return image
		}
	}
	t.Fatalf("no sample %q", name)
	return nil
}

func TestDamagedPrimaryDescriptor(t *testing.T) {
	image := sampleNamed(t, "xorriso")
	set := func(at int, b ...byte) func([]byte) {
		return func(d []byte) { copy(d[systemArea+at:], b) }
	}
	for name, c := range map[string]struct {
		damage func([]byte)
		defect string
		offset int64
	}{
		"version":                {set(6, 9), "version 9", systemArea + 6},
		"space size disagrees":   {set(87, 0x99), "volume space size disagree", systemArea + 80},
		"no blocks":              {set(80, 0, 0, 0, 0, 0, 0, 0, 0), "volume space size is 0", systemArea + 80},
		"block size disagrees":   {set(128, 0, 4), "logical block size disagree", systemArea + 128},
		"block size 4096":        {set(128, 0, 16, 16, 0), "logical block size is 4096", systemArea + 128},
		"block size 0":           {set(128, 0, 0, 0, 0), "logical block size is 0", systemArea + 128},
		"path table disagrees":   {set(132, 0xee), "path table", systemArea + 132},
		"root record's length":   {set(156, 33), "root directory", systemArea + 156},
		"root extent disagrees":  {set(158, 0xee), "root directory's location", systemArea + 158},
		"root size disagrees":    {set(166, 0xee), "root directory's size", systemArea + 166},
		"no primary":             {set(0, 2), "no primary volume descriptor before the terminator", 0},
		"first is a terminator":  {set(0, 255), "no primary volume descriptor before the terminator", systemArea},
		"unterminated":           {func(d []byte) { clear(d[systemArea+sectorSize : systemArea+4*sectorSize]) }, "no terminator", 0},
		"nothing but supplement": {func(d []byte) { d[systemArea] = 2; clear(d[systemArea+sectorSize : headSize]) }, "no primary volume descriptor", systemArea},
	} {
		t.Run(name, func(t *testing.T) {
			bad := bytes.Clone(image)
			c.damage(bad)
			_, err := probeBytes(bad)
			var damaged *DamagedError
			require.ErrorAs(t, err, &damaged)
			assert.Contains(t, damaged.Defect, c.defect)
			if c.offset > 0 {
				assert.Equal(t, c.offset, damaged.Offset)
			}
		})
	}
}

func TestVolumeIdentifiersArePrintable(t *testing.T) {
	image := sampleNamed(t, "xorriso")
	for raw, want := range map[string]string{
		"A\x1b[31mB\n":     "A\ufffd[31mB\ufffd",
		"  padded  \x00":   "padded",
		"\u202eevil":       "\ufffdevil",
		"\x00\x00":         "",
		"ünïcode \xf0\x9f": "ünïcode \ufffd\ufffd",
	} {
		copy(image[systemArea+pvdVolumeID:], bytes.Repeat([]byte(" "), 32))
		copy(image[systemArea+pvdVolumeID:], raw)
		info, err := probeBytes(image)
		require.NoError(t, err)
		assert.Equal(t, want, info.VolumeID)
	}
}

func TestDamagedUDF(t *testing.T) {
	image := sampleNamed(t, "mkudffs-2048")
	anchorAt := 256 * 2048
	location := int(binary.LittleEndian.Uint32(image[anchorAt+20:])) * 2048
	reserve := int(binary.LittleEndian.Uint32(image[anchorAt+28:])) * 2048
	last := len(image) - 2048

	bad := bytes.Clone(image)
	bad[anchorAt+20]++
	info, err := probeBytes(bad)
	require.NoError(t, err, "the anchor at the end is as good")
	assert.Equal(t, "Übung 1", info.VolumeID)
	bad[last+20]++
	_, err = probeBytes(bad)
	assert.ErrorContains(t, err, "no anchor")

	bad = bytes.Clone(image)
	bad[location+100] ^= 1
	_, err = probeBytes(bad)
	require.NoError(t, err, "the reserve sequence is as good")
	bad[reserve+100] ^= 1
	_, err = probeBytes(bad)
	var damaged *DamagedError
	require.ErrorAs(t, err, &damaged)
	assert.Equal(t, int64(location), damaged.Offset)
	assert.ErrorContains(t, err, "CRC")
	bad[location+100] ^= 1
	bad[location+4]++
	_, err = probeBytes(bad)
	assert.ErrorContains(t, err, "checksum")

	bad = bytes.Clone(image)
	for at := systemArea; at < systemArea+6*2048; at += 2048 {
		if bytes.HasPrefix(bad[at+1:], []byte("BEA01")) {
			clear(bad[at : at+8])
			copy(bad[at+1:], "BOOT2")
		}
	}
	_, err = probeBytes(bad)
	assert.ErrorContains(t, err, "outside of an extended area")
}

// A pointer to itself must not be followed for ever.
func TestSequenceThatPointsToItself(t *testing.T) {
	image := sampleNamed(t, "mkudffs-2048")
	anchorAt := 256 * 2048
	for _, field := range []int{20, 28} {
		location := binary.LittleEndian.Uint32(image[anchorAt+field:])
		d := image[int(location)*2048:][:512]
		clear(d)
		binary.LittleEndian.PutUint16(d, tagPointer)
		binary.LittleEndian.PutUint32(d[20:], 16*2048)
		binary.LittleEndian.PutUint32(d[24:], location)
		seal(d, location)
	}
	r := &countingReader{ReaderAt: bytes.NewReader(image)}
	_, err := Probe(r, int64(len(image)))
	var damaged *DamagedError
	require.ErrorAs(t, err, &damaged)
	assert.Contains(t, damaged.Defect, "scattered")
	assert.LessOrEqual(t, r.bytes.Load(), int64(256<<10))
}

// seal gives a descriptor a right tag.
func seal(d []byte, location uint32) {
	binary.LittleEndian.PutUint16(d[2:], 2)
	binary.LittleEndian.PutUint16(d[8:], crcITU(d[16:512]))
	binary.LittleEndian.PutUint16(d[10:], 496)
	binary.LittleEndian.PutUint32(d[12:], location)
	d[4] = 0
	var sum byte
	for _, b := range d[:16] {
		sum += b
	}
	d[4] = sum
}

func TestPartitionBehindTheFileIsTruncated(t *testing.T) {
	image := sampleNamed(t, "mkudffs-2048")
	anchorAt := 256 * 2048
	location := binary.LittleEndian.Uint32(image[anchorAt+20:])
	for at := location; at < location+16; at++ {
		if d := image[int(at)*2048:][:512]; binary.LittleEndian.Uint16(d) == tagPartition {
			binary.LittleEndian.PutUint32(d[192:], 0xffffffff)
			seal(d, at)
		}
	}
	_, err := probeBytes(image)
	var short *TruncatedError
	require.ErrorAs(t, err, &short)
	assert.Greater(t, short.Declared, int64(8)<<40-1)
}

func TestCRC(t *testing.T) {
	// The example of ECMA-167 3/7.2.6: the bytes 70 6A 77 have the CRC 3299.
	assert.Equal(t, uint16(0x3299), crcITU([]byte{0x70, 0x6a, 0x77}))
}

// FuzzProbe damages small pieces of real images: at holds pairs of a position within the descriptors and a byte.
func FuzzProbe(f *testing.F) {
	var images [][]byte
	for _, s := range samples(f) {
		image, err := os.ReadFile(s.path)
		require.NoError(f, err)
		images = append(images, image)
	}
	for i := range images {
		f.Add(uint8(i), uint32(1<<30), uint32(systemArea+80), []byte{1, 2, 3}, uint32(256*2048+16), []byte{9})
		f.Add(uint8(i), uint32(70000), uint32(0), []byte("<html>"), uint32(0), []byte(nil))
	}
	f.Add(uint8(200), uint32(0), uint32(0), []byte(nil), uint32(0), []byte(nil))
	f.Fuzz(func(t *testing.T, which uint8, length, at1 uint32, patch1 []byte, at2 uint32, patch2 []byte) {
		image := patch1
		if int(which) < len(images) {
			image = bytes.Clone(images[which])
			for at, patch := range map[uint32][]byte{at1: patch1, at2: patch2} {
				if int(at) < len(image) {
					copy(image[at:], patch)
				}
			}
			image = image[:min(int(length), len(image))]
		}
		r := &countingReader{ReaderAt: bytes.NewReader(image)}
		info, err := Probe(r, int64(len(image)))
		if n := r.bytes.Load(); n > 256<<10 {
			t.Fatalf("%d bytes read", n)
		}
		if err == nil {
			if info.DeclaredSize > int64(len(image)) || info.DeclaredSize <= systemArea || info.Format == "" {
				t.Fatalf("accepted as %+v, with %d bytes", info, len(image))
			}
			return
		}
		var not *NotDiscError
		var short *TruncatedError
		var damaged *DamagedError
		if !errors.As(err, &not) && !errors.As(err, &short) && !errors.As(err, &damaged) {
			t.Fatalf("an error of no kind: %v", err)
		}
		if err.Error() == "" {
			t.Fatal("no text")
		}
	})
}
