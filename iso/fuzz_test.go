package iso

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/metrics"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// maxAllocated is what one call may allocate, whatever the input.
const maxAllocated = 16 << 20

// allocated says how many bytes f allocates, peak or not.
func allocated(f func()) uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample)
	before := sample[0].Value.Uint64()
	f()
	metrics.Read(sample)
	return sample[0].Value.Uint64() - before
}

// fuzzImages are small images with everything that is read.
func fuzzImages(t testing.TB) [][]byte {
	t.Helper()
	w := &workshop{t: t, dir: t.TempDir()}
	w.root = tree(t, w.dir)
	require.NoError(t, os.MkdirAll(filepath.Join(w.root, "1/2/3/4/5/6/7/8/9"), 0o755))
	require.NoError(t, os.Symlink("../README.TXT", filepath.Join(w.root, "sub/link")))
	long := bytes.Repeat([]byte("long name "), 24)
	require.NoError(t, os.WriteFile(filepath.Join(w.root, string(long)), []byte("x"), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(w.root, "boot.img"), bytes.Repeat([]byte("boot"), 600), 0o644))
	require.NoError(t, os.Rename(w.fat("x64", 12, 200, "a-long-name.efi", "BOOTX64.EFI"), filepath.Join(w.root, "efi.img")))
	boot := []string{"-c", "boot.cat", "-b", "boot.img", "-no-emul-boot", "-eltorito-alt-boot", "-e", "efi.img", "-no-emul-boot"}
	w.add("boot", want{}, w.xorriso(append(boot, "-R", "-J", "-joliet-long", "-isohybrid-gpt-basdat", "-isohybrid-mbr", "/usr/lib/ISOLINUX/isohdpfx.bin")...))
	w.add("relocated", want{}, w.genisoimage("-R"))
	w.add("bridge", want{}, w.genisoimage(append(boot, "-udf", "-J", "-joliet-long")...))
	w.add("sessions", want{}, func(path string) {
		w.run("xorriso", "xorriso", "-outdev", path, "-map", w.root, "/a", "-commit", "-map", w.root, "/b", "-commit")
	})
	w.add("vat", want{}, func(path string) {
		require.NoError(t, os.WriteFile(path, make([]byte, 2<<20), 0o644))
		w.run("udftools", "mkudffs", "-m", "cdr", "-r", "2.01", path)
	})
	var images [][]byte
	for _, d := range w.discs {
		image, err := os.ReadFile(d.path)
		require.NoError(t, err)
		images = append(images, image)
	}
	for _, metadata := range []bool{false, true} {
		image, _ := newUDFMaker(metadata, metadata).made()
		images = append(images, image)
	}
	return images
}

// damaged is one of the images, cut, with two patches. With seal the checksums of UDF descriptors are right all the
// same, so that what is behind them is read.
func damagedImage(images [][]byte, which uint8, length, at1 uint32, patch1 []byte, at2 uint32, patch2 []byte, seal bool) []byte {
	if int(which) >= len(images) {
		return patch1
	}
	image := bytes.Clone(images[which])
	if int(at1) < len(image) {
		copy(image[at1:], patch1)
	}
	if int(at2) < len(image) {
		copy(image[at2:], patch2)
	}
	if seal {
		for at := 0; at+sectorSize <= len(image); at += sectorSize {
			d := image[at : at+sectorSize]
			if tag := binary.LittleEndian.Uint16(d); tag == 0 || tag > 300 || binary.LittleEndian.Uint16(d[2:]) > 3 {
				continue
			}
			if length := int(binary.LittleEndian.Uint16(d[10:])); length <= sectorSize-16 {
				tagged(d, binary.LittleEndian.Uint16(d), binary.LittleEndian.Uint32(d[12:]), length+16)
			}
		}
	}
	return image[:min(int(length), len(image))]
}

