package iso

import (
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func inspectFile(t testing.TB, path string) Report {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	st, err := f.Stat()
	require.NoError(t, err)
	r, err := Inspect(f, st.Size())
	require.NoError(t, err)
	return r
}

func openFiles(t testing.TB, path string) fs.FS {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	require.NoError(t, err)
	files, err := Files(f, st.Size())
	require.NoError(t, err)
	return files
}

// otherToolsAgree compares what an inspection says with what four other programs say.
func otherToolsAgree(t *testing.T, all []disc) {
	for _, d := range all {
		t.Run(d.name, func(t *testing.T) {
			r := inspectFile(t, d.path)
			// blkid cuts what it takes for the end of a name, and prefers Joliet's.
			assert.Equal(t, blkidLabel(t, d.path), r.VolumeID)
			blkid := run(t, "util-linux", "blkid", "-p", "-o", "export", d.path)
			if r.Format == ISO9660 && !strings.Contains(blkid, "TYPE=hfs") {
				assert.Contains(t, blkid, "TYPE=iso9660")
			}
			if r.UDFRevision != "" {
				assert.Contains(t, blkid, "VERSION="+r.UDFRevision)
			}
			if r.Format == UDF {
				return
			}
			if r.Format == ISO9660 {
				assert.Equal(t, isoinfoSize(t, d.path), r.DeclaredSize)
			}
			isoinfo := run(t, "genisoimage", "isoinfo", "-d", "-i", d.path)
			assert.Equal(t, strings.Contains(isoinfo, "Rock Ridge signatures version"), r.RockRidge)
			assert.Equal(t, regexp.MustCompile(`Joliet with UCS level \d found`).MatchString(isoinfo), r.Joliet)
			assert.Equal(t, strings.Contains(isoinfo, "El Torito VD version 1 found"), len(r.Boot.Entries) > 0)
			compareWithXorriso(t, d.path, r)
		})
	}
}

var (
	xorrisoImage   = regexp.MustCompile(`(?m)^El Torito boot img : +\d+ +(\S+) +([yn]) +(\S+) +0x([0-9a-f]+) +0x[0-9a-f]+ +(\d+) +(\d+)$`)
	xorrisoSession = regexp.MustCompile(`(?m)^ISO session  : +\d+ ,`)
	xorrisoField   = regexp.MustCompile(`(?m)^(Publisher Id|Preparer Id |App Id      ) : (.*)$`)
)

func compareWithXorriso(t *testing.T, path string, r Report) {
	t.Helper()
	out := run(t, "xorriso", "xorriso", "-indev", path, "-report_el_torito", "plain", "-toc", "-pvd_info", "-report_system_area", "plain")
	var want, got []string
	for _, m := range xorrisoImage.FindAllStringSubmatch(out, -1) {
		want = append(want, strings.Join(m[1:], " "))
	}
	for _, e := range r.Boot.Entries {
		platform := map[string]string{"bios": "BIOS", "efi": "UEFI"}[e.Platform]
		media := map[string]string{"none": "none", "1.44M": "fd1.4", "2.88M": "fd2.8", "1.2M": "fd1.2", "hard-disk": "hd"}[e.Media]
		got = append(got, fmt.Sprintf("%s %s %s %04x %d %d", platform, map[bool]string{true: "y", false: "n"}[e.Bootable], media, e.LoadSegment,
			e.Sectors, e.Offset/sectorSize))
	}
	assert.Equal(t, want, got)
	// Of sessions by others than itself xorriso knows but the first.
	if n := len(xorrisoSession.FindAllString(out, -1)); n > 1 {
		assert.Equal(t, n, r.Sessions)
	}
	fields := map[string]string{}
	for _, m := range xorrisoField.FindAllStringSubmatch(out, -1) {
		fields[strings.TrimSpace(m[1])] = strings.TrimSpace(m[2])
	}
	assert.Equal(t, fields["Publisher Id"], r.Publisher)
	assert.Equal(t, fields["Preparer Id"], r.Preparer)
	assert.Equal(t, fields["App Id"], r.Application)
	for _, table := range []struct{ line, word string }{{"GPT", "gpt"}, {"APM", "apm"}} {
		// xorriso looks only at what it knows of its own.
		if regexp.MustCompile(`(?m)^System area summary:.* ` + table.line).MatchString(out) {
			assert.Contains(t, r.PartitionTable, table.word)
		}
	}
}

// treesAsOthersReadThem compares the names, sizes and bytes of all files with those that 7z extracts.
func treesAsOthersReadThem(t *testing.T, all []disc) {
	for _, d := range all {
		if d.name == "hfs" || strings.HasPrefix(d.name, "mkudffs") {
			continue // 7z takes the one for an HFS volume; the others are empty
		}
		t.Run(d.name, func(t *testing.T) {
			files := openFiles(t, d.path)
			ours := map[string]int64{}
			require.NoError(t, fs.WalkDir(files, ".", func(path string, e fs.DirEntry, err error) error {
				if err != nil || e.IsDir() || e.Type() == fs.ModeSymlink {
					return err
				}
				info, err := e.Info()
				ours[path] = info.Size()
				return err
			}))
			theirs := sevenZip(t, d.path)
			for path := range theirs {
				if _, ok := ours[path]; !ok && strings.HasPrefix(path, "[BOOT]/") {
					delete(theirs, path) // 7z's own names for boot images
				}
			}
			for path, size := range theirs {
				if mode, err := fs.Lstat(files, path); err == nil && !mode.Mode().IsRegular() || beyondSevenZip(path) {
					delete(theirs, path)
				} else {
					require.Equal(t, size, ours[path], path)
				}
			}
			if inspectFile(t, d.path).RockRidge && d.want.format == ISO9660 {
				require.Equal(t, xorrisoFiles(t, d.path), keys(ours))
			}
			maps.DeleteFunc(ours, func(path string, _ int64) bool { return beyondSevenZip(path) })
			require.Equal(t, keys(theirs), keys(ours))
		})
	}
}

// mkudffs makes only empty ones, but with every kind of partition.
func treesOfEmptyVolumes(t *testing.T, all []disc) {
	for _, d := range all {
		if strings.HasPrefix(d.name, "mkudffs") {
			t.Run(d.name, func(t *testing.T) {
				entries, err := fs.ReadDir(openFiles(t, d.path), ".")
				require.NoError(t, err)
				for _, e := range entries { // of UDF 1.50 on rewritable media (UDF 1.50, 3.3.7.2)
					require.Equal(t, "Non-Allocatable Space", e.Name())
				}
			})
		}
	}
}

// beyondSevenZip says whether 7z has another name for a file: it cuts what Rock Ridge continues elsewhere, and lists
// directories that were relocated where they stand.
func beyondSevenZip(path string) bool {
	return strings.Contains(path, "a long name") || strings.HasSuffix(path, "8/9/10/deep")
}

// xorrisoFiles lists what a disc with Rock Ridge has beside directories, but for the link that deepTree makes.
func xorrisoFiles(t *testing.T, image string) []string {
	t.Helper()
	out := run(t, "xorriso", "xorriso", "-indev", image, "-find", "/", "-not", "-type", "d")
	var all []string
	for line := range strings.Lines(out) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "'/"); ok && path.Base(name) != "link'" {
			all = append(all, strings.TrimSuffix(name, "'"))
		}
	}
	slices.Sort(all)
	return all
}

