package agent

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/qemutest"
)

// TestMediaRefused: what is no disc, or not ours to give, is refused before anything
// is touched.
func TestMediaRefused(t *testing.T) {
	r := newRig(t, func(o *Options) { o.MediaRoots = append(o.MediaRoots, o.MediaRoots[0]+"2") })
	media, second := r.dir+"/media/", r.dir+"/media2/"
	require.NoError(t, os.Mkdir(second, 0o700))
	a := r.disc("DISC_A")
	content, err := os.ReadFile(a)
	require.NoError(t, err)

	write := func(path, content string) { require.NoError(t, os.WriteFile(path, []byte(content), 0o600)) }
	link := func(to, path string) { require.NoError(t, os.Symlink(to, path)) }
	write(media+"text.iso", "this is no disc\n")
	write(media+"empty.iso", "")
	write(media+"page.iso", "<!DOCTYPE html><html><body>404 Not Found</body></html>")
	write(media+"cow.iso", "QFI\xfb\x00\x00\x00\x03"+string(make([]byte, 64<<10)))
	write(media+"zeroes.iso", string(make([]byte, 1<<20)))
	write(media+"cut.iso", string(content[:len(content)-2048]))
	write(media+"both.iso", string(content))
	write(second+"both.iso", string(content))
	write(r.dir+"/outside.iso", string(content))
	require.NoError(t, os.Mkdir(media+"dir.iso", 0o700))
	require.NoError(t, syscall.Mkfifo(media+"fifo.iso", 0o600))
	require.NoError(t, syscall.Mknod(media+"char.iso", syscall.S_IFCHR|0o600, 1<<8|3)) // /dev/null's number
	link(r.dir+"/outside.iso", media+"leads-out.iso")
	link("../outside.iso", media+"leads-up.iso")
	link("..", media+"up")
	link("loop.iso", media+"loop.iso")
	link("nowhere.iso", media+"dangling.iso")

	for _, row := range []struct {
		name, medium string
		code         Code
	}{
		{"missing", media + "missing.iso", NoSuchMedium},
		{"missing directory", media + "no/such/dir.iso", NoSuchMedium},
		{"a file for a directory", a + "/x.iso", NoSuchMedium},
		{"dangling link", media + "dangling.iso", NoSuchMedium},
		{"directory", media + "dir.iso", Unreadable},
		{"the root itself", r.dir + "/media", OutsideRoots},
		{"pipe", media + "fifo.iso", Unreadable},
		{"character device", media + "char.iso", Unreadable},
		{"link loop", media + "loop.iso", Unreadable},
		{"outside the roots", r.dir + "/outside.iso", OutsideRoots},
		{"outside by ..", media + "../outside.iso", OutsideRoots},
		{"outside by a link", media + "leads-out.iso", OutsideRoots},
		{"outside by a relative link", media + "leads-up.iso", OutsideRoots},
		{"outside by a link to a directory", media + "up/outside.iso", OutsideRoots},
		{"outside, relative", "../outside.iso", OutsideRoots},
		{"what QEMU would interpret", `json:{"driver":"nbd"}`, NoSuchMedium},
		{"the agent's own descriptor", "/proc/self/fd/0", OutsideRoots},
		{"relative, missing", "missing.iso", NoSuchMedium},
		{"relative, in two roots", "both.iso", BadRequest},
		{"text", media + "text.iso", NotADisc},
		{"empty", media + "empty.iso", NotADisc},
		{"HTML", media + "page.iso", NotADisc},
		{"qcow2", media + "cow.iso", NotADisc},
		{"zeroes", media + "zeroes.iso", NotADisc},
		{"truncated", media + "cut.iso", Truncated},
	} {
		t.Run(row.name, func(t *testing.T) {
			src, err := new(Agent).openMedium(row.medium, &r.opts, true)
			require.Nil(t, src.file)
			(&rig{t: t}).isError(row.code, err)
		})
	}

	m := r.machine("vm", qemutest.IDE)
	r.start()
	r.done(Insert, "vm", a)
	node := m.state("cd0").Node()
	r.refused(Truncated, Replace, "vm", media+"cut.iso")
	r.refused(OutsideRoots, Replace, "vm", media+"leads-out.iso")
	r.holds("vm", a)
	require.Equal(t, node, m.state("cd0").Node())
}

