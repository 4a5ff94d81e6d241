package iso

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A countingReader counts what is read of it.
type countingReader struct {
	io.ReaderAt
	bytes, calls atomic.Int64
}

func (c *countingReader) ReadAt(p []byte, off int64) (int, error) {
	c.bytes.Add(int64(len(p)))
	c.calls.Add(1)
	return c.ReaderAt.ReadAt(p, off)
}

func probeBytes(b []byte) (Info, error) {
	return Probe(bytes.NewReader(b), int64(len(b)))
}

func TestProbeKnowsWhatTheToolsMake(t *testing.T) {
	for _, s := range samples(t) {
		t.Run(s.name, func(t *testing.T) {
			image, err := os.ReadFile(s.path)
			require.NoError(t, err)
			r := &countingReader{ReaderAt: bytes.NewReader(image)}
			info, err := Probe(r, int64(len(image)))
			require.NoError(t, err)
			assert.Equal(t, s.format, info.Format)
			assert.Equal(t, s.volume, info.VolumeID)
			assert.Equal(t, int64(len(image)), info.Size)
			assert.LessOrEqual(t, info.DeclaredSize, info.Size)
			if s.format == UDF { // its partition is nearly all of it
				assert.Greater(t, info.DeclaredSize, info.Size/2)
			}
			if s.format == ISO9660 {
				assert.Equal(t, int64(1), r.calls.Load())
				assert.LessOrEqual(t, r.bytes.Load(), int64(64<<10))
			}
			if s.format != UDF {
				assert.GreaterOrEqual(t, info.DeclaredSize, isoinfoSize(t, s.path))
			}
			if s.format == ISO9660 {
				assert.Equal(t, isoinfoSize(t, s.path), info.DeclaredSize)
			}
			if !strings.ContainsRune(s.volume, '\ufffd') {
				assert.Equal(t, s.volume, blkidLabel(t, s.path))
			}
			more := append(image, make([]byte, 5000)...)
			longer, err := probeBytes(more)
			require.NoError(t, err, "more than declared is whole")
			assert.Equal(t, info.DeclaredSize, longer.DeclaredSize)
		})
	}
}

func TestTruncatedImagesAreNeverWhole(t *testing.T) {
	for _, s := range samples(t) {
		t.Run(s.name, func(t *testing.T) {
			image, err := os.ReadFile(s.path)
			require.NoError(t, err)
			whole, err := probeBytes(image)
			require.NoError(t, err)
			var cuts []int64
			for at := int64(1); at < whole.DeclaredSize; at += at/17 + 997 {
				cuts = append(cuts, at)
			}
			for _, back := range []int64{1, 511, 512, 2047, 2048, 2049, 4096} {
				cuts = append(cuts, whole.DeclaredSize-back)
			}
			descriptors := int64(256+32) * 4096 // behind this only the length can be wrong
			for _, at := range cuts {
				_, err := probeBytes(image[:at])
				var short *TruncatedError
				if errors.As(err, &short) {
					assert.Equal(t, at, short.Size)
					assert.Greater(t, short.Declared, at)
					continue
				}
				var not *NotDiscError
				var damaged *DamagedError
				require.True(t, errors.As(err, &not) || errors.As(err, &damaged), "cut at %d: %v", at, err)
				if s.format == UDF {
					require.Less(t, at, descriptors, "cut at %d: %v", at, err)
				} else {
					require.Less(t, at, int64(systemArea+pvdPathTable), "cut at %d: %v", at, err)
				}
			}
		})
	}
	assert.Equal(t, "truncated: the volume says 754974720 bytes, the file has 104857600",
		(&TruncatedError{Declared: 754974720, Size: 104857600}).Error())
}

func TestWhatIsNoDisc(t *testing.T) {
	qcow2 := filepath.Join(t.TempDir(), "x.iso")
	run(t, "qemu-utils", "qemu-img", "create", "-q", "-f", "qcow2", qcow2, "10M")
	qcow2Bytes, err := os.ReadFile(qcow2)
	require.NoError(t, err)
	vmdk := filepath.Join(t.TempDir(), "x.vmdk")
	run(t, "qemu-utils", "qemu-img", "create", "-q", "-f", "vmdk", vmdk, "10M")
	vmdkBytes, err := os.ReadFile(vmdk)
	require.NoError(t, err)
	var zipped bytes.Buffer
	w := gzip.NewWriter(&zipped)
	_, _ = w.Write(make([]byte, 1<<20))
	require.NoError(t, w.Close())
	disk := make([]byte, 1<<20)
	copy(disk[510:], "\x55\xaa")
	floppy := bytes.Clone(disk)
	disk[446+4] = 0x83 // the first partition's type
	noise := bytes.Repeat([]byte{0x80, 1, 7, 0xfe}, 30000)
	for want, input := range map[string][]byte{
		"an HTML page":                           []byte("\ufeff\r\n <!DOCTYPE HTML>\n<html><body>Please log in</body></html>"),
		"an XML document":                        []byte(`<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>`),
		"a text file":                            []byte("Sorry, not found. Grüße\n"),
		"a gzip file":                            zipped.Bytes(),
		"a qcow2 disk image":                     qcow2Bytes,
		"a VMDK disk image":                      vmdkBytes,
		"only zeroes":                            make([]byte, 3<<20),
		"empty":                                  nil,
		"a raw disk with a partition table":      disk,
		"a boot sector with something behind it": floppy,
		"too short for any disc":                 {0xff, 0, 1},
		"data of an unknown kind":                noise,
	} {
		t.Run(want, func(t *testing.T) {
			r := &countingReader{ReaderAt: bytes.NewReader(input)}
			_, err := Probe(r, int64(len(input)))
			var not *NotDiscError
			require.ErrorAs(t, err, &not)
			assert.Equal(t, want, not.Found)
			assert.LessOrEqual(t, r.bytes.Load(), int64(64<<10))
		})
	}
	_, err = probeBytes([]byte("<html>"))
	assert.EqualError(t, err, "not an ISO 9660 or UDF image: this is an HTML page (a download that went wrong?)")
}

func TestReadErrorsArePassedThrough(t *testing.T) {
	broken := errors.New("I/O error")
	_, err := Probe(failingReader{broken}, 1<<20)
	assert.ErrorIs(t, err, broken)
	_, err = Probe(bytes.NewReader(make([]byte, 100)), 1<<20)
	assert.ErrorIs(t, err, io.ErrUnexpectedEOF, "shorter than it was said to be")
	dir, err := os.Open(t.TempDir())
	require.NoError(t, err)
	defer dir.Close()
	_, err = Probe(dir, 4096)
	assert.ErrorContains(t, err, "directory")
}

type failingReader struct{ err error }

func (f failingReader) ReadAt([]byte, int64) (int, error) { return 0, f.err }
