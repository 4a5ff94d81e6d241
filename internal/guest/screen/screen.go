// Package screen reads the text on pictures of a machine's screen, so that a test can say
// what somebody in front of it would see. It takes the letters, 8 by 16 dots, from the
// programs that draw them: QEMU's VGA BIOS has those of a PC's text mode, and what draws on
// a framebuffer often has its own. It compares dot by dot: text in another font is not
// seen, and nothing is ever misread.
package screen

import (
	"bytes"
	"fmt"
	"image"
	"image/color"
	"os"
	"strings"
)

const (
	width, height = 8, 16 // of a letter, in dots
	wide          = 9     // of a letter's cell in text mode at 720 dots: the ninth is a gap
)

// glyph is a letter's dots: a byte for each line, the leftmost dot in the highest bit.
type glyph [height]byte

func (g glyph) inverted() glyph {
	for i := range g {
		g[i] = ^g[i]
	}
	return g
}

// Font is what letters look like.
type Font struct{ letters map[glyph]byte }

// smiley are the first two letters of code page 437: nothing, and a face.
var smiley = append(make([]byte, height), 0, 0, 0x7e, 0x81, 0xa5, 0x81, 0x81, 0xbd, 0x99, 0x81, 0x81, 0x7e, 0, 0, 0, 0)

// VGABIOS has the letters of text mode.
const VGABIOS = "/usr/share/seabios/vgabios-stdvga.bin"

// ReadFont finds the letters in programs, each of which has to have some.
func ReadFont(programs ...string) (*Font, error) {
	f := &Font{letters: make(map[glyph]byte)}
	for _, p := range programs {
		b, err := os.ReadFile(p)
		if err != nil {
			return nil, err
		}
		at := bytes.Index(b, smiley)
		if at < 0 || len(b) < at+256*height {
			return nil, fmt.Errorf("%s has no letters of 8 by 16 dots", p)
		}
		for c := '~'; c >= ' '; c-- { // what looks alike has the lower code
			f.letters[glyph(b[at+int(c)*height:])] = byte(c)
		}
	}
	return f, nil
}

// picture is a screen's dots by their colours.
type picture struct {
	dots          []color.NRGBA
	width, height int
}

func (p *picture) at(x, y int) color.NRGBA { return p.dots[y*p.width+x] }

// Text is what a picture says, a line for each row of letters, without what follows the
// last letter of a line. What is no letter is a blank.
func (f *Font) Text(img image.Image) string {
	b := img.Bounds()
	p := &picture{width: b.Dx(), height: b.Dy()}
	for y := b.Min.Y; y < b.Max.Y; y++ {
		for x := b.Min.X; x < b.Max.X; x++ {
			p.dots = append(p.dots, color.NRGBAModel.Convert(img.At(x, y)).(color.NRGBA))
		}
	}
	if p.width == 80*wide && p.height%height == 0 {
		text, _ := f.read(p, 0, 0, wide)
		return text
	}
	best, most := "", 0 // a framebuffer: the letters may begin anywhere
	for y := range height {
		for x := range width {
			if text, n := f.read(p, x, y, width); n > most {
				best, most = text, n
			}
		}
	}
	return best
}

// read reads the letters of a grid that begins at a place, and counts them.
func (f *Font) read(p *picture, left, top, step int) (string, int) {
	var text strings.Builder
	n := 0
	for y := top; y+height <= p.height; y += height {
		var line strings.Builder
		for x := left; x+width <= p.width; x += step {
			c := f.letter(p, x, y)
			if c != ' ' {
				n++
			}
			line.WriteByte(c)
		}
		text.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	return text.String(), n
}

// letter is the one at a place. It has two colours, either of which may be the letter's.
func (f *Font) letter(p *picture, x, y int) byte {
	var g glyph
	first := p.at(x, y)
	second := first
	for line := range height {
		for dot := range width {
			c := p.at(x+dot, y+line)
			if c == first {
				continue
			}
			if second == first {
				second = c
			}
			if c != second {
				return ' '
			}
			g[line] |= 0x80 >> dot
		}
	}
	if c, ok := f.letters[g]; ok {
		return c
	}
	if c, ok := f.letters[g.inverted()]; ok {
		return c
	}
	return ' '
}
