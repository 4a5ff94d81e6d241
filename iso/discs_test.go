package iso

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A disc is an image with what an inspection has to say about it.
type disc struct {
	name string
	path string
	want want
}

// want is the part of a report that a table can have: words of
// bios x64 arm64 hybrid rock-ridge joliet, and the partition table.
type want struct {
	format   Format
	volume   string
	is       string
	table    string // "none" if empty
	sessions int    // 1 if 0
	entries  int
}

func (w want) check(t *testing.T, r Report) {
	t.Helper()
	var is []string
	for _, f := range []struct {
		word string
		is   bool
	}{
		{"bios", r.Boot.BIOS}, {"x64", r.Boot.UEFIx64}, {"arm64", r.Boot.UEFIarm64}, {"hybrid", r.Hybrid},
		{"rock-ridge", r.RockRidge}, {"joliet", r.Joliet},
	} {
		if f.is {
			is = append(is, f.word)
		}
	}
	require.Equal(t, w.format, r.Format)
	require.Equal(t, w.volume, r.VolumeID)
	require.Equal(t, w.is, strings.Join(is, " "))
	require.Equal(t, strings.TrimSpace(w.table+map[bool]string{true: "none"}[w.table == ""]), r.PartitionTable)
	require.Equal(t, max(w.sessions, 1), r.Sessions)
	require.Len(t, r.Boot.Entries, w.entries)
}

// workshop is where discs are made.
type workshop struct {
	t     testing.TB
	dir   string
	root  string // of the files to put on discs
	discs []disc
}

func (w *workshop) file(name string) string { return filepath.Join(w.dir, name) }

func (w *workshop) add(name string, expected want, build func(path string)) {
	path := w.file(name + ".iso")
	build(path)
	w.discs = append(w.discs, disc{name, path, expected})
}

func (w *workshop) run(debianPackage, name string, args ...string) {
	w.t.Helper()
	run(w.t, debianPackage, name, args...)
}

func (w *workshop) xorriso(args ...string) func(string) {
	return func(path string) {
		w.t.Helper()
		w.run("xorriso", "xorriso", append(append([]string{"-as", "mkisofs", "-o", path}, args...), w.root)...)
	}
}

func (w *workshop) genisoimage(args ...string) func(string) {
	return func(path string) {
		w.t.Helper()
		w.run("genisoimage", "genisoimage", append(append([]string{"-quiet", "-o", path}, args...), w.root)...)
	}
}

// fat makes a FAT file system of a size with files of these names in EFI/BOOT, by real tools.
func (w *workshop) fat(name string, bits int, kilobytes int64, loaders ...string) string {
	w.t.Helper()
	path := w.file(name)
	f, err := os.Create(path)
	require.NoError(w.t, err)
	require.NoError(w.t, f.Truncate(kilobytes<<10))
	require.NoError(w.t, f.Close())
	w.run("dosfstools", "mkfs.fat", "-s", "1", "-F", fmt.Sprint(bits), path)
	w.run("mtools", "mmd", "-i", path, "::/efi", "::/EFI/Boot")
	for _, loader := range loaders {
		w.run("mtools", "mcopy", "-i", path, filepath.Join(w.root, "sub/FILE.BIN"), "::/EFI/Boot/"+loader)
	}
	return path
}

// deepTree is tree with what is hard to name: long names, other alphabets, a link, directories in one another, many
// files in one.
func deepTree(t testing.TB, dir string) string {
	t.Helper()
	root := tree(t, dir)
	deep := filepath.Join(root, "1/2/3/4/5/6/7/8/9/10")
	require.NoError(t, os.MkdirAll(deep, 0o755))
	many := filepath.Join(root, "many")
	require.NoError(t, os.MkdirAll(many, 0o755))
	for i := range 300 {
		require.NoError(t, os.WriteFile(filepath.Join(many, fmt.Sprintf("number %d.txt", i)), []byte(fmt.Sprint(i)), 0o644))
	}
	long := strings.Repeat("a long name ", 18) + ".text"
	for _, path := range []string{filepath.Join(deep, "deep"), filepath.Join(root, long), filepath.Join(root, "größe Диск 日本.txt")} {
		require.NoError(t, os.WriteFile(path, []byte(path), 0o644))
	}
	require.NoError(t, os.WriteFile(filepath.Join(root, "empty"), nil, 0o644))
	require.NoError(t, os.Symlink("../README.TXT", filepath.Join(root, "sub/link")))
	return root
}

