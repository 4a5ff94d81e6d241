package library

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/disk"
	"github.com/trayd/trayd/internal/wire"
)

// machine is the disks of one: a raw one, a qcow2 one, and one that is linked to that.
type machine struct{ dir string }

func newMachine(t testing.TB) machine {
	t.Helper()
	m := machine{t.TempDir()}
	tool(t, m.dir, "", "qemu-img", "create", "-q", "-f", "qcow2", "qcow2", "64M")
	tool(t, m.dir, "", "qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 2M", "-c", "write -P 8 60M 1M", "qcow2")
	tool(t, m.dir, "", "qemu-img", "convert", "-f", "qcow2", "-O", "raw", "qcow2", "raw")
	tool(t, m.dir, "", "qemu-img", "create", "-q", "-f", "qcow2", "-b", filepath.Join(m.dir, "qcow2"), "-F", "qcow2", "linked")
	return m
}

func (m machine) disk(name string) CaptureRequest {
	r := CaptureRequest{Name: "golden", Pool: "local", Source: filepath.Join(m.dir, name), SourceFormat: disk.QCOW2, Origin: "vm:win1/disk0", OSType: "windows"}
	switch name {
	case "raw":
		r.SourceFormat = disk.Raw
	case "linked":
		r.Base = disk.Base{Path: filepath.Join(m.dir, "qcow2"), Format: disk.QCOW2}
	}
	return r
}

func (r *rig) captured(q CaptureRequest) Image {
	r.t.Helper()
	i, err := r.Capture(q)
	require.NoError(r.t, err)
	return r.ended(i)
}

// TestCapture: a machine's disk becomes an image that stands alone and has the same content.
func TestCapture(t *testing.T) {
	m := newMachine(t)
	compressed := disk.Zstd
	if exec.Command("qemu-img", "create", "-q", "-f", "qcow2", "-o", "compression_type=zstd", filepath.Join(t.TempDir(), "try"), "64K").Run() != nil {
		compressed = disk.Zlib // Debian 11's has no zstd
	}
	for _, name := range []string{"qcow2", "raw", "linked"} {
		for _, compress := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				r := newRig(t)
				q := m.disk(name)
				q.Compress = compress
				i := r.captured(q)
				require.Equal(t, wire.ImageReady, i.State, i.Failure)
				require.Equal(t, wire.ImageDisk, i.Kind)
				require.Equal(t, "qcow2", i.Format)
				require.EqualValues(t, 64<<20, i.VirtualSize)
				require.Equal(t, "vm:win1/disk0", i.Source)
				require.Equal(t, "windows", i.OSType)
				content, err := os.ReadFile(i.Place)
				require.NoError(t, err)
				require.Equal(t, hexOf(content), i.SHA256)
				require.EqualValues(t, len(content), i.Size)
				info, err := disk.Probe(bytes.NewReader(content), i.Size)
				require.NoError(t, err)
				require.Equal(t, map[bool]disk.Compression{false: disk.Zlib, true: compressed}[compress], info.Compression)
				require.Equal(t, compress, i.Size < 1<<20, "%d bytes", i.Size)
				tool(t, m.dir, "", "qemu-img", "compare", "-f", "qcow2", "-F", string(q.SourceFormat), i.Place, q.Source)
				require.Equal(t, wire.ImageReady, (<-r.events).Image.State)
				require.Equal(t, []string{i.SHA256 + ".qcow2"}, r.left())

				_, err = r.Capture(q)
				require.Equal(t, Exists, code(err))
				r.restart()
				require.Equal(t, []Image{i}, r.Images())
				_, _, done, err := r.Lend("golden")
				require.NoError(t, err)
				done()
			})
		}
	}
}

