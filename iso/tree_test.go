package iso

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func filesOf(t testing.TB, image []byte) fs.FS {
	t.Helper()
	files, err := Files(bytes.NewReader(image), int64(len(image)))
	require.NoError(t, err)
	return files
}

// rootRecord is the offset of a record of the root by its ISO 9660 name.
func rootRecord(t testing.TB, image []byte, name string) int {
	t.Helper()
	for at := int(le32(image[systemArea+pvdRoot+2:])) * sectorSize; image[at] != 0; at += int(image[at]) {
		if string(image[at+33:at+33+int(image[at+32])]) == name {
			return at
		}
	}
	t.Fatalf("no record of %s", name)
	return 0
}

// setBoth32 writes a number in both byte orders.
func setBoth32(b []byte, n uint32) {
	binary.LittleEndian.PutUint32(b, n)
	binary.BigEndian.PutUint32(b[4:], n)
}

func TestFilesAreAFileSystem(t *testing.T) {
	dir := t.TempDir()
	w := &workshop{t: t, dir: dir, root: dir + "/small"}
	require.NoError(t, os.MkdirAll(w.root+"/sub/deeper", 0o755))
	for _, name := range []string{"README.TXT", "sub/FILE.BIN", "sub/deeper/EMPTY"} {
		require.NoError(t, os.WriteFile(w.root+"/"+name, []byte(name), 0o644))
	}
	require.NoError(t, os.Symlink("FILE.BIN", w.root+"/sub/link"))
	w.add("rock-ridge", want{}, w.xorriso("-R"))
	w.add("joliet", want{}, w.genisoimage("-J"))
	w.add("bridge", want{}, w.genisoimage("-udf"))
	for _, d := range w.discs {
		t.Run(d.name, func(t *testing.T) {
			require.NoError(t, fstest.TestFS(openFiles(t, d.path), "README.TXT", "sub/FILE.BIN", "sub/deeper/EMPTY"))
		})
	}
}

// treesAsGoDiskfsReadsThem compares with the library that is used for good images elsewhere.
func treesAsGoDiskfsReadsThem(t *testing.T, all []disc) {
	for _, d := range all {
		switch d.name {
		case "plain", "ipxe", "memtest86+ia32", "memtest86+x64", "grub-rescue-cdrom":
			// Of the others it cuts long names of Rock Ridge, and doesn't find Joliet's directories in one another
			// (v1.9.4).
		default:
			continue
		}
		t.Run(d.name, func(t *testing.T) {
			backend, err := file.OpenFromPath(d.path, true)
			require.NoError(t, err)
			defer backend.Close()
			theirs, err := iso9660.Read(backend, 0, 0, sectorSize)
			require.NoError(t, err)
			assert.Equal(t, strings.TrimRight(theirs.Label(), " \x00"), inspectFile(t, d.path).VolumeID)
			ours := openFiles(t, d.path)
			listed := 0
			require.NoError(t, fs.WalkDir(ours, ".", func(path string, e fs.DirEntry, err error) error {
				if err != nil || !e.IsDir() {
					return err
				}
				entries, err := theirs.ReadDir(path)
				require.NoError(t, err, path)
				names := map[string]bool{}
				for _, e := range entries {
					names[strings.TrimSuffix(withoutVersion(e.Name()), ".")] = true
				}
				mine, err := fs.ReadDir(ours, path)
				require.NoError(t, err)
				for _, e := range mine {
					require.True(t, names[e.Name()], "%s/%s in %v", path, e.Name(), names)
					listed++
				}
				require.Len(t, mine, len(names), path)
				return nil
			}))
			require.Greater(t, listed, 4)
		})
	}
}

func TestDirectoriesInACircle(t *testing.T) {
	image := sampleNamed(t, "genisoimage-latin1") // with ISO 9660's names only
	sub := image[rootRecord(t, image, "SUB"):]
	setBoth32(sub[2:], binary.LittleEndian.Uint32(image[systemArea+pvdRoot+2:]))
	setBoth32(sub[10:], sectorSize)
	files := filesOf(t, image)
	var failed error
	visited := 0
	require.NoError(t, fs.WalkDir(files, ".", func(_ string, _ fs.DirEntry, err error) error {
		if visited++; err != nil {
			failed = err
		}
		return nil
	}))
	require.ErrorContains(t, failed, "a directory that is in the tree twice")
	require.Less(t, visited, 10)
}

