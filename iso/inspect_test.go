package iso

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func inspectBytes(b []byte) (Report, error) {
	return Inspect(bytes.NewReader(b), int64(len(b)))
}

func knowsWhatTheToolsMake(t *testing.T, all []disc) {
	for _, d := range all {
		t.Run(d.name, func(t *testing.T) {
			f, err := os.Open(d.path)
			require.NoError(t, err)
			defer f.Close()
			st, err := f.Stat()
			require.NoError(t, err)
			reader := &countingReader{ReaderAt: f}
			r, err := Inspect(reader, st.Size())
			require.NoError(t, err)
			require.Empty(t, r.Defects, "no tool makes discs with defects")
			d.want.check(t, r)
			require.NoError(t, r.Err())
			require.False(t, r.Truncated)
			assert.LessOrEqual(t, reader.bytes.Load(), int64(4<<20))
			info, err := Probe(f, st.Size())
			require.NoError(t, err)
			assert.Equal(t, info.Format, r.Format)
			assert.Equal(t, info.DeclaredSize, r.DeclaredSize)
			if revision, ok := strings.CutPrefix(d.want.volume, "Übung "); ok {
				assert.Equal(t, revision, r.UDFRevision)
			}
			assert.False(t, r.Created.IsZero())
			assert.False(t, r.Modified.IsZero())
		})
	}
}

func TestInspectFindsNoDefectsInSamples(t *testing.T) {
	for _, s := range samples(t) {
		t.Run(s.name, func(t *testing.T) {
			image, err := os.ReadFile(s.path)
			require.NoError(t, err)
			r, err := inspectBytes(image)
			require.NoError(t, err)
			require.Equal(t, s.format, r.Format)
			require.Empty(t, r.Defects)
			more, err := inspectBytes(append(image, make([]byte, 5000)...))
			require.NoError(t, err)
			require.Equal(t, r.Defects, more.Defects, "what lies behind the volume is part of the disc")
		})
	}
}

func TestReportNames(t *testing.T) {
	r, err := inspectBytes(sampleNamed(t, "xorriso"))
	require.NoError(t, err)
	b, err := json.Marshal(r)
	require.NoError(t, err)
	var names map[string]any
	require.NoError(t, json.Unmarshal(b, &names))
	for _, name := range []string{
		"format", "found", "volume_id", "preparer", "created", "modified", "size", "declared_size", "truncated", "boot", "hybrid",
		"partition_table", "rock_ridge", "joliet", "sessions", "defects",
	} {
		assert.Contains(t, names, name)
	}
	assert.Equal(t, map[string]any{"bios": false, "uefi_x64": false, "uefi_arm64": false, "entries": []any{}}, names["boot"])
	assert.Equal(t, []any{}, names["defects"])
	assert.Regexp(t, `^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$`, names["created"])
}

func TestTimeZones(t *testing.T) {
	image := sampleNamed(t, "xorriso")
	date := image[systemArea+pvdCreated:][:dateSize]
	for text, want := range map[string]string{
		"2026050322121350\x00": "2026-05-03T22:12:13.5Z",
		"2026050322121300\x08": "2026-05-03T22:12:13+02:00",
		"2026050322121300\xec": "2026-05-03T22:12:13-05:00",
		"2026050322121300\x16": "2026-05-03T22:12:13+05:30",
		"2026050322121300\x7f": "2026-05-03T22:12:13Z",
		"0000000000000000\x00": "null",
		"                \x00": "null",
		"2026990322121300\x00": "null",
	} {
		copy(date, text)
		r, err := inspectBytes(image)
		require.NoError(t, err)
		b, err := json.Marshal(r)
		require.NoError(t, err)
		var got struct{ Created any }
		require.NoError(t, json.Unmarshal(b, &got))
		if want == "null" {
			assert.Nil(t, got.Created)
		} else {
			assert.Equal(t, want, got.Created)
		}
	}
}

func TestUDFTimeZones(t *testing.T) {
	for zone, want := range map[uint16]string{
		0x1000:               "2026-05-03T22:12:13Z",
		0x1000 | 120:         "2026-05-03T22:12:13+02:00",
		0x1000 | -330&0xfff:  "2026-05-03T22:12:13-05:30",
		0x1000 | -2047&0xfff: "2026-05-03T22:12:13Z", // none is recorded
		0x1000 | 1440&0xfff:  "2026-05-03T22:12:13+24:00",
		0x1000 | -1441&0xfff: "2026-05-03T22:12:13Z",
	} {
		b := []byte{byte(zone), byte(zone >> 8), 0xea, 0x07, 5, 3, 22, 12, 13, 0, 0, 0}
		assert.Equal(t, want, readTimestamp(b).Format(time.RFC3339), "%#x", zone)
	}
	assert.Zero(t, readTimestamp(make([]byte, 12)))
}