// TestCaptureRefused: what can't be captured is refused before anything is done.
func TestCaptureRefused(t *testing.T) {
	m := newMachine(t)
	r := newRig(t)
	r.upload("debian", "local", disc(t, "DEBIAN"))
	before := r.left()
	for name, row := range map[string]struct {
		edit func(*CaptureRequest)
		want Code
	}{
		"the name is taken":    {func(q *CaptureRequest) { q.Name = "debian" }, Exists},
		"no name":              {func(q *CaptureRequest) { q.Name = "../x" }, BadName},
		"no pool":              {func(q *CaptureRequest) { q.Pool = "nowhere" }, NoSuchPool},
		"a volume group":       {func(q *CaptureRequest) { q.Pool = "fast" }, BadRequest},
		"no format":            {func(q *CaptureRequest) { q.SourceFormat = "" }, BadRequest},
		"another format":       {func(q *CaptureRequest) { q.SourceFormat = "vmdk" }, BadRequest},
		"not an absolute path": {func(q *CaptureRequest) { q.Source = "nbd:localhost:1" }, BadRequest},
		"no disk":              {func(q *CaptureRequest) { q.Source += "x" }, Unreadable},
		"a directory":          {func(q *CaptureRequest) { q.Source = "/etc" }, Unreadable},
	} {
		t.Run(name, func(t *testing.T) {
			q := m.disk("qcow2")
			row.edit(&q)
			_, err := r.Capture(q)
			var e *Error
			require.ErrorAs(t, err, &e)
			require.Equal(t, row.want, e.Code, e.Detail)
			require.NotEmpty(t, e.Next)
			require.Len(t, r.Images(), 1)
			require.Equal(t, before, r.left())
		})
	}
}

// TestCaptureFails: a capture that fails says why and what to do, and leaves only that.
func TestCaptureFails(t *testing.T) {
	m := newMachine(t)
	require.NoError(t, os.WriteFile(filepath.Join(m.dir, "text"), []byte("a text"), 0o600))
	for name, row := range map[string]struct {
		source string
		edit   func(*Options)
		want   Code
		says   string
		next   string
	}{
		"what is no disk":  {"text", func(*Options) {}, DiskRefused, "it is no disk image", "start it, and look into it"},
		"no qemu-img":      {"qcow2", func(o *Options) { o.QemuImg = "qemu-img-of-nobody" }, Failed, "isn't installed", "qemu-utils"},
		"beyond the quota": {"qcow2", func(o *Options) { o.Pools[0].Quota = 1 << 20 }, OverQuota, "may have 1 altogether", "quota"},
		"too large":        {"qcow2", func(o *Options) { o.MaxSize = 1 << 20 }, Invalid, "at most 1048576", "max_size"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, row.edit)
			q := m.disk("qcow2")
			q.Source = filepath.Join(m.dir, row.source)
			i := r.captured(q)
			require.Equal(t, wire.ImageFailed, i.State)
			require.Equal(t, row.want, i.Failure.Code, i.Failure.Cause)
			require.Contains(t, i.Failure.Cause, row.says)
			require.Contains(t, i.Failure.Remedy, row.next)
			require.Error(t, (<-r.events).Err)
			require.Empty(t, r.left())
			_, err := r.Retry("", "golden")
			var e *Error
			require.ErrorAs(t, err, &e)
			require.Equal(t, BadRequest, e.Code)
			require.Contains(t, e.Detail, "capture of vm:win1/disk0, and not downloaded")
			require.Contains(t, e.Next, "capture it again")
			r.restart()
			require.Equal(t, wire.ImageFailed, r.Images()[0].State, "it isn't gone on with")

			r.options.QemuImg, r.options.MaxSize, r.options.Pools[0].Quota = "", 0, 0
			require.NoError(t, r.Configure(r.options))
			require.Equal(t, wire.ImageReady, r.captured(m.disk("qcow2")).State, "the name is free for another try")
		})
	}
}