// discs makes images of every kind with every tool at hand, and has those that Debian's packages bring.
func discs(t testing.TB) []disc {
	t.Helper()
	w := &workshop{t: t, dir: t.TempDir()}
	w.root = deepTree(t, w.dir)
	bios := filepath.Join(w.root, "boot.img")
	code := make([]byte, 6000)
	random := rand.NewChaCha8([32]byte{2})
	_, _ = random.Read(code)
	require.NoError(t, os.WriteFile(bios, code, 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(w.root, "floppy.img"), append(code, make([]byte, 1440<<10-len(code))...), 0o644))
	for name, path := range map[string]string{
		"x64.img":   w.fat("x64", 12, 1440, "BOOTX64.EFI"),
		"arm64.img": w.fat("arm64", 16, 3<<10, "bootaa64.efi"),
		"none.img":  w.fat("none", 12, 1440),
	} {
		require.NoError(t, os.Rename(path, filepath.Join(w.root, name)))
	}
	isolinux, err := os.ReadFile("/usr/lib/ISOLINUX/isolinux.bin")
	require.NoError(t, err, "of Debian's package isolinux")
	require.NoError(t, os.WriteFile(filepath.Join(w.root, "isolinux.bin"), isolinux, 0o644))
	w.plainDiscs()
	w.bootDiscs()
	w.sessionDiscs()
	w.udfDiscs()
	for _, d := range []disc{
		{"grub-rescue-cdrom", "/usr/lib/grub-rescue/grub-rescue-cdrom.iso", want{ISO9660, "ISOIMAGE", "bios hybrid rock-ridge", "mbr", 1, 1}},
		{"memtest86+ia32", "/usr/lib/memtest86+/memtest86+ia32.iso", want{ISO9660, "MT86PLUS_32", "bios hybrid rock-ridge joliet", "mbr", 1, 2}},
		{"memtest86+x64", "/usr/lib/memtest86+/memtest86+x64.iso", want{ISO9660, "MT86PLUS_64", "bios x64 hybrid rock-ridge joliet", "mbr", 1, 2}},
		{"ipxe", "/usr/lib/ipxe/ipxe.iso", want{ISO9660, "ISOIMAGE", "bios x64 hybrid rock-ridge joliet", "mbr", 1, 2}},
	} {
		_, err := os.Stat(d.path)
		require.NoError(t, err, "integration/install-deps brings it")
		w.discs = append(w.discs, d)
	}
	return w.discs
}

// TestDiscs makes the discs once for all that is to be known of them.
func TestDiscs(t *testing.T) {
	all := discs(t)
	for _, test := range []struct {
		name string
		test func(*testing.T, []disc)
	}{
		{"inspection knows what the tools make", knowsWhatTheToolsMake},
		{"truncation is noticed", noticesTruncation},
		{"other tools agree", otherToolsAgree},
		{"trees as others read them", treesAsOthersReadThem},
		{"trees of empty volumes", treesOfEmptyVolumes},
		{"trees as go-diskfs reads them", treesAsGoDiskfsReadsThem},
		{"every defect is found", everyDefectIsFound},
		{"a continuation that points to itself", continuationThatPointsToItself},
	} {
		t.Run(test.name, func(t *testing.T) { test.test(t, all) })
	}
}