func continuationThatPointsToItself(t *testing.T, all []disc) {
	for _, d := range all {
		if d.name != "rock-ridge" {
			continue
		}
		image, err := os.ReadFile(d.path)
		require.NoError(t, err)
		entries := bytes.Count(image[systemArea:], []byte("CE\x1c\x01"))
		require.Greater(t, entries, 1)
		for at := systemArea; ; {
			n := bytes.Index(image[at:], []byte("CE\x1c\x01"))
			if n < 0 {
				break
			}
			at += n
			setBoth32(image[at+4:], uint32(at/sectorSize))
			setBoth32(image[at+12:], uint32(at%sectorSize))
			setBoth32(image[at+20:], 28)
			at += 28
		}
		_, err = fs.ReadDir(filesOf(t, image), ".")
		require.NoError(t, err)
		_, err = inspectBytes(image)
		require.NoError(t, err)
		return
	}
}

// A file of more than 4 GiB has several records of one name.
func TestFilesInSeveralExtents(t *testing.T) {
	image := sampleNamed(t, "genisoimage-latin1")
	big, readme := rootRecord(t, image, "BIG.BIN;1"), rootRecord(t, image, "README.TXT;1")
	first := bytes.Clone(image[le32(image[big+2:])*sectorSize:][:300_000])
	second := image[le32(image[readme+2:])*sectorSize:][:20]
	image[big+25] |= flagMore
	n := copy(image[readme+33:], "BIG.BIN;1")
	image[readme+32] = byte(n)
	got, err := fs.ReadFile(filesOf(t, image), "BIG.BIN")
	require.NoError(t, err)
	require.Equal(t, append(first, second...), got)
}

func TestNamesThatNoPathCanHave(t *testing.T) {
	image := sampleNamed(t, "genisoimage-latin1")
	for name, want := range map[string]string{
		"A/B.TXT;1":     "A\ufffdB.TXT",
		"A\x1b[2J;1":    "A\x1b[2J",
		"\xff\xfe;1":    "\ufffd",
		"..":            "",
		"A\x00B;1":      "A\ufffdB",
		"A.TXT;":        "A.TXT",
		"VERSION;12":    "VERSION",
		"NO.VERSION;1X": "NO.VERSION;1X",
	} {
		bad := bytes.Clone(image)
		at := rootRecord(t, bad, "README.TXT;1")
		bad[at] = byte(max(34, 33+len(name)+1-len(name)%2)) // the record behind it moves up
		rest := bytes.Clone(bad[at+int(image[at]) : (at/sectorSize+1)*sectorSize])
		copy(bad[at+33:], name)
		bad[at+32] = byte(len(name))
		clear(bad[at+int(bad[at]) : (at/sectorSize+1)*sectorSize])
		copy(bad[at+int(bad[at]):(at/sectorSize+1)*sectorSize], rest)
		entries, err := fs.ReadDir(filesOf(t, bad), ".")
		require.NoError(t, err, "%q", name)
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
			require.True(t, fs.ValidPath(e.Name()))
		}
		if want == "" {
			require.Len(t, names, 2)
		} else {
			require.Contains(t, names, want)
		}
	}
}

// withDirectory appends a directory to an image and makes it the root.
func withDirectory(image []byte, records func(add func(name string))) []byte {
	start := (len(image) + sectorSize - 1) / sectorSize * sectorSize
	image = append(image, make([]byte, start-len(image))...)
	add := func(name string) {
		length := 33 + len(name) + (1 - len(name)%2)
		if left := sectorSize - len(image)%sectorSize; left < length {
			image = append(image, make([]byte, left)...)
		}
		at := len(image)
		image = append(image, make([]byte, length)...)
		r := image[at:]
		r[0], r[32] = byte(length), byte(len(name))
		setBoth32(r[2:], 16)
		copy(r[28:], "\x01\x00\x00\x01")
		copy(r[33:], name)
	}
	add("\x00")
	add("\x01")
	records(add)
	image = append(image, make([]byte, -len(image)&(sectorSize-1))...)
	for _, r := range []int{systemArea + pvdRoot, start} {
		setBoth32(image[r+2:], uint32(start/sectorSize))
		setBoth32(image[r+10:], uint32(len(image)-start))
		image[r+25] = flagDirectory
	}
	return image
}