// TestCaptureOfHostileGuest: what a guest writes into its disk is the disk's content, also if
// it looks like an image that names a file of the host.
func TestCaptureOfHostileGuest(t *testing.T) {
	m := newMachine(t)
	secret := filepath.Join(m.dir, "secret")
	require.NoError(t, os.WriteFile(secret, bytes.Repeat([]byte("the host's own"), 1<<12), 0o600))
	tool(t, m.dir, "", "qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", "forged", "1M")
	forged, err := os.ReadFile(filepath.Join(m.dir, "forged"))
	require.NoError(t, err)
	f, err := os.OpenFile(filepath.Join(m.dir, "raw"), os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.Write(forged)
	require.NoError(t, err)
	require.NoError(t, f.Close())

	r := newRig(t)
	i := r.captured(m.disk("raw"))
	require.Equal(t, wire.ImageReady, i.State, i.Failure)
	content, err := os.ReadFile(i.Place)
	require.NoError(t, err)
	require.NotContains(t, string(content), "the host's own")
	tool(t, m.dir, "", "qemu-img", "compare", "-f", "qcow2", "-F", "raw", i.Place, "raw")

	// A disk that is linked to it without saying that it is raw.
	tool(t, m.dir, "", "qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", filepath.Join(m.dir, "raw"), "-F", "raw", "unsaid", "64M")
	overlay := filepath.Join(m.dir, "unsaid")
	b, err := os.ReadFile(overlay)
	require.NoError(t, err)
	at := bytes.Index(b, []byte{0xe2, 0x79, 0x2a, 0xca})
	require.Positive(t, at)
	b[at] = 0 // an extension that nobody knows
	require.NoError(t, os.WriteFile(overlay, b, 0o600))
	q := m.disk("unsaid")
	q.Name, q.Base = "unsaid", disk.Base{Path: filepath.Join(m.dir, "raw")}
	i = r.captured(q)
	require.Equal(t, wire.ImageFailed, i.State)
	require.Equal(t, DiskRefused, i.Failure.Code)
	require.Contains(t, i.Failure.Cause, "doesn't say of what format")

	// Disks that say that they stand on what their machine was never given.
	for _, name := range []string{"raw", "qcow2"} {
		tool(t, m.dir, "", "qemu-img", "create", "-q", "-f", "qcow2", "-b", filepath.Join(m.dir, name), "-F", name, "forged")
		q := m.disk("forged")
		q.Name = "forged-" + name
		i := r.captured(q)
		require.Equal(t, wire.ImageFailed, i.State)
		require.Equal(t, DiskRefused, i.Failure.Code)
		require.Contains(t, i.Failure.Cause, `and the machine's definition says ""`)
	}

	// One that stands on what it was given, and has its data in a file of the host.
	q = m.disk("linked")
	q.Name, q.Source = "elsewhere", filepath.Join(m.dir, "elsewhere")
	tool(t, m.dir, "", "qemu-img", "create", "-q", "-f", "qcow2", "-b", q.Base.Path, "-F", "qcow2", "-o", "data_file="+filepath.Join(m.dir, "data"), "elsewhere")
	tool(t, m.dir, "", "qemu-io", "-f", "qcow2", "-c", "write 0 64k", "elsewhere")
	require.NoError(t, os.WriteFile(filepath.Join(m.dir, "data"), bytes.Repeat([]byte("the host's own"), 1<<13), 0o600))
	i = r.captured(q)
	require.Equal(t, wire.ImageFailed, i.State)
	require.Equal(t, DiskRefused, i.Failure.Code)
	require.Contains(t, i.Failure.Cause, "its data is in another file")
}

// slowTool is a qemu-img that converts until it is stopped, and writes down which process it is.
func slowTool(t *testing.T) (path string, pid func() string) {
	t.Helper()
	dir := t.TempDir()
	path = filepath.Join(dir, "qemu-img")
	script := "#!/bin/sh\n[ $1 = convert ] || exec qemu-img \"$@\"\nfor a; do to=$a; done\nhead -c 1000000 /dev/zero >$to\nprintf '    (25.00/100%%)\\r'\necho $$ >" + dir + "/pid.new && mv " + dir + "/pid.new " + dir + "/pid\nexec sleep 1000\n"
	require.NoError(t, os.WriteFile(path, []byte(script), 0o755))
	return path, func() string {
		var b []byte
		require.Eventually(t, func() bool {
			var err error
			b, err = os.ReadFile(filepath.Join(dir, "pid"))
			return err == nil
		}, 5*time.Second, time.Millisecond)
		return strings.TrimSpace(string(b))
	}
}

func gone(t *testing.T, pid string) {
	t.Helper()
	require.NotEmpty(t, pid)
	require.NoDirExists(t, "/proc/"+pid)
}

// TestCancelCapture: a capture shows how far it is, can be stopped, and leaves nothing but
// the word that it was.
func TestCancelCapture(t *testing.T) {
	m := newMachine(t)
	path, pid := slowTool(t)
	r := newRig(t, func(o *Options) { o.QemuImg = path })
	slow := m.disk("qcow2")
	slow.Compress = true // by qemu-img
	i, err := r.Capture(slow)
	require.NoError(t, err)
	process := pid()
	require.Eventually(t, func() bool {
		i, err = r.Image("", "golden")
		require.NoError(t, err)
		return i.Progress != nil && i.Progress.Bytes*4 == i.Progress.Total
	}, 5*time.Second, time.Millisecond)
	require.Equal(t, wire.ImageDownloading, i.State)
	_, err = r.Capture(m.disk("qcow2"))
	require.Equal(t, InUse, code(err))
	require.Equal(t, InUse, code(r.Remove(t.Context(), "", "golden")))
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	i, err = r.Wait(ctx, "local", "golden")
	require.NoError(t, err)
	require.Equal(t, wire.ImageDownloading, i.State)

	i, err = r.Cancel("", "golden")
	require.NoError(t, err)
	require.Equal(t, wire.ImageFailed, i.State)
	require.Equal(t, Cancelled, i.Failure.Code)
	gone(t, process)
	require.Empty(t, r.left())
	require.NoError(t, r.Remove(t.Context(), "", "golden"))
	require.Empty(t, r.Images())
}

// TestStopWhileCapturing: of a capture that trayd's stop has ended nothing is left.
func TestStopWhileCapturing(t *testing.T) {
	m := newMachine(t)
	path, pid := slowTool(t)
	r := newRig(t, func(o *Options) { o.QemuImg = path })
	slow := m.disk("qcow2")
	slow.Compress = true // by qemu-img
	_, err := r.Capture(slow)
	require.NoError(t, err)
	process := pid()
	r.stop()
	gone(t, process)
	require.Empty(t, r.left())
	r.start()
	require.Empty(t, r.Images())
}

// TestCaptureKilled: a death at each step of a capture leaves the ready image, or nothing.
func TestCaptureKilled(t *testing.T) {
	m := newMachine(t)
	for _, point := range []string{"capture-registered", "image-opened", "capture-converted", "image-received", "image-verified", "image-placed", "capture-placed", "image-ready"} {
		t.Run(point, func(t *testing.T) {
			r := newRig(t)
			var died atomic.Bool
			r.failPoint = func(name string) {
				if name == point && died.CompareAndSwap(false, true) {
					_ = r.journal.Close()
					runtime.Goexit()
				}
			}
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				_, _ = r.Capture(m.disk("linked"))
			}()
			<-ended
			require.Eventually(t, died.Load, 10*time.Second, time.Millisecond)
			r.restart()
			if point == "image-ready" {
				require.Equal(t, wire.ImageReady, r.Images()[0].State)
				require.Len(t, r.left(), 1)
				return
			}
			require.Empty(t, r.Images())
			require.Empty(t, r.left())
			require.Equal(t, wire.ImageReady, r.captured(m.disk("linked")).State)
		})
	}
}

