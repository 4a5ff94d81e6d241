package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// workshop makes images with the tools that people make them with.
type workshop struct {
	t   testing.TB
	dir string
}

func newWorkshop(t testing.TB) *workshop { return &workshop{t, t.TempDir()} }

func (w *workshop) path(name string) string { return filepath.Join(w.dir, name) }

func (w *workshop) run(stdin string, args ...string) string {
	w.t.Helper()
	path, err := exec.LookPath(args[0])
	if err != nil {
		path = "/usr/sbin/" + args[0] // where an ordinary user's PATH doesn't look
	}
	cmd := exec.Command(path, args[1:]...)
	cmd.Dir, cmd.Stdin = w.dir, strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	require.NoError(w.t, err, "%v: %s", args, out)
	return string(out)
}

// create makes a qcow2 image of a disk that has data at its beginning, in its middle and at its end.
func (w *workshop) create(name string, size int64, options string, args ...string) string {
	w.t.Helper()
	all := append([]string{"qemu-img", "create", "-q", "-f", "qcow2"}, args...)
	if options != "" {
		all = append(all, "-o", options)
	}
	w.run("", append(all, name, strconv.FormatInt(size, 10))...)
	return name
}

func (w *workshop) write(name string, commands ...string) string {
	w.t.Helper()
	args := []string{"qemu-io", "-f", "qcow2"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	w.run("", append(args, name)...)
	return name
}

// raw makes a raw file of a disk with a partition table.
func (w *workshop) raw(name string, size int64, script string) string {
	w.t.Helper()
	require.NoError(w.t, os.WriteFile(w.path(name), nil, 0o600))
	require.NoError(w.t, os.Truncate(w.path(name), size))
	if script != "" {
		w.run(script, "sfdisk", "-q", name)
	}
	return name
}

// patch changes bytes of a copy.
func (w *workshop) patch(from, to string, at int64, b ...byte) string {
	w.t.Helper()
	content, err := os.ReadFile(w.path(from))
	require.NoError(w.t, err)
	copy(content[at:], b)
	require.NoError(w.t, os.WriteFile(w.path(to), content, 0o600))
	return to
}

// zstd is a copy that is compressed by zstd. A QEMU that is built without that (Debian 11's)
// can't make one: there it is a copy whose header says so, with nothing compressed in it.
func (w *workshop) zstd(from, to string) {
	w.t.Helper()
	convert := exec.Command("qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", "-c", "-o", "compression_type=zstd", from, to)
	convert.Dir = w.dir
	if convert.Run() == nil {
		return
	}
	const incompatible, compression, byType, zstd = 79, 104, 1 << 3, 1 // docs/interop/qcow2.txt of QEMU
	w.patch(w.patch(from, to, incompatible, byType), to, compression, zstd)
}

// cut is a copy without its end.
func (w *workshop) cut(from, to string, size int64) string {
	w.t.Helper()
	content, err := os.ReadFile(w.path(from))
	require.NoError(w.t, err)
	require.NoError(w.t, os.WriteFile(w.path(to), content[:size], 0o600))
	return to
}

func (w *workshop) size(name string) int64 {
	st, err := os.Stat(w.path(name))
	require.NoError(w.t, err)
	return st.Size()
}

// meter counts what is read.
type meter struct {
	io.ReaderAt
	read int64
}

func (m *meter) ReadAt(p []byte, at int64) (int, error) {
	m.read += int64(len(p))
	return m.ReaderAt.ReadAt(p, at)
}

func (w *workshop) probe(name string) (Info, error) {
	w.t.Helper()
	f, err := os.Open(w.path(name))
	require.NoError(w.t, err)
	defer f.Close()
	m := &meter{ReaderAt: f}
	i, err := Probe(m, w.size(name))
	require.LessOrEqual(w.t, m.read, int64(maxRead))
	return i, err
}

func u64(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }
func u32(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

const mib = 1 << 20

// TestProbe: what QEMU's own tool has made is known for what it is.
func TestProbe(t *testing.T) {
	w := newWorkshop(t)
	q := func(i Info) Info {
		i.Format = QCOW2
		if i.Version == 0 {
			i.Version = 3
		}
		if i.ClusterSize == 0 {
			i.ClusterSize = 64 << 10
		}
		if i.Compression == "" {
			i.Compression = Zlib
		}
		if i.VirtualSize == 0 {
			i.VirtualSize = 20 * mib
		}
		return i
	}
	data := []string{"write 0 100k", "write 10M 3M", "write 20479k 1k"}
	plain := w.write(w.create("plain", 20*mib, ""), data...)
	w.zstd(plain, "zstd")
	w.run("", "qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", "-c", plain, "zlib")
	snapshots := w.write(w.create("snapshots", 20*mib, ""), data...)
	w.run("", "qemu-img", "snapshot", "-c", "one", snapshots)
	w.write(snapshots, "write 4M 1M")
	w.run("", "qemu-img", "snapshot", "-c", "two", snapshots)
	bitmap := w.create("bitmap", 20*mib, "")
	w.run("", "qemu-img", "bitmap", "--add", "--enable", bitmap, "b0")
	w.create("below", 20*mib, "")
	alone := w.write(w.create("alone", 20*mib, "", "-b", "below", "-F", "qcow2"), data...)
	w.run("", "qemu-img", "rebase", "-u", "-b", "", alone)
	for name, want := range map[string]Info{
		plain:                                   q(Info{}),
		"zstd":                                  q(Info{Compression: Zstd}),
		"zlib":                                  q(Info{}),
		snapshots:                               q(Info{Snapshots: 2}),
		bitmap:                                  q(Info{}),
		alone:                                   q(Info{}),
		w.create("empty", 1<<40, ""):            q(Info{VirtualSize: 1 << 40}),
		w.create("largest", MaxVirtualSize, ""): q(Info{VirtualSize: MaxVirtualSize}),
		w.create("sector", 512, ""):             q(Info{VirtualSize: 512}),
		w.write(w.create("old", 20*mib, "compat=0.10"), data...):                    q(Info{Version: 2}),
		w.write(w.create("small", 20*mib, "cluster_size=512"), data...):             q(Info{ClusterSize: 512}),
		w.write(w.create("large", 20*mib, "cluster_size=2M"), data...):              q(Info{ClusterSize: 2 * mib}),
		w.write(w.create("ref1", 20*mib, "refcount_bits=1"), data...):               q(Info{}),
		w.write(w.create("ref64", 20*mib, "refcount_bits=64"), data...):             q(Info{}),
		w.write(w.create("extended", 20*mib, "extended_l2=on"), data...):            q(Info{}),
		w.write(w.create("lazy", 20*mib, "lazy_refcounts=on"), data...):             q(Info{}),
		w.write(w.create("metadata", 20*mib, "preallocation=metadata"), data...):    q(Info{}),
		w.write(w.create("falloc", 20*mib, "preallocation=falloc"), data...):        q(Info{}),
		w.write(w.create("discarded", 20*mib, ""), "write 0 20M", "discard 8M 12M"): q(Info{}),
		w.raw("mbr", 20*mib, "2048 10M L *\n, , S\n"):                               {Format: Raw, VirtualSize: 20 * mib, Table: MBR},
		w.raw("gpt", 20*mib, "label: gpt\n, 5M\n, , L\n"):                           {Format: Raw, VirtualSize: 20 * mib, Table: GPT},
		w.raw("bare-gpt", 20*mib, "label: gpt\n"):                                   {Format: Raw, VirtualSize: 20 * mib, Table: GPT},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := w.probe(name)
			require.NoError(t, err)
			require.Equal(t, want, got)
		})
	}
	other := w.raw("sgdisk", 20*mib, "")
	w.run("", "sgdisk", "-n", "1:0:0", other)
	i, err := w.probe(other)
	require.NoError(t, err)
	require.Equal(t, GPT, i.Table)
}

