package iso

import (
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
)

// printable makes an identifier fit for a terminal and a log: without padding, and with U+FFFD in place of what is
// not UTF-8 or cannot be printed. The standard allows only A-Z, 0-9 and _; discs have anything.
func printable(s string) string {
	return strings.Map(func(c rune) rune {
		if !strconv.IsPrint(c) {
			return unicode.ReplacementChar
		}
		return c
	}, strings.Trim(s, " \x00"))
}

// dstring reads a fixed-length field in OSTA CS0 (UDF 2.1.3): a compression identifier, the characters, padding, and
// in the last byte how many of the others count. What is not of that form reads as empty.
func dstring(field []byte) string {
	length := int(field[len(field)-1])
	if length < 2 || length >= len(field) {
		return ""
	}
	text := field[1:length]
	units := make([]uint16, 0, len(text))
	switch field[0] {
	case 8, 254: // one byte a character, the lower half of Unicode's first plane
		for _, c := range text {
			units = append(units, uint16(c))
		}
	case 16, 255: // two bytes, the high one first
		for ; len(text) >= 2; text = text[2:] {
			units = append(units, uint16(text[0])<<8|uint16(text[1]))
		}
	}
	return printable(string(utf16.Decode(units)))
}
