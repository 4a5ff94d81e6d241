package screen

import (
	"image"
	"image/color"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// draw writes a line of text; the letters begin step dots from one another.
func (f *Font) draw(img *image.NRGBA, at image.Point, step int, text string, ink color.NRGBA) {
	looks := make(map[byte]glyph)
	for g, c := range f.letters {
		looks[c] = g
	}
	for i := range len(text) {
		for y, line := range looks[text[i]] {
			for x := range width {
				if line&(0x80>>x) != 0 {
					img.SetNRGBA(at.X+i*step+x, at.Y+y, ink)
				}
			}
		}
	}
}

func filled(w, h int, c color.NRGBA) *image.NRGBA {
	img := image.NewNRGBA(image.Rect(0, 0, w, h))
	for i := range w * h {
		img.SetNRGBA(i%w, i/w, c)
	}
	return img
}

// TestText reads text mode, and a framebuffer whose letters begin at an odd place.
func TestText(t *testing.T) {
	f, err := ReadFont(VGABIOS)
	require.NoError(t, err)
	black, white, blue := color.NRGBA{A: 255}, color.NRGBA{R: 255, G: 255, B: 255, A: 255}, color.NRGBA{B: 170, A: 255}

	img := filled(720, 400, black)
	f.draw(img, image.Pt(9, 16), 9, "GNU GRUB  version 2.06", white)
	f.draw(img, image.Pt(0, 48), 9, "Win{}~!", blue)
	require.Contains(t, f.Text(img), "\n GNU GRUB  version 2.06\n\nWin{}~!\n")

	img = filled(643, 477, blue)
	f.draw(img, image.Pt(3, 5+32), 8, "Select a language", white)
	f.draw(img, image.Pt(3+16, 5+48), 8, "<Continue>", black)
	require.Contains(t, f.Text(img), "\nSelect a language\n  <Continue>\n")

	require.Equal(t, "\n\n", f.Text(filled(720, 32, blue)))
	img.SetNRGBA(3, 5+32, color.NRGBA{R: 1, A: 255}) // a third colour: it is no letter
	require.Contains(t, f.Text(img), "\n elect a language\n")
}

func TestProgramWithoutLetters(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rom")
	require.NoError(t, os.WriteFile(path, smiley, 0o600))
	_, err := ReadFont(path)
	require.ErrorContains(t, err, "no letters of 8 by 16 dots")
	_, err = ReadFont(path + ".none")
	require.ErrorIs(t, err, os.ErrNotExist)
}
