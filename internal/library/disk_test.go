package library

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/wire"
)

// tool runs one of those that disk images are made with.
func tool(t testing.TB, dir, stdin string, args ...string) {
	t.Helper()
	path, err := exec.LookPath(args[0])
	if err != nil {
		path = "/usr/sbin/" + args[0] // where an ordinary user's PATH doesn't look
	}
	cmd := exec.Command(path, args[1:]...)
	cmd.Dir, cmd.Stdin = dir, strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%v: %s", args, out)
}

// diskImages are the bytes of disk images, of a disk of 16 MiB each.
type diskImages struct {
	qcow2, overlay, raw []byte
	hybrid              []byte // a disc with a partition table
}

func newDiskImages(t *testing.T) diskImages {
	t.Helper()
	dir := t.TempDir()
	tool(t, dir, "", "qemu-img", "create", "-q", "-f", "qcow2", "plain", "16M")
	tool(t, dir, "", "qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 1M", "plain")
	tool(t, dir, "", "qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "/etc/shadow", "-F", "raw", "overlay", "16M")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "raw"), make([]byte, 16<<20), 0o600))
	tool(t, dir, ", , L\n", "sfdisk", "-q", "raw")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "hybrid"), append(disc(t, "HYBRID"), make([]byte, 1<<20)...), 0o600))
	tool(t, dir, "start=1, type=83\n", "sfdisk", "-q", "hybrid")
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		return b
	}
	return diskImages{read("plain"), read("overlay"), read("raw"), read("hybrid")}
}

// TestKinds: an image is what its bytes are, and never what somebody wants it to be.
func TestKinds(t *testing.T) {
	d := newDiskImages(t)
	iso := disc(t, "DEBIAN")
	text := []byte(strings.Repeat("words ", 1<<14))
	for _, row := range []struct {
		name, format string
		content      []byte
		kind         wire.ImageKind // "": it is refused
		is           string         // its format, or the code of the refusal
		says         string         // the refusal
	}{
		{"qcow2", "", d.qcow2, wire.ImageDisk, "qcow2", ""},
		{"qcow2 said", "qcow2", d.qcow2, wire.ImageDisk, "qcow2", ""},
		{"qcow2 as raw", "raw", d.qcow2, "", "not-a-disk", "it is qcow2, not raw"},
		{"qcow2 as a disc", "iso", d.qcow2, "", "not-a-disc", "it is a disk image (qcow2), not a disc"},
		{"an overlay", "", d.overlay, "", "disk-refused", "/etc/shadow"},
		{"an overlay as a disc", "iso", d.overlay, "", "not-a-disc", "it is a disk image (qcow2), not a disc"},
		{"cut off", "", d.qcow2[:len(d.qcow2)-1<<18], "", "medium-truncated", "it is cut off"},
		{"raw", "raw", d.raw, wire.ImageDisk, "raw", ""},
		{"raw, not said", "", d.raw, "", "not-a-disc", "partition table"},
		{"raw as qcow2", "qcow2", d.raw, "", "not-a-disk", "it is raw, not qcow2"},
		{"raw as a disc", "iso", d.raw, "", "not-a-disc", "not an ISO 9660"},
		{"raw, cut off", "raw", d.raw[:8<<20], "", "medium-truncated", "it is cut off"},
		{"a disc", "", iso, wire.ImageDisc, "iso9660", ""},
		{"a disc, said", "iso", iso, wire.ImageDisc, "iso9660", ""},
		{"a disc by its format", "iso9660", iso, wire.ImageDisc, "iso9660", ""},
		{"a disc as another", "udf", iso, "", "not-a-disc", "it is iso9660, not udf"},
		{"a disc as raw", "raw", iso, "", "not-a-disk", "it is a disc (iso9660), not a disk image"},
		{"a disc as qcow2", "qcow2", iso, "", "not-a-disk", "it is a disc (iso9660), not a disk image"},
		{"a hybrid", "", d.hybrid, wire.ImageDisc, "iso9660", ""},
		{"a hybrid as raw", "raw", d.hybrid, "", "not-a-disk", "it is a disc (iso9660), not a disk image"},
		{"a text", "", text, "", "not-a-disc", "this is a text file"},
		{"a text as raw", "raw", text, "", "not-a-disk", "neither"},
		{"a text as qcow2", "qcow2", text, "", "not-a-disk", "this is a text file"},
		{"nobody knows", "vmdk", d.qcow2, "", "bad-request", `no format "vmdk"`},
	} {
		for _, how := range []string{"upload", "stdin", "url"} {
			t.Run(row.name+" by "+how, func(t *testing.T) {
				r := newRig(t)
				q := Request{Name: "it", Pool: "local", Format: row.format}
				var i Image
				var err error
				switch how {
				case "upload":
					i, err = r.Upload(t.Context(), q, bytes.NewReader(row.content), int64(len(row.content)))
				case "stdin":
					i, err = r.Upload(t.Context(), q, bytes.NewReader(row.content), -1)
				case "url":
					s := newServer(t, map[string][]byte{"/it": row.content})
					q.URLs = []string{s.URL + "/it"}
					if i, err = r.Register(q); err == nil {
						if i = r.ended(i); i.State == wire.ImageFailed {
							require.NotEmpty(t, i.Failure.Remedy)
							err = &Error{Code: i.Failure.Code, Detail: i.Failure.Cause, Next: i.Failure.Remedy}
						}
					}
				}
				if row.kind == "" {
					require.Error(t, err)
					require.EqualValues(t, row.is, code(err), err)
					require.ErrorContains(t, err, row.says)
					require.Empty(t, r.left())
					return
				}
				require.NoError(t, err)
				require.Equal(t, row.kind, i.Kind)
				require.Equal(t, row.is, i.Format)
				ext := ".iso"
				if row.kind == wire.ImageDisk {
					require.EqualValues(t, 16<<20, i.VirtualSize)
					ext = "." + row.is
				}
				require.Equal(t, []string{hexOf(row.content) + ext}, r.left())
				_, err = r.Find("it")
				_, _, other := r.FindDisk("it")
				if row.kind == wire.ImageDisc {
					err, other = other, err
				}
				require.NoError(t, other)
				require.Error(t, err)
				require.NoError(t, r.Remove(t.Context(), "", "it"))
				require.Empty(t, r.left())
			})
		}
	}
}