// TestMediaFound: the ways to a disc that are allowed.
func TestMediaFound(t *testing.T) {
	dir := t.TempDir()
	media, second := filepath.Join(dir, "media"), filepath.Join(dir, "second")
	for _, d := range []string{media, second, media + "/deep"} {
		require.NoError(t, os.Mkdir(d, 0o700))
	}
	a := qemutest.Disc(t, media, "DISC_A")
	b := qemutest.Disc(t, second, "DISC_B")
	require.NoError(t, os.Symlink(b, media+"/other-root.iso"))
	require.NoError(t, os.Symlink("DISC_A.iso", media+"/near.iso"))
	require.NoError(t, os.Symlink(a, media+"/absolute.iso"))
	require.NoError(t, os.Symlink("../DISC_A.iso", media+"/deep/inside.iso"))
	require.NoError(t, os.Symlink(media, dir+"/by-link"))
	for _, row := range []struct {
		name, medium, volume string
		roots                []string
	}{
		{"whole path", a, "DISC_A", []string{media}},
		{"relative", "DISC_B.iso", "DISC_B", []string{media, second}},
		{"relative, beneath", "deep/inside.iso", "DISC_A", []string{media, second}},
		{"unclean", media + "//deep/../DISC_A.iso", "DISC_A", []string{media}},
		{"link", media + "/near.iso", "DISC_A", []string{media}},
		{"absolute link within the root", media + "/absolute.iso", "DISC_A", []string{media}},
		{"link up within the root", media + "/deep/inside.iso", "DISC_A", []string{media}},
		{"link from one root into another", media + "/other-root.iso", "DISC_B", []string{media, second}},
		{"root that is a link", dir + "/by-link/DISC_A.iso", "DISC_A", []string{dir + "/by-link"}},
		{"real place of a root that is a link", a, "DISC_A", []string{dir + "/by-link"}},
		{"root within a root", media + "/deep/inside.iso", "DISC_A", []string{media, media + "/deep"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			src, err := new(Agent).openMedium(row.medium, &Options{MediaRoots: row.roots}, true)
			require.NoError(t, err)
			defer src.file.Close()
			require.Equal(t, row.volume, src.medium.VolumeID)
			require.Equal(t, row.medium, src.medium.Name)
		})
	}
	_, err := new(Agent).openMedium(media+"/other-root.iso", &Options{MediaRoots: []string{media}}, true)
	require.Equal(t, OutsideRoots, CodeOf(err), "the other root is none any more")
}

// TestNoValidate: what is no disc goes in for the privileged who insist.
func TestNoValidate(t *testing.T) {
	r := newRig(t)
	text := r.dir + "/media/text.iso"
	require.NoError(t, os.WriteFile(text, bytes.Repeat([]byte("no disc\n"), 512), 0o600))
	r.machine("vm", qemutest.IDE)
	r.start()
	r.refused(NotADisc, Insert, "vm", text)
	r.refused(NotADisc, Insert, "vm", text, privileged)
	r.refused(Forbidden, Insert, "vm", text, noValidate)
	r.holds("vm", "")
	r.done(Insert, "vm", text, noValidate, privileged)
	r.holds("vm", text)
}

// TestBlockDevice: a block device beneath a root is a disc like any file.
func TestBlockDevice(t *testing.T) {
	strategies(t, func(t *testing.T, strategy func(*Options)) {
		r := newRig(t, strategy, func(o *Options) { o.MediaRoots = append(o.MediaRoots, "/dev") })
		file := r.disc("ON_DEVICE")
		out, err := exec.Command("/sbin/losetup", "--find", "--show", "--read-only", file).CombinedOutput()
		require.NoError(t, err, "root, and loop devices, are needed: %s", out)
		device := strings.TrimSpace(string(out))
		t.Cleanup(func() { require.NoError(t, exec.Command("/sbin/losetup", "--detach", device).Run()) })
		for _, kind := range []qemutest.Drive{qemutest.SATA, qemutest.SCSI} {
			m := r.machine(kind.Name, kind)
			if r.agent == nil {
				r.start()
			}
			r.within("the machine to answer", func() bool { st, err := r.agent.VM(t.Context(), kind.Name); return err == nil && st.Answered })
			r.done(Insert, kind.Name, "block:"+device)
			r.holds(kind.Name, "block:"+device)
			require.Equal(t, "ON_DEVICE", m.Guest(t).Volume())
			r.done(Replace, kind.Name, device) // the same, said in another way
			r.done(Eject, kind.Name, "", force)
			r.within("QEMU to let the device go", func() bool { return len(m.OpenFiles(t, device)) == 0 })
		}
		r.refused(OutsideRoots, Insert, "virtio-scsi", "block:/etc/passwd")
		r.refused(NoSuchMedium, Insert, "virtio-scsi", "block:/dev/no-such-device")
		r.refused(Unreadable, Insert, "virtio-scsi", "/dev/null")
	})
}