func TestLargeDirectories(t *testing.T) {
	image := withDirectory(sampleNamed(t, "genisoimage-latin1"), func(add func(string)) {
		for i := range 60_000 {
			add(fmt.Sprintf("FILE%05d.TXT;1", i))
		}
	})
	var files fs.FS
	require.LessOrEqual(t, allocated(func() { files = filesOf(t, image) }), uint64(maxAllocated))
	var entries []fs.DirEntry
	require.LessOrEqual(t, allocated(func() { entries, _ = fs.ReadDir(files, ".") }), uint64(maxAllocated))
	require.Len(t, entries, 60_000)
	_, err := fs.Stat(files, "FILE59999.TXT")
	require.NoError(t, err)
	r, err := inspectBytes(image)
	require.NoError(t, err)
	require.Len(t, r.Defects, 1, "but that the path table has another root")

	long := strings.Repeat("X", 200)
	image = withDirectory(sampleNamed(t, "genisoimage-latin1"), func(add func(string)) {
		for i := range 60_000 {
			add(fmt.Sprintf("%s%d", long, i))
		}
	})
	require.LessOrEqual(t, allocated(func() { _, err = Files(bytes.NewReader(image), int64(len(image))) }), uint64(maxAllocated))
	require.ErrorContains(t, err, "a directory with more than")

	image = sampleNamed(t, "genisoimage-latin1")
	setBoth32(image[systemArea+pvdRoot+10:], 0xffffffff)
	require.LessOrEqual(t, allocated(func() { _, err = Files(bytes.NewReader(image), int64(len(image))) }), uint64(maxAllocated))
	require.ErrorContains(t, err, "a directory of 4294967295 bytes")
}

func TestFilesOfATruncatedImage(t *testing.T) {
	image := sampleNamed(t, "genisoimage-latin1")
	at := le32(image[rootRecord(t, image, "BIG.BIN;1")+2:]) * sectorSize
	files := filesOf(t, image[:at+100_000])
	_, err := fs.Stat(files, "BIG.BIN")
	require.NoError(t, err)
	_, err = fs.ReadFile(files, "BIG.BIN")
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
}

// TestFullerTree: the ISO 9660 half of a bridge may have less, as Windows installation discs do; and a UDF half that
// can't be read is no reason to show nothing.
func TestFullerTree(t *testing.T) {
	dir := t.TempDir()
	w := &workshop{t: t, dir: dir, root: tree(t, dir)}
	w.add("windows", want{}, w.genisoimage("-udf", "-hide", "BIG.BIN", "-hide", "sub"))
	path := w.discs[0].path
	image, err := os.ReadFile(path)
	require.NoError(t, err)
	entries, err := fs.ReadDir(filesOf(t, image), ".")
	require.NoError(t, err)
	require.Len(t, entries, 3)
	clear(image[257*sectorSize : 258*sectorSize]) // the file set descriptor
	entries, err = fs.ReadDir(filesOf(t, image), ".")
	require.NoError(t, err)
	require.Len(t, entries, 1)
}

func TestSymbolicLinks(t *testing.T) {
	dir := t.TempDir()
	w := &workshop{t: t, dir: dir, root: tree(t, dir)}
	for name, target := range map[string]string{
		"relative": "sub/../README.TXT", "absolute": "/sub/FILE.BIN", "sub/up": "../sub", "loop": "loop", "gone": "nowhere", "out": "../../README.TXT",
		"long": strings.Repeat("./", 200) + "README.TXT",
	} {
		require.NoError(t, os.Symlink(target, w.root+"/"+name))
	}
	w.add("links", want{}, w.xorriso("-R"))
	files := openFiles(t, w.discs[0].path)
	readme, err := fs.ReadFile(files, "README.TXT")
	require.NoError(t, err)
	for _, name := range []string{"relative", "out", "long"} {
		got, err := fs.ReadFile(files, name)
		require.NoError(t, err, name)
		require.Equal(t, readme, got)
	}
	_, err = fs.Stat(files, "sub/up/up/up/FILE.BIN")
	require.NoError(t, err)
	st, err := fs.Stat(files, "absolute")
	require.NoError(t, err)
	require.Equal(t, int64(70_000), st.Size())
	_, err = fs.Stat(files, "loop")
	require.ErrorContains(t, err, "symbolic links")
	_, err = fs.Stat(files, "gone")
	require.ErrorIs(t, err, fs.ErrNotExist)
	target, err := fs.ReadLink(files, "absolute")
	require.NoError(t, err)
	require.Equal(t, "/sub/FILE.BIN", target)
	_, err = fs.ReadLink(files, "README.TXT")
	require.ErrorIs(t, err, fs.ErrInvalid)
}

func TestTreesAreForManyAtOnce(t *testing.T) {
	files := filesOf(t, sampleNamed(t, "xorriso"))
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 20 {
				if err := fs.WalkDir(files, ".", func(path string, e fs.DirEntry, err error) error {
					if err == nil && e.Type().IsRegular() {
						_, err = fs.ReadFile(files, path)
					}
					return err
				}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
}