// TestCaptureKeepsSame: what a death leaves of a capture goes, and not the same content
// under another name.
func TestCaptureKeepsSame(t *testing.T) {
	m := newMachine(t)
	r := newRig(t)
	first := r.captured(m.disk("qcow2"))
	q := m.disk("qcow2")
	q.Name = "again"
	again := r.captured(q)
	require.Equal(t, first.Place, again.Place)
	e, ok := r.entry("local", "again")
	require.True(t, ok)
	e.State = wire.ImageVerifying
	require.NoError(t, r.put(e))
	r.restart()
	require.Equal(t, []Image{first}, r.Images())
	require.FileExists(t, first.Place)
}

// TestToolDiesWithUs: a death of trayd leaves no qemu-img that goes on writing.
func TestToolDiesWithUs(t *testing.T) {
	const self = "TRAYD_TEST_TOOL"
	if path := os.Getenv(self); path != "" { // the trayd that dies
		_ = disk.Tool(path).Convert(context.Background(), "/dev/null", disk.Raw, path+".out", false, func(float64) {})
		return
	}
	path, pid := slowTool(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestToolDiesWithUs$")
	cmd.Env = append(os.Environ(), self+"="+path)
	require.NoError(t, cmd.Start())
	process := pid()
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait() // that it was killed is known
	require.Eventually(t, func() bool {
		st, err := os.ReadFile("/proc/" + process + "/stat")
		return err != nil || strings.Contains(string(st), ") Z ") // whoever is its parent now looks when he likes
	}, 5*time.Second, time.Millisecond)
}
