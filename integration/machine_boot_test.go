//go:build integration

package integration_test

import (
	"bytes"
	"image"
	"image/color"
	"image/png"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/guest"
	"github.com/trayd/trayd/internal/guest/screen"
	"github.com/trayd/trayd/internal/wire"
)

// Discs that others have made, as Debian packages bring them.
const (
	memtestDisc = "/usr/lib/memtest86+/memtest86+x64.iso"
	grubDisc    = "/usr/lib/grub-rescue/grub-rescue-cdrom.iso"
	// installerFiles has the kernel and the initrd of Debian's installer.
	installerFiles = "/usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64"
)

// screenLimit is how long a disc may take to what somebody would see: 5 s to 40 s where
// nothing else runs.
const screenLimit = 4 * time.Minute

// Colours of a PC's text mode: two thirds of what a screen can do, 42 of 63 (a8) or 170 of
// 255 (aa).
func black(c color.NRGBA) bool { return c.R == 0 && c.G == 0 && c.B == 0 }
func blue(c color.NRGBA) bool  { return c.R == 0 && c.G == 0 && c.B&^3 == 0xa8 }
func red(c color.NRGBA) bool   { return c.R&^3 == 0xa8 && c.G == 0 && c.B == 0 }

// copied puts a disc where trayd may take it from.
func (r *rig) copied(disc string) string {
	r.t.Helper()
	b, err := os.ReadFile(disc)
	require.NoError(r.t, err)
	path := filepath.Join(r.discs(), filepath.Base(disc))
	require.NoError(r.t, os.WriteFile(path, b, 0o644))
	return path
}

// boot makes a machine without anything that isn't needed, and starts it.
func (r *rig) boot(name, firmware, memory string, more ...string) {
	r.t.Helper()
	r.must(append([]string{"vm", "create", name, "--firmware", firmware, "--memory", memory, "--network", "none", "--start"}, more...)...)
}

// sees waits until a machine's screen shows all of the texts, and returns the picture.
func (r *rig) sees(name string, texts ...string) image.Image {
	r.t.Helper()
	font, err := screen.ReadFont(screen.VGABIOS, memtestDisc)
	require.NoError(r.t, err)
	for end := time.Now().Add(screenLimit); ; time.Sleep(500 * time.Millisecond) {
		got := r.trayctl("vm", "screenshot", name, "-o", "-")
		if strings.Contains(got.stderr, "doesn't answer") && time.Now().Before(end) {
			continue // its guest keeps the processor for longer than a command may take
		}
		require.Zero(r.t, got.code, got.stderr)
		img, err := png.Decode(strings.NewReader(got.stdout))
		require.NoError(r.t, err)
		said, all := font.Text(img), true
		for _, text := range texts {
			all = all && strings.Contains(said, text)
		}
		if all {
			return img
		}
		require.True(r.t, time.Now().Before(end), "the screen doesn't show %q; it shows:\n%s", texts, said)
	}
}

// share is how much of a picture has a colour, and where that is.
func share(img image.Image, is func(color.NRGBA) bool) (float64, image.Rectangle) {
	n, where := 0, image.Rectangle{}
	b := img.Bounds()
	for y := b.Min.Y; y < b.Max.Y; y++ {
		for x := b.Min.X; x < b.Max.X; x++ {
			if is(color.NRGBAModel.Convert(img.At(x, y)).(color.NRGBA)) {
				n++
				where = where.Union(image.Rect(x, y, x+1, y+1))
			}
		}
	}
	return float64(n) / float64(b.Dx()*b.Dy()), where
}

// TestMachineBootsDiscsOfOthers boots discs that nobody here has made, and looks at the
// screen as their owners would.
func TestMachineBootsDiscsOfOthers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, firmware, memory string
		disc                   func(r *rig) string
		texts                  []string
		look                   func(t *testing.T, img image.Image)
	}{
		{name: "memtest86+ on BIOS", firmware: wire.FirmwareBIOS, memory: "64M", disc: memtest, texts: []string{"Memtest86+ v", "Memory", "63MB"}, look: looksLikeMemtest(image.Pt(720, 400), 0)},
		{name: "memtest86+ on UEFI", firmware: wire.FirmwareUEFI, memory: "128M", disc: memtest, texts: []string{"Memtest86+ v", "Memory"}, look: looksLikeMemtest(image.Pt(640, 480), 40)},
		{name: "GRUB's rescue disc on BIOS", firmware: wire.FirmwareBIOS, memory: "64M", disc: grub, texts: []string{"GNU GRUB  version 2", "GNU/Linux", "FreeBSD", "keys to select which entry is highlighted"}, look: func(t *testing.T, img image.Image) {
			require.Equal(t, image.Pt(720, 400), img.Bounds().Size())
			all, _ := share(img, black)
			require.Greater(t, all, 0.7)
		}},
		{name: "Debian's installer on BIOS", firmware: wire.FirmwareBIOS, memory: "1G", disc: debianInstaller, texts: []string{"Select a language", "English", "<Go Back>"}, look: func(t *testing.T, img image.Image) {
			all, where := share(img, blue)
			require.Greater(t, all, 0.1)
			require.Equal(t, img.Bounds().Size(), where.Size())
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.start("")
			r.ready()
			began := time.Now()
			r.boot("m", c.firmware, c.memory, "--iso", c.disc(r))
			c.look(t, r.sees("m", c.texts...))
			t.Logf("on the screen after %s", time.Since(began).Round(time.Second))
			v := r.showVM("m").Machine
			require.Equal(t, wire.ScreenDrawn, v.Screen)
			require.Empty(t, v.Notes)
			r.must("vm", "rm", "m", "--force")
			r.whole()
			require.Empty(t, r.qemus())
		})
	}
}

