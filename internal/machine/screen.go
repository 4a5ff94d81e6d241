package machine

import (
	"bytes"
	"fmt"
	"image"
	"io"
)

// maxScreen is of a screen's picture, in pixels a side: QEMU's devices go to 16384.
const maxScreen = 16384

// ParsePPM reads the picture that QEMU's screendump makes (PPM, P6).
func ParsePPM(r io.Reader) (*image.NRGBA, error) {
	b, err := io.ReadAll(io.LimitReader(r, 3*maxScreen*maxScreen))
	if err != nil {
		return nil, err
	}
	var w, h, most int
	if n, err := fmt.Sscanf(string(b[:min(64, len(b))]), "P6\n%d %d\n%d", &w, &h, &most); n != 3 || err != nil || most != 255 || w < 1 || h < 1 || w > maxScreen || h > maxScreen {
		return nil, fmt.Errorf("what QEMU calls a screen's picture is none")
	}
	for range 3 { // three lines before the pixels
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			return nil, io.ErrUnexpectedEOF
		}
		b = b[i+1:]
	}
	if len(b) < 3*w*h {
		return nil, io.ErrUnexpectedEOF
	}
	img := image.NewNRGBA(image.Rect(0, 0, w, h))
	for i := range w * h {
		copy(img.Pix[4*i:], b[3*i:3*i+3])
		img.Pix[4*i+3] = 255
	}
	return img, nil
}

// Blank reports whether nothing is drawn: one colour from edge to edge.
func Blank(img *image.NRGBA) bool {
	first := img.Pix[:4]
	for i := 0; i < len(img.Pix); i += 4 {
		if !bytes.Equal(img.Pix[i:i+4], first) {
			return false
		}
	}
	return true
}