// TestRefused: what may not be in a library, and what is none, is refused with what to do.
func TestRefused(t *testing.T) {
	w := newWorkshop(t)
	plain := w.write(w.create("plain", 20*mib, ""), "write 0 20M")
	base := w.create("base", 20*mib, "")
	small := w.write(w.create("small", 20*mib, "cluster_size=512,refcount_bits=1"), "write 0 2M")
	require.NoError(t, os.WriteFile(w.path("ebr"), append(bytes.Repeat([]byte{0xeb}, 510), 0x55, 0xaa), 0o600))
	fat := w.raw("fat", 20*mib, "")
	w.run("", "mkfs.fat", fat)
	mbr := w.raw("mbr", 20*mib, "2048 10M L *\n, , S\n")
	gpt := w.raw("gpt", 20*mib, "label: gpt\n, 5M\n, , L\n")
	require.NoError(t, os.WriteFile(w.path("text"), []byte("a text"), 0o600))
	require.NoError(t, os.WriteFile(w.path("nothing"), nil, 0o600))
	require.NoError(t, os.WriteFile(w.path("magic"), []byte(magic), 0o600))
	for _, row := range []struct {
		name string
		want Reason
		says string
	}{
		{w.create("overlay", 20*mib, "", "-b", base, "-F", "qcow2"), BackingFile, `"base"`},
		{w.create("hostile", 20*mib, "", "-u", "-b", "/etc/shadow", "-F", "raw"), BackingFile, "/etc/shadow"},
		{w.create("hostile2", 20*mib, "compat=0.10", "-u", "-b", "json:{\"driver\":\"file\",\"filename\":\"/etc/shadow\"}", "-F", "raw"), BackingFile, "shadow"},
		{w.create("external", 20*mib, "data_file=content"), ExternalData, `"content"`},
		{w.create("external-raw", 20*mib, "data_file=content-raw,data_file_raw=on"), ExternalData, `"content-raw"`},
		{w.patch("external", "external-unsaid", 72, make([]byte, 8)...), ExternalData, `"content"`},
		{w.patch(plain, "luks", 32, u32(2)...), Encrypted, "luks"},
		{w.patch(plain, "aes", 32, u32(1)...), Encrypted, "aes"},
		{w.patch(plain, "crypt9", 32, u32(9)...), Unsupported, "method 9"},
		{w.patch(plain, "dirty", 79, dirtyBit), Unclean, "not closed"},
		{w.patch(plain, "corrupt", 79, corruptBit), Unclean, "corrupt"},
		{w.patch(plain, "feature", 72, 0x80), Unsupported, "bit 63"},
		{w.patch(plain, "compression", 79, compressionBit), Unsupported, "type 0"},
		{w.patch(plain, "version1", 4, u32(1)...), Unsupported, "version 1"},
		{w.patch(plain, "version4", 4, u32(4)...), Unsupported, "version 4"},
		{w.patch(plain, "zero", 24, u64(0)...), BadSize, "0 bytes"},
		{w.patch(plain, "exbibyte", 24, u64(1<<60)...), BadSize, "1152921504606846976"},
		{w.patch(plain, "negative", 24, u64(1<<63)...), BadSize, "9223372036854775808"},
		{w.patch(plain, "grown", 24, u64(1<<40)...), Damaged, "first-level table"},
		{w.patch(plain, "clusters8", 20, u32(8)...), Damaged, "2^8"},
		{w.patch(plain, "clusters22", 20, u32(22)...), Damaged, "2^22"},
		{w.patch(plain, "header8", 100, u32(8)...), Damaged, "8 bytes"},
		{w.patch(plain, "header-long", 100, u32(1<<31)...), Damaged, "bytes"},
		{w.patch(plain, "refbits", 96, u32(7)...), Damaged, "2^7"},
		{w.patch(plain, "l1-outside", 40, u64(1<<40)...), CutOff, "first-level"},
		{w.patch(plain, "l1-negative", 40, u64(1<<63)...), Damaged, "first-level"},
		{w.patch(plain, "l1-unaligned", 40, u64(0x30200)...), Damaged, "first-level"},
		{w.patch(plain, "l1-in-header", 40, u64(0)...), Damaged, "first-level"},
		{w.patch(plain, "l1-huge", 36, u32(1<<31)...), Damaged, "entries"},
		{w.patch(plain, "ref-outside", 48, u64(1<<40)...), CutOff, "refcount table"},
		{w.patch(plain, "ref-none", 56, u32(0)...), Damaged, "0 clusters"},
		{w.patch(plain, "ref-huge", 56, u32(1<<20)...), Damaged, "clusters"},
		{w.patch(plain, "snapshots", 60, u32(1<<20)...), Damaged, "snapshots"},
		{w.patch(plain, "snapshots-outside", 60, append(u32(3), u64(1<<40)...)...), CutOff, "snapshots"},
		{w.patch(plain, "extension", 116, u32(1<<20)...), Damaged, "extension"},
		{w.patch(base, "backing-outside", 8, append(u64(1<<40), u32(9)...)...), Damaged, "backing file"},
		{w.patch(base, "backing-empty", 8, append(u64(600), u32(0)...)...), BackingFile, "?"},
		{w.cut(plain, "cut", w.size(plain)-64<<10), CutOff, "refcounts go on"},
		{w.cut(plain, "cut-half", w.size(plain)/2), CutOff, ""},
		{w.cut(plain, "cut-tables", 100<<10), CutOff, ""},
		{w.cut(plain, "cut-header", 80), CutOff, "header"},
		{w.cut(small, "cut-small", w.size(small)-512), CutOff, ""},
		{"magic", CutOff, "header"},
		{"text", NotADisk, "neither"},
		{"nothing", NotADisk, "empty"},
		{"ebr", NotADisk, "neither"},
		{fat, NotADisk, "neither"},
		{w.raw("zeros", mib, ""), NotADisk, "neither"},
		{w.cut(mbr, "cut-mbr", 19*mib), CutOff, "partition table"},
		{w.cut(mbr, "cut-sector", 20*mib-1), CutOff, ""},
		{w.cut(gpt, "cut-gpt", 20*mib-512), CutOff, "partition table"},
		{w.patch(gpt, "gpt-sum", 560, 1), Damaged, "checksum"},
		{w.patch(gpt, "gpt-none", 512, 1), Damaged, "there is none"},
		{w.patch(mbr, "overlap", 446+16+8, 0, 8, 0, 0), NotADisk, "neither"},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := w.probe(row.name)
			var e *Error
			require.ErrorAs(t, err, &e)
			require.Equal(t, row.want, e.Reason, e.Detail)
			require.Contains(t, e.Detail, row.says)
			require.NotEmpty(t, e.Next)
		})
	}
	// What is refused is told all the same.
	i, err := w.probe("overlay")
	require.Error(t, err)
	require.Equal(t, "base", i.BackingFile)
	require.Equal(t, "qcow2", i.BackingFormat)
	require.EqualValues(t, 20*mib, i.VirtualSize)
}