// TestWrongUse: a disk image is no disc for a drive, and a disc is no disk, and the refusal
// says what to do with it.
func TestWrongUse(t *testing.T) {
	d := newDiskImages(t)
	r := newRig(t)
	golden := r.upload("golden", "local", d.qcow2)
	r.upload("debian", "local", disc(t, "DEBIAN"))
	require.NoError(t, os.WriteFile(filepath.Join(r.options.Pools[0].Path, "mine.qcow2"), d.qcow2, 0o600))
	for _, row := range []struct {
		find       func() error
		code       Code
		says, next string
	}{
		{func() error { _, err := r.Find("golden"); return err }, wire.NotADisc, "image:golden is a disk image (qcow2), not a disc", "make a machine with it: `trayctl vm create NAME --image image:golden`"},
		{func() error { _, err := r.Find("local/golden"); return err }, wire.NotADisc, "image:golden is a disk image (qcow2), not a disc", "trayctl vm create"},
		{func() error { _, _, err := r.FindDisk("debian"); return err }, wire.NotADisk, "image:debian is a disc (iso9660), not a disk image", "boot it from a CD drive: `trayctl vm create NAME --iso image:debian`"},
		{func() error { _, _, err := r.FindDisk("mine.qcow2"); return err }, wire.NotADisk, "hasn't added", "trayctl image add NAME"},
		{func() error { _, _, err := r.FindDisk("none"); return err }, NoSuchImage, "no image none", "trayctl image ls"},
		{func() error { _, _, err := r.FindDisk("nowhere/golden"); return err }, NoSuchPool, "no pool nowhere", "pools: "},
		{func() error { _, _, _, err := r.Lend("debian"); return err }, wire.NotADisk, "is a disc", "CD drive"},
	} {
		var e *Error
		require.ErrorAs(t, row.find(), &e)
		require.Equal(t, row.code, e.Code, e.Detail)
		require.Contains(t, e.Detail, row.says)
		require.Contains(t, e.Next, row.next)
	}
	at, i, err := r.FindDisk("image:local/golden")
	require.NoError(t, err)
	require.Equal(t, golden, i)
	require.Equal(t, golden.Place, at.Path)
	p, err := r.Find("mine.qcow2")
	require.NoError(t, err, "a directory's own files are discs")
	require.Nil(t, p.Known)
}