func (w *workshop) plainDiscs() {
	w.add("plain", want{format: ISO9660, volume: "PLAIN"}, w.genisoimage("-V", "PLAIN"))
	w.add("rock-ridge", want{format: ISO9660, volume: "RR", is: "rock-ridge"}, w.xorriso("-V", "RR", "-R"))
	w.add("joliet", want{format: ISO9660, volume: "Joliet", is: "joliet"}, w.genisoimage("-V", "Joliet", "-J", "-joliet-long"))
	w.add("everything", want{format: ISO9660, volume: "EVERYTHING", is: "rock-ridge joliet"},
		w.xorriso("-V", "EVERYTHING", "-R", "-J", "-joliet-long", "-iso-level", "3"))
	w.add("enhanced", want{format: ISO9660, volume: "E", is: "rock-ridge"}, w.genisoimage("-V", "E", "-iso-level", "4", "-R"))
	w.add("long-id", want{format: ISO9660, volume: "LONGER_THAN_JOLIETS_16_BYTES", is: "rock-ridge joliet"},
		w.xorriso("-V", "LONGER_THAN_JOLIETS_16_BYTES", "-J", "-joliet-long"))
	w.add("hfs", want{format: ISO9660, volume: "HFS", table: "apm"}, w.genisoimage("-V", "HFS", "-hfs", "-part"))
	w.add("relocated", want{format: ISO9660, volume: "DEEP", is: "rock-ridge"}, w.genisoimage("-V", "DEEP", "-R"))
}