func memtest(r *rig) string { return r.copied(memtestDisc) }
func grub(r *rig) string    { return r.copied(grubDisc) }

// debianInstaller is a disc with the kernel and the initrd of the real one, in text mode.
func debianInstaller(r *rig) string {
	r.t.Helper()
	path := filepath.Join(r.discs(), "debian.iso")
	disc := guest.BootDisc{
		Label: "DEBIAN", Append: "nomodeset quiet tsc=unstable no_timer_check ---",
		Kernel: filepath.Join(installerFiles, "linux"), Initramfs: filepath.Join(installerFiles, "initrd.gz"),
	}
	require.NoError(r.t, disc.Write(r.t.Context(), path))
	return path
}

// looksLikeMemtest: blue all over, and a red plus in the title, which is the first of 25 lines
// that begin top dots below the picture's edge.
func looksLikeMemtest(size image.Point, top int) func(*testing.T, image.Image) {
	return func(t *testing.T, img image.Image) {
		require.Equal(t, size, img.Bounds().Size())
		all, where := share(img, blue)
		require.Greater(t, all, 0.6)
		require.Equal(t, size.X, where.Dx())
		plus, where := share(img, red)
		require.Positive(t, plus)
		require.True(t, where.In(image.Rect(0, top, size.X/3, top+16)), "%v", where)
		require.LessOrEqual(t, where.Dx(), 9, "one letter")
	}
}

// blankDisc makes a disc whose boot program clears the screen and halts.
func blankDisc(r *rig) string {
	r.t.Helper()
	program := append([]byte{
		0xb8, 0x03, 0x00, 0xcd, 0x10, // mov ax, 3; int 10h: text mode, cleared
		0xb4, 0x01, 0xb9, 0x07, 0x26, 0xcd, 0x10, // mov ah, 1; mov cx, 2607h; int 10h: no cursor
		0xfa, 0xf4, 0xeb, 0xfd, // cli; hlt; jmp to the hlt
	}, bytes.Repeat([]byte{0}, 2032)...)
	return r.labelled("BLANK", map[string]string{"boot.bin": string(program)}, "-b", "boot.bin", "-no-emul-boot", "-boot-load-size", "4")
}

// TestMachineBootsNothing: who looks at a machine that doesn't boot is told why.
func TestMachineBootsNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.start("")
	r.ready()
	r.boot("shell", wire.FirmwareUEFI, "128M", "--iso", grub(r))
	r.boot("empty", wire.FirmwareBIOS, "32M", "--cdrom", "empty", "--disk", "1G")
	r.boot("blank", wire.FirmwareBIOS, "32M", "--iso", blankDisc(r))

	notes := func(name string) string { return strings.Join(r.showVM(name).Machine.Notes, "\n") }
	require.Contains(t, notes("shell"), grubDisc[strings.LastIndex(grubDisc, "/")+1:]+" doesn't boot on UEFI, but on BIOS: `trayctl vm set shell --firmware bios`")
	require.Contains(t, r.must("vm", "show", "shell"), "doesn't boot on UEFI")
	require.Contains(t, notes("empty"), "drive cd0 is empty: `trayctl insert empty/cd0 MEDIUM`")
	require.Contains(t, notes("empty"), "disk disk0 is blank")
	require.Contains(t, notes("empty"), "there is nothing that boots")

	r.sees("empty", "No bootable device")
	require.Equal(t, wire.ScreenDrawn, r.showVM("empty").Machine.Screen)
	require.Eventually(t, func() bool { return r.showVM("blank").Machine.Screen == wire.ScreenBlank }, screenLimit, 200*time.Millisecond)
	require.Contains(t, notes("blank"), "the screen is blank")
	require.Contains(t, notes("blank"), "trayctl vm log blank")
	require.Eventually(t, func() bool {
		log := r.trayctl("vm", "log", "shell")
		return log.code == 0 && strings.Contains(log.stdout, "Shell>")
	}, screenLimit, 500*time.Millisecond, "UEFI's shell")

	for name := range r.vmStatus() {
		r.must("vm", "rm", name, "--force")
	}
	r.whole()
	require.Empty(t, r.qemus())
}