// TestPoolsOfDiscs: where a disk image can't be had, it is said before anything is done, as
// far as it is known by then.
func TestPoolsOfDiscs(t *testing.T) {
	d := newDiskImages(t)
	r := newRig(t, func(o *Options) {
		o.Pools = append(o.Pools, Pool{Name: "safe", Type: Dir, Path: t.TempDir(), Verity: true})
	})
	for _, q := range []Request{
		{Pool: "fast"}, {Pool: "fast", Format: "qcow2"}, {Pool: "fast", Format: "raw"},
		{Pool: "local", Integrity: "verity"}, {Pool: "local", Integrity: "verity", Format: "qcow2"}, {Pool: "safe"},
	} {
		q.Name = "it"
		_, err := r.Upload(t.Context(), q, bytes.NewReader(d.qcow2), int64(len(d.qcow2)))
		require.Equal(t, BadRequest, code(err), err)
		require.Empty(t, r.left())
		require.Empty(t, r.Images())
	}
	_, err := r.Announce(Request{Name: "it", Pool: "fast", Format: "raw"})
	require.Equal(t, BadRequest, code(err))
}

// TestEntriesOfBefore: what was added before images had kinds is a disc.
func TestEntriesOfBefore(t *testing.T) {
	r := newRig(t)
	i := r.upload("debian", "local", disc(t, "DEBIAN"))
	e, ok := r.entry("local", "debian")
	require.True(t, ok)
	e.Kind = ""
	require.NoError(t, r.put(e))
	r.restart()
	require.Equal(t, []Image{i}, r.Images())
	_, err := r.Find("debian")
	require.NoError(t, err)
}

// TestKnownBySum: an image that the pool has under another name is adopted only as what was
// asked for.
func TestKnownBySum(t *testing.T) {
	d := newDiskImages(t)
	r := newRig(t)
	_, err := r.Upload(t.Context(), Request{Name: "raw", Format: "raw"}, bytes.NewReader(d.raw), int64(len(d.raw)))
	require.NoError(t, err)
	s := newServer(t, map[string][]byte{"/raw": d.raw})
	for format, want := range map[string]Code{"": Invalid, "qcow2": NotADisk, "iso": Invalid, "raw": ""} {
		i := r.add(Request{Name: "again" + format, URLs: []string{s.URL + "/raw"}, Checksum: hexOf(d.raw), Format: format})
		if want != "" {
			require.Equal(t, wire.ImageFailed, i.State, format)
			require.Equal(t, want, i.Failure.Code)
			continue
		}
		require.Equal(t, wire.ImageReady, i.State, i.Failure)
		require.Equal(t, wire.ImageDisk, i.Kind)
		require.EqualValues(t, 16<<20, i.VirtualSize)
	}
	require.Len(t, r.left(), 1)
}

// TestLend: a disk image from which a machine is being made stays, whoever wants its room.
func TestLend(t *testing.T) {
	d := newDiskImages(t)
	r := newRig(t, func(o *Options) { o.Pools[0].Quota = int64(len(newDiskImages(t).qcow2)) + 1<<20 })
	i := r.upload("golden", "local", d.qcow2)
	at, lent, first, err := r.Lend("local/golden")
	require.NoError(t, err)
	require.Equal(t, i.Place, at.Path)
	require.Equal(t, i.SHA256, lent.SHA256)
	_, _, second, err := r.Lend("golden")
	require.NoError(t, err)
	stays := func(says, next string) {
		t.Helper()
		var e *Error
		require.ErrorAs(t, r.Remove(t.Context(), "", "golden"), &e)
		require.Equal(t, InUse, e.Code)
		require.Equal(t, says, e.Detail)
		require.Equal(t, next, e.Next)
		all, err := r.Collect(t.Context(), time.Nanosecond, false)
		require.NoError(t, err)
		require.Empty(t, all)
		b := big(t, 2<<20)
		_, err = r.Upload(t.Context(), Request{Name: "big", Pool: "local"}, bytes.NewReader(b), int64(len(b)))
		require.Equal(t, OverQuota, code(err))
		require.FileExists(t, i.Place)
	}
	stays("a machine is being made from image:golden", "wait for it to end")
	first()
	first()
	stays("a machine is being made from image:golden", "wait for it to end")
	r.used = []User{{Machine: "web1", Medium: "image:golden"}, {Machine: "web2"}, {Machine: "web2"}}
	second()
	stays("image:golden is the base of the disks of web1, web2 (linked)", "remove those machines first")
	require.Equal(t, []string{"web1 (linked)", "web2 (linked)", "web2 (linked)"}, r.Images()[0].Users)
	r.used = nil
	done, err := r.occupy("local", "golden")
	require.NoError(t, err)
	_, _, _, err = r.Lend("golden")
	require.Equal(t, InUse, code(err), "somebody removes it")
	done()
	require.NoError(t, r.Remove(t.Context(), "", "golden"))
	_, _, _, err = r.Lend("golden")
	require.Equal(t, NoSuchImage, code(err))
	require.Empty(t, r.lent)
}