func (w *workshop) bootDiscs() {
	noEmulation := []string{"-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"}
	boot := func(args ...string) []string { return append([]string{"-V", "BOOT", "-R", "-c", "boot.cat"}, args...) }
	biosArgs := append([]string{"-b", "boot.img"}, noEmulation...)
	w.add("bios", want{ISO9660, "BOOT", "bios rock-ridge", "", 1, 1}, w.xorriso(boot(biosArgs...)...))
	w.add("bios-genisoimage", want{ISO9660, "BOOT", "bios rock-ridge", "", 1, 1}, w.genisoimage(boot(biosArgs...)...))
	w.add("bios-floppy", want{ISO9660, "BOOT", "bios rock-ridge", "", 1, 1}, w.genisoimage(boot("-b", "floppy.img")...))
	w.add("uefi", want{ISO9660, "BOOT", "x64 rock-ridge", "", 1, 1}, w.xorriso(boot("-e", "x64.img", "-no-emul-boot")...))
	w.add("uefi-none", want{ISO9660, "BOOT", "rock-ridge", "", 1, 1}, w.xorriso(boot("-e", "none.img", "-no-emul-boot")...))
	w.add("uefi-arm64", want{ISO9660, "BOOT", "arm64 rock-ridge", "", 1, 1}, w.xorriso(boot("-e", "arm64.img", "-no-emul-boot")...))
	// 65,525 clusters make it FAT32; it is on this disc only.
	both := w.fat("both", 32, 34<<10, "BootX64.efi", "grubx64-with-a-long-name.efi", "BOOTAA64.EFI")
	all := append(biosArgs, "-eltorito-alt-boot", "-e", "both.img", "-no-emul-boot", "-graft-points", "/both.img="+both)
	w.add("all", want{ISO9660, "BOOT", "bios x64 arm64 rock-ridge", "", 1, 2}, w.xorriso(boot(all...)...))
	w.add("all-genisoimage", want{ISO9660, "BOOT", "bios x64 rock-ridge", "", 1, 2},
		w.genisoimage(boot(append(biosArgs, "-eltorito-alt-boot", "-e", "x64.img", "-no-emul-boot")...)...))
	const mbr = "/usr/lib/ISOLINUX/isohdpfx.bin"
	w.add("isohybrid", want{ISO9660, "BOOT", "bios hybrid rock-ridge", "mbr", 1, 1},
		w.xorriso(boot("-isohybrid-mbr", mbr, "-b", "isolinux.bin", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table")...))
	w.add("isohybrid-gpt", want{ISO9660, "BOOT", "bios x64 hybrid rock-ridge", "mbr+gpt", 1, 2},
		w.xorriso(boot("-isohybrid-mbr", mbr, "-b", "isolinux.bin", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table",
			"-eltorito-alt-boot", "-e", "x64.img", "-no-emul-boot", "-isohybrid-gpt-basdat")...))
	efi := w.fat("appended", 12, 1440, "BOOTX64.EFI")
	w.add("appended", want{ISO9660, "BOOT", "x64 hybrid rock-ridge", "gpt", 1, 1},
		w.xorriso(boot("-append_partition", "2", "0xef", efi, "-appended_part_as_gpt", "-e", "--interval:appended_partition_2:all::", "-no-emul-boot")...))
	w.add("appended-mbr", want{ISO9660, "BOOT", "x64 hybrid rock-ridge", "mbr", 1, 1},
		w.xorriso(boot("-append_partition", "2", "0xef", efi, "-e", "--interval:appended_partition_2:all::", "-no-emul-boot")...))
	w.add("protective", want{ISO9660, "BOOT", "rock-ridge", "mbr", 1, 0},
		w.xorriso("-V", "BOOT", "--protective-msdos-label", "-partition_offset", "16"))
	w.add("grub-mkrescue", want{ISO9660, "ISOIMAGE", "bios x64 hybrid rock-ridge", "gpt+apm", 1, 2}, func(path string) {
		w.run("grub-common", "grub-mkrescue", "-o", path, filepath.Join(w.root, "sub"))
	})
}

func (w *workshop) sessionDiscs() {
	w.add("three-sessions", want{format: ISO9660, volume: "SESSIONS", is: "rock-ridge", sessions: 3}, func(path string) {
		w.run("xorriso", "xorriso", "-outdev", path, "-volid", "SESSIONS", "-map", w.root, "/a", "-commit",
			"-map", filepath.Join(w.root, "sub"), "/b", "-commit", "-map", bigFile(w.root), "/c", "-commit")
	})
	w.add("appended-session", want{format: ISO9660, volume: "FIRST", sessions: 2}, func(path string) {
		w.run("genisoimage", "genisoimage", "-quiet", "-V", "FIRST", "-o", path, filepath.Join(w.root, "sub"))
		st, err := os.Stat(path)
		require.NoError(w.t, err)
		start := (st.Size()/sectorSize + 31) / 32 * 32
		more := path + ".more"
		w.run("genisoimage", "genisoimage", "-quiet", "-V", "SECOND", "-M", path, "-C", fmt.Sprintf("0,%d", start), "-o", more, w.root)
		b, err := os.ReadFile(more)
		require.NoError(w.t, err)
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		require.NoError(w.t, err)
		_, err = f.WriteAt(b, start*sectorSize)
		require.NoError(w.t, err)
		require.NoError(w.t, f.Close())
	})
}

func bigFile(root string) string { return filepath.Join(root, "BIG.BIN") }

func (w *workshop) udfDiscs() {
	w.add("bridge", want{format: Bridge, volume: "BRIDGE"}, w.genisoimage("-V", "BRIDGE", "-udf"))
	w.add("bridge-all", want{format: Bridge, volume: "Bridge", is: "rock-ridge joliet"},
		w.genisoimage("-V", "Bridge", "-udf", "-R", "-J", "-joliet-long"))
	w.add("bridge-boot", want{Bridge, "BRIDGE", "bios x64", "", 1, 2}, w.genisoimage("-V", "BRIDGE", "-udf", "-c", "boot.cat",
		"-b", "boot.img", "-no-emul-boot", "-eltorito-alt-boot", "-e", "x64.img", "-no-emul-boot"))
	for media, revisions := range map[string]string{
		"hd": "1.02 1.50 2.00 2.01", "dvd": "1.02 1.50 2.01", "dvdram": "2.01", "dvdrw": "1.50 2.01", "dvdr": "1.50 2.01 2.50 2.60",
		"cdrw": "1.50 2.01", "cdr": "1.50 2.01 2.50 2.60", "cd": "1.02 2.01", "bdr": "2.50 2.60",
	} {
		for revision := range strings.FieldsSeq(revisions) {
			w.add(fmt.Sprintf("mkudffs-%s-%s", media, revision), want{format: UDF, volume: "Übung " + revision}, func(path string) {
				f, err := os.Create(path)
				require.NoError(w.t, err)
				require.NoError(w.t, f.Truncate(16<<20))
				require.NoError(w.t, f.Close())
				w.run("udftools", "mkudffs", "--utf8", "-l", "Übung "+revision, "-m", media, "-r", revision, path)
			})
		}
	}
}