func keys(m map[string]int64) []string {
	var all []string
	for k := range m {
		all = append(all, k)
	}
	slices.Sort(all)
	return all
}

// sevenZip lists files with their sizes.
func sevenZip(t *testing.T, path string) map[string]int64 {
	t.Helper()
	out := run(t, "p7zip-full", "7z", "l", "-slt", path)
	_, out, _ = strings.Cut(out, "\n----------\n")
	all := map[string]int64{}
	for block := range strings.SplitSeq(out, "\n\n") {
		fields := map[string]string{}
		for line := range strings.Lines(block) {
			key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " = ")
			fields[key] = value
		}
		if fields["Path"] == "" || fields["Folder"] == "+" {
			continue
		}
		size, _ := strconv.ParseInt(fields["Size"], 10, 64)
		all[fields["Path"]] = size
	}
	return all
}

// TestFilesHaveTheirBytes compares the content with that of the files the discs were made of.
func TestFilesHaveTheirBytes(t *testing.T) {
	dir := t.TempDir()
	w := &workshop{t: t, dir: dir, root: deepTree(t, dir)}
	w.add("rock-ridge", want{}, w.xorriso("-R"))
	w.add("joliet", want{}, w.genisoimage("-J", "-joliet-long"))
	w.add("bridge", want{}, w.genisoimage("-udf", "-D"))
	w.add("relocated", want{}, w.genisoimage("-R"))
	for _, d := range w.discs {
		t.Run(d.name, func(t *testing.T) {
			files := openFiles(t, d.path)
			compared := 0
			source := os.DirFS(w.root)
			require.NoError(t, fs.WalkDir(source, ".", func(path string, e fs.DirEntry, err error) error {
				if err != nil || !e.Type().IsRegular() {
					return err
				}
				if d.name == "joliet" && strings.Contains(path, "1/2/3/4/5/6/7") || d.name != "rock-ridge" && d.name != "relocated" && len(path) > 100 {
					return nil // too deep or too long for it
				}
				want, err := fs.ReadFile(source, path)
				require.NoError(t, err)
				got, err := fs.ReadFile(files, path)
				if err != nil {
					return err
				}
				require.Equal(t, want, got, path)
				compared++
				f, err := files.Open(path)
				require.NoError(t, err)
				if len(want) > 100 {
					part := make([]byte, 50)
					_, err = f.(io.ReaderAt).ReadAt(part, int64(len(want)-50))
					require.NoError(t, err)
					require.Equal(t, want[len(want)-50:], part)
				}
				return f.Close()
			}))
			require.Greater(t, compared, 300)
		})
	}
}