// TestCannotBeRead: the disk's own error is no verdict about the image.
func TestCannotBeRead(t *testing.T) {
	broken := errors.New("the disk is broken")
	_, err := Probe(failing{broken}, mib)
	require.ErrorIs(t, err, broken)
	var e *Error
	require.False(t, errors.As(err, &e))
}

type failing struct{ err error }

func (f failing) ReadAt([]byte, int64) (int, error) { return 0, f.err }

// FuzzProbe: whatever the bytes, Probe ends soon, reads little, and takes no image that
// names another file.
func FuzzProbe(f *testing.F) {
	w := newWorkshop(f)
	w.create("base", mib, "")
	for _, name := range []string{
		w.write(w.create("plain", 8<<10, "cluster_size=512"), "write 0 2k"),
		w.write(w.create("old", 8<<10, "compat=0.10,cluster_size=512"), "write 0 2k"),
		w.create("bits", 8<<10, "cluster_size=512,refcount_bits=1"),
		w.create("overlay", 8<<10, "cluster_size=512", "-b", "base", "-F", "qcow2"),
		w.create("external", 8<<10, "cluster_size=512,data_file=content"),
		w.raw("mbr", 8<<10, "start=1, size=10\n"),
		w.raw("gpt", 64<<10, "label: gpt\n"),
	} {
		b, err := os.ReadFile(w.path(name))
		require.NoError(f, err)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m := &meter{ReaderAt: bytes.NewReader(b)}
		i, err := Probe(m, int64(len(b)))
		require.LessOrEqual(t, m.read, int64(maxRead))
		if err != nil {
			var e *Error
			require.ErrorAs(t, err, &e)
			require.NotEmpty(t, e.Next)
			return
		}
		require.Positive(t, i.VirtualSize)
		require.Empty(t, i.BackingFile)
		require.Empty(t, i.DataFile)
		require.False(t, i.ExternalData)
		require.Empty(t, i.Encryption)
	})
}