func addSeeds(f *testing.F, images [][]byte) {
	for i, image := range images {
		f.Add(uint8(i), uint32(1<<30), uint32(systemArea+80), []byte{1, 2, 3}, uint32(256*2048+16), []byte{9}, true)
		f.Add(uint8(i), uint32(70000), uint32(0), []byte("<html>"), uint32(0), []byte(nil), false)
		root := le32(image[systemArea+pvdRoot+2:]) * sectorSize
		f.Add(uint8(i), uint32(1<<30), uint32(root), []byte{0xff}, uint32(root+68), []byte{0xff}, false)
		f.Add(uint8(i), uint32(1<<30), uint32(systemArea+pvdPathTable), bytes.Repeat([]byte{0xff}, 24), uint32(systemArea+pvdRoot+10),
			[]byte("\xff\xff\xff\x7f"), false)
		for at := 256; at < 300; at++ {
			f.Add(uint8(i), uint32(1<<30), uint32(at*sectorSize+56), bytes.Repeat([]byte{0xff}, 6), uint32(at*sectorSize+172), []byte{0xff, 7}, true)
		}
	}
	f.Add(uint8(200), uint32(0), uint32(0), []byte(nil), uint32(0), []byte(nil), false)
}

// FuzzInspect damages small pieces of real images.
func FuzzInspect(f *testing.F) {
	images := fuzzImages(f)
	addSeeds(f, images)
	f.Fuzz(func(t *testing.T, which uint8, length, at1 uint32, patch1 []byte, at2 uint32, patch2 []byte, seal bool) {
		image := damagedImage(images, which, length, at1, patch1, at2, patch2, seal)
		reader := &countingReader{ReaderAt: bytes.NewReader(image)}
		began := time.Now()
		var r Report
		var err error
		if n := allocated(func() { r, err = Inspect(reader, int64(len(image))) }); n > maxAllocated {
			t.Fatalf("%d bytes allocated", n)
		}
		if err != nil {
			t.Fatalf("nothing fails to be read here: %v", err)
		}
		if n := reader.bytes.Load(); n > 16<<20 {
			t.Fatalf("%d bytes read", n)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Fatalf("took %s", took)
		}
		_, refused := Probe(bytes.NewReader(image), int64(len(image)))
		if refused != nil && r.Err() == nil {
			t.Fatalf("sound, but Probe refuses it: %v", refused)
		}
		var damaged *DamagedError
		if errors.As(r.Err(), &damaged) && damaged.Defect == "" || r.Format == "" || r.Found == "" {
			t.Fatalf("nothing said: %+v", r)
		}
		if len(r.Defects) > maxDefects || r.IsDisc() && r.Truncated != (r.DeclaredSize > r.Size) {
			t.Fatalf("contradicts itself: %+v", r)
		}
	})
}

// FuzzFiles walks over the trees of damaged images and reads their files.
func FuzzFiles(f *testing.F) {
	images := fuzzImages(f)
	addSeeds(f, images)
	f.Fuzz(func(t *testing.T, which uint8, length, at1 uint32, patch1 []byte, at2 uint32, patch2 []byte, seal bool) {
		image := damagedImage(images, which, length, at1, patch1, at2, patch2, seal)
		began := time.Now()
		bounded := func(what string, f func()) {
			if n := allocated(f); n > maxAllocated {
				t.Fatalf("%s: %d bytes allocated", what, n)
			}
			if took := time.Since(began); took > 10*time.Second {
				t.Fatalf("%s: after %s", what, took)
			}
		}
		var files fs.FS
		var err error
		bounded("open", func() { files, err = Files(bytes.NewReader(image), int64(len(image))) })
		if err != nil {
			return
		}
		opened := 0
		buf := make([]byte, 32<<10)
		var walk func(dir string)
		walk = func(dir string) {
			var entries []fs.DirEntry
			bounded("readdir", func() { entries, err = fs.ReadDir(files, dir) })
			for i, e := range entries {
				if i > 0 && entries[i-1].Name() >= e.Name() {
					t.Fatalf("not in order: %q, %q", entries[i-1].Name(), e.Name())
				}
				path := join(dir, e.Name())
				if !fs.ValidPath(path) {
					t.Fatalf("no valid path: %q", path)
				}
				if e.IsDir() {
					walk(path)
					continue
				}
				if opened++; opened > 200 {
					continue
				}
				bounded("open file", func() {
					file, err := files.Open(path)
					if err != nil {
						return
					}
					for range 20 {
						if n, err := file.Read(buf); err != nil || n == 0 && err == io.EOF {
							break
						}
					}
					_ = file.Close()
				})
			}
		}
		walk(".")
	})
}