func TestInspectSaysWhatIsNoDisc(t *testing.T) {
	dir := t.TempDir()
	made := func(format string, args ...string) []byte {
		path := filepath.Join(dir, "x."+format)
		run(t, "qemu-utils", "qemu-img", append(append([]string{"create", "-q", "-f", format}, args...), path, "10M")...)
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		return b
	}
	compressed := func(debianPackage string, command ...string) []byte {
		path := filepath.Join(dir, "x")
		require.NoError(t, os.WriteFile(path, make([]byte, 100_000), 0o644))
		return []byte(run(t, debianPackage, command[0], append(command[1:], path)...))
	}
	disk := make([]byte, 1<<20)
	copy(disk[510:], "\x55\xaa")
	disk[446+4] = 0x83
	raw := bytes.Repeat(append([]byte("\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00\x02\x00\x01"), make([]byte, 2336)...), 30)
	sierra := make([]byte, 100_000)
	copy(sierra[systemArea+9:], "CDROM")
	tar := make([]byte, 10240)
	copy(tar[257:], "ustar")
	for format, image := range map[string][]byte{
		"qcow2": made("qcow2"), "vmdk": made("vmdk"), "vhdx": made("vhdx"), "vdi": made("vdi"),
		"vhd": made("vpc", "-o", "subformat=fixed"), "html": []byte("<!doctype html><p>"), "xml": []byte("<?xml version='1.0'?><a/>"),
		"text": []byte("hello"), "gzip": compressed("gzip", "gzip", "-c"), "xz": compressed("xz-utils", "xz", "-c"),
		"bzip2": compressed("bzip2", "bzip2", "-c"), "zstd": []byte("\x28\xb5\x2f\xfd...."), "zip": []byte("PK\x03\x04"),
		"7z": []byte("7z\xbc\xaf\x27\x1c"), "rar": []byte("Rar!\x1a\x07"), "tar": tar, "raw-disk": disk, "zeroes": make([]byte, 100_000),
		"empty": nil, "high-sierra": sierra, "raw-cd": raw, "unknown": bytes.Repeat([]byte{0x80, 1, 7, 0xfe}, 30000),
		"too-short": {0xff, 0, 1},
	} {
		t.Run(format, func(t *testing.T) {
			r, err := inspectBytes(image)
			require.NoError(t, err)
			assert.Equal(t, Format(format), r.Format)
			assert.NotEmpty(t, r.Found)
			assert.False(t, r.IsDisc())
			var not *NotDiscError
			require.ErrorAs(t, r.Err(), &not)
			assert.Equal(t, r.Found, not.Found)
			_, err = Files(bytes.NewReader(image), int64(len(image)))
			require.ErrorAs(t, err, &not)
		})
	}
}

func TestInspectPassesReadErrorsThrough(t *testing.T) {
	broken := errors.New("I/O error")
	_, err := Inspect(failingReader{broken}, 1<<20)
	require.ErrorIs(t, err, broken)
	_, err = Files(failingReader{broken}, 1<<20)
	require.ErrorIs(t, err, broken)
	// A medium that fails at any one place fails the inspection or isn't read there.
	for _, name := range []string{"xorriso", "genisoimage-udf", "mkudffs-2048"} {
		image := sampleNamed(t, name)
		for at := int64(0); at < int64(len(image)); at += sectorSize {
			r := &scratchedReader{bytes.NewReader(image), at, broken, false}
			_, err := Inspect(r, int64(len(image)))
			if r.hit {
				require.ErrorIs(t, err, broken, "%s at %d", name, at)
			} else {
				require.NoError(t, err)
			}
		}
	}
}

// A scratchedReader can't read one sector.
type scratchedReader struct {
	*bytes.Reader
	at  int64
	err error
	hit bool
}

func (s *scratchedReader) ReadAt(b []byte, offset int64) (int, error) {
	if offset < s.at+sectorSize && offset+int64(len(b)) > s.at {
		s.hit = true
		return 0, s.err
	}
	return s.Reader.ReadAt(b, offset)
}

// Wherever an image is cut it is never sound, and where its descriptors are whole it is known how much is missing.
func noticesTruncation(t *testing.T, all []disc) {
	for _, d := range all {
		if strings.HasPrefix(d.name, "mkudffs") && d.name != "mkudffs-dvd-2.01" && d.name != "mkudffs-hd-1.02" {
			continue // the others are in a table of their own, with fewer cuts
		}
		t.Run(d.name, func(t *testing.T) {
			image, err := os.ReadFile(d.path)
			require.NoError(t, err)
			whole, err := inspectBytes(image)
			require.NoError(t, err)
			descriptors := int64(systemArea + 8*sectorSize)
			if d.want.format != ISO9660 {
				descriptors = 288 * sectorSize
			}
			for at := int64(0); at < whole.DeclaredSize; at += at/13 + 1997 {
				r, err := inspectBytes(image[:at])
				require.NoError(t, err)
				require.Error(t, r.Err(), "cut at %d", at)
				if at >= descriptors {
					require.True(t, r.Truncated, "cut at %d", at)
					require.Equal(t, whole.DeclaredSize, r.DeclaredSize, "cut at %d", at)
					require.Empty(t, r.Defects, "cut at %d: what is missing is no defect of its own", at)
				}
			}
			r, err := inspectBytes(image[:whole.DeclaredSize-1])
			require.NoError(t, err)
			require.True(t, r.Truncated)
		})
	}
}
