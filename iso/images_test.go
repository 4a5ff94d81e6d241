package iso

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/diskfs/go-diskfs"
	"github.com/diskfs/go-diskfs/disk"
	"github.com/diskfs/go-diskfs/filesystem"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"
	"github.com/stretchr/testify/require"
)

// run runs a tool that the tests need.
func run(t testing.TB, debianPackage, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		path = "/usr/sbin/" + name // not in everybody's PATH
	}
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s (Debian package %s): %s", name, debianPackage, out)
	return string(out)
}

// A sample is an image that a tool made.
type sample struct {
	name   string
	path   string
	format Format
	volume string
}

// tree makes a few files to be put on discs.
func tree(t testing.TB, dir string) string {
	t.Helper()
	root := filepath.Join(dir, "tree")
	require.NoError(t, os.MkdirAll(filepath.Join(root, "sub"), 0o755))
	random := rand.NewChaCha8([32]byte{1})
	for name, size := range map[string]int{"README.TXT": 20, "BIG.BIN": 300_000, "sub/FILE.BIN": 70_000} {
		data := make([]byte, size)
		_, _ = random.Read(data)
		require.NoError(t, os.WriteFile(filepath.Join(root, name), data, 0o644))
	}
	return root
}

// samples makes images with every tool at hand.
func samples(t testing.TB) []sample {
	t.Helper()
	dir := t.TempDir()
	root := tree(t, dir)
	var all []sample
	add := func(name string, format Format, volume string, make func(path string)) {
		s := sample{name, filepath.Join(dir, name), format, volume}
		make(s.path)
		all = append(all, s)
	}
	xorriso := func(args ...string) func(string) {
		return func(path string) {
			run(t, "xorriso", "xorriso", append([]string{"-as", "mkisofs", "-o", path}, append(args, root)...)...)
		}
	}
	genisoimage := func(args ...string) func(string) {
		return func(path string) {
			run(t, "genisoimage", "genisoimage", append([]string{"-quiet", "-o", path}, append(args, root)...)...)
		}
	}
	mkudffs := func(megabytes int64, args ...string) func(string) {
		return func(path string) {
			f, err := os.Create(path)
			require.NoError(t, err)
			require.NoError(t, f.Truncate(megabytes<<20))
			require.NoError(t, f.Close())
			run(t, "udftools", "mkudffs", append(append([]string{"--utf8"}, args...), path)...)
		}
	}
	add("xorriso", ISO9660, "DEBIAN 12", xorriso("-V", "DEBIAN 12", "-R", "-J"))
	add("xorriso-unpadded", ISO9660, "SHORT", xorriso("-V", "SHORT", "-no-pad"))
	add("xorriso-hybrid", ISO9660, "HYBRID", xorriso("-V", "HYBRID", "--protective-msdos-label", "-partition_offset", "16"))
	add("genisoimage", ISO9660, "GENISO", genisoimage("-V", "GENISO", "-r", "-J"))
	add("genisoimage-latin1", ISO9660, "caf\ufffd", genisoimage("-V", "caf\xe9"))
	add("genisoimage-udf", Bridge, "BRIDGE", genisoimage("-V", "BRIDGE", "-udf"))
	add("mkudffs-2048", UDF, "Übung 1", mkudffs(4, "-b", "2048", "-l", "Übung 1", "-m", "hd"))
	add("mkudffs-512", UDF, "five-twelve", mkudffs(4, "-b", "512", "-l", "five-twelve", "-m", "hd"))
	add("mkudffs-1024", UDF, "kilo", mkudffs(4, "-b", "1024", "-l", "kilo", "-m", "hd"))
	add("mkudffs-4096", UDF, "Диск 日本", mkudffs(8, "-b", "4096", "-l", "Диск 日本", "-m", "hd"))
	add("mkudffs-cdrw", UDF, "CDRW", mkudffs(8, "-l", "CDRW", "-m", "cdrw"))
	add("mkudffs-dvd", UDF, "DVD", mkudffs(8, "-l", "DVD", "-m", "dvd"))
	add("mkudffs-102", UDF, "OLD", mkudffs(4, "-b", "2048", "-l", "OLD", "-m", "hd", "-r", "1.02"))
	add("go-diskfs", ISO9660, "GODISKFS", func(path string) { makeGoDiskfs(t, path, "GODISKFS") })
	return all
}

func makeGoDiskfs(t testing.TB, path, volume string) {
	t.Helper()
	d, err := diskfs.Create(path, 10<<20, diskfs.SectorSizeDefault)
	require.NoError(t, err)
	d.LogicalBlocksize = 2048
	fs, err := d.CreateFilesystem(disk.FilesystemSpec{FSType: filesystem.TypeISO9660, VolumeLabel: volume})
	require.NoError(t, err)
	f, err := fs.OpenFile("readme.txt", os.O_CREATE|os.O_RDWR)
	require.NoError(t, err)
	_, err = f.Write([]byte("hello"))
	require.NoError(t, err)
	image, ok := fs.(*iso9660.FileSystem)
	require.True(t, ok)
	require.NoError(t, image.Finalize(iso9660.FinalizeOptions{RockRidge: true, VolumeIdentifier: volume}))
	require.NoError(t, d.Close())
}

// blkidLabel asks blkid for the volume's label.
func blkidLabel(t testing.TB, path string) string {
	t.Helper()
	out := run(t, "util-linux", "blkid", "-p", "-o", "udev", path)
	for line := range strings.Lines(out) {
		if value, ok := strings.CutPrefix(line, "ID_FS_LABEL_ENC="); ok {
			text, err := strconv.Unquote(`"` + strings.TrimSuffix(value, "\n") + `"`)
			require.NoError(t, err)
			return text
		}
	}
	return ""
}

// isoinfoSize asks isoinfo for the bytes of a volume.
func isoinfoSize(t testing.TB, path string) int64 {
	t.Helper()
	out := run(t, "genisoimage", "isoinfo", "-d", "-i", path)
	number := func(what string) int64 {
		m := regexp.MustCompile(fmt.Sprintf(`%s is: (\d+)`, what)).FindStringSubmatch(out)
		require.NotNil(t, m, out)
		n, err := strconv.ParseInt(m[1], 10, 64)
		require.NoError(t, err)
		return n
	}
	return number("Volume size") * number("Logical block size")
}
