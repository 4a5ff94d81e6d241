package state

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"
	"unicode"
	"unicode/utf8"
)

// Limits of what a journal takes.
const (
	MaxKey   = 512     // bytes of a key
	MaxValue = 1 << 20 // bytes of a value, written as JSON

	// maxLine is the longest line that a writer within these limits can make: every byte of the key escaped, and
	// the field names, two sequence numbers and the checksum around it.
	maxLine = MaxValue + 2*MaxKey + 128
)

const (
	formatName    = "trayd-state"
	formatVersion = 1

	crcLength = len(`,"crc":"00000000"}`)
)

// null is the value that removes a key.
const null = "null"

// A record is one line of the journal.
type record struct {
	seq   uint64
	key   string // empty in the header
	value json.RawMessage
	with  uint64 // first line of the write that this line belonged to; its own seq when it came first
}

// A header is the value of a journal's first record.
type header struct {
	Format  string `json:"format"`
	Version int    `json:"version"`
}

// appendRecord appends r as one line, newline included, to dst.
func appendRecord(dst []byte, table *crc32.Table, r record) []byte {
	start := len(dst)
	dst = append(dst, `{"seq":`...)
	dst = strconv.AppendUint(dst, r.seq, 10)
	dst = append(dst, `,"key":"`...)
	for i := range len(r.key) {
		if c := r.key[i]; c == '"' || c == '\\' {
			dst = append(dst, '\\')
		}
		dst = append(dst, r.key[i])
	}
	dst = append(dst, `","value":`...)
	dst = append(dst, r.value...)
	if r.with != r.seq {
		dst = append(dst, `,"with":`...)
		dst = strconv.AppendUint(dst, r.with, 10)
	}
	sum := crc32.Checksum(dst[start:], table)
	dst = append(dst, `,"crc":"`...)
	for shift := 28; shift >= 0; shift -= 4 {
		dst = append(dst, "0123456789abcdef"[sum>>shift&0xf])
	}
	return append(dst, '"', '}', '\n')
}

func appendHeader(dst []byte, table *crc32.Table, seq uint64) []byte {
	value := fmt.Sprintf(`{"format":%q,"version":%d}`, formatName, formatVersion)
	return appendRecord(dst, table, record{seq: seq, value: json.RawMessage(value), with: seq})
}

// parseRecord reads one line without its newline. It takes exactly what appendRecord writes and nothing else: a line
// that somebody edited has a wrong checksum anyway. The record's value aliases line. The error is the reason alone.
func parseRecord(line []byte, table *crc32.Table) (record, error) {
	var r record
	body, err := checkedBody(line, table)
	if err != nil {
		return r, err
	}
	rest, ok := bytes.CutPrefix(body, []byte(`{"seq":`))
	if !ok {
		return r, errors.New("it does not begin with a sequence number")
	}
	end := bytes.IndexByte(rest, ',')
	if end < 0 {
		return r, errors.New("it has no key")
	}
	if r.seq, ok = parseNumber(rest[:end]); !ok {
		return r, errors.New("its sequence number is not a number")
	}
	if rest, ok = bytes.CutPrefix(rest[end:], []byte(`,"key":`)); !ok {
		return r, errors.New("it has no key")
	}
	if r.key, rest, ok = cutKey(rest); !ok {
		return r, errors.New("its key is not a JSON string")
	}
	if r.key != "" {
		if err := checkKey(r.key); err != nil {
			return r, err
		}
	}
	if rest, ok = bytes.CutPrefix(rest, []byte(`,"value":`)); !ok {
		return r, errors.New("it has no value")
	}
	r.value, r.with = cutWith(rest)
	if r.with == 0 {
		r.with = r.seq
	}
	switch {
	case r.with > r.seq:
		return r, errors.New("it claims to be written together with a later line")
	case len(r.value) > MaxValue:
		return r, fmt.Errorf("its value has %d bytes, more than %d", len(r.value), MaxValue)
	case !json.Valid(r.value):
		return r, errors.New("its value is not JSON")
	}
	return r, nil
}

// checkedBody returns the bytes that the checksum at the end of line covers, when it does cover them.
func checkedBody(line []byte, table *crc32.Table) ([]byte, error) {
	if len(line) < crcLength {
		return nil, errors.New("it is not a record (too short)")
	}
	body, tail := line[:len(line)-crcLength], line[len(line)-crcLength:]
	digits, ok := bytes.CutPrefix(tail, []byte(`,"crc":"`))
	if ok {
		digits, ok = bytes.CutSuffix(digits, []byte(`"}`))
	}
	if !ok {
		return nil, errors.New("it does not end in a checksum")
	}
	want := crc32.Checksum(body, table)
	got, err := strconv.ParseUint(string(digits), 16, 32)
	if err != nil || bytes.ContainsAny(digits, "ABCDEF+_") {
		return nil, errors.New("its checksum is not eight hexadecimal digits")
	}
	if uint32(got) != want {
		return nil, fmt.Errorf("its checksum is %s, its content has %08x", digits, want)
	}
	return body, nil
}

// parseNumber reads a JSON number that is a positive integer.
func parseNumber(digits []byte) (uint64, bool) {
	if len(digits) == 0 || digits[0] < '1' || digits[0] > '9' {
		return 0, false
	}
	n, err := strconv.ParseUint(string(digits), 10, 63) // so that one more is a number too
	return n, err == nil
}

// cutKey splits a JSON string from what follows it.
func cutKey(b []byte) (key string, rest []byte, ok bool) {
	if len(b) == 0 || b[0] != '"' {
		return "", nil, false
	}
	for i := 1; i < len(b); i++ {
		switch b[i] {
		case '\\':
			i++
		case '"':
			if err := json.Unmarshal(b[:i+1], &key); err != nil {
				return "", nil, false
			}
			return key, b[i+1:], true
		}
	}
	return "", nil, false
}

// cutWith splits the optional with field from the value before it; 0 when there is none. It cannot mistake a part of
// the value for it: a JSON value that ends in a digit is a bare number, and has no comma.
func cutWith(b []byte) (value []byte, with uint64) {
	end := len(b)
	for end > 0 && b[end-1] >= '0' && b[end-1] <= '9' {
		end--
	}
	value, ok := bytes.CutSuffix(b[:end], []byte(`,"with":`))
	if !ok {
		return b, 0
	}
	if with, ok = parseNumber(b[end:]); !ok {
		return b, 0
	}
	return value, with
}

// checkKey says why key cannot be a key.
func checkKey(key string) error {
	switch {
	case key == "":
		return errors.New("the key is empty")
	case len(key) > MaxKey:
		return fmt.Errorf("the key has %d bytes, more than %d", len(key), MaxKey)
	case !utf8.ValidString(key):
		return fmt.Errorf("the key %q is not UTF-8", key)
	}
	for _, c := range key {
		if unicode.IsControl(c) {
			return fmt.Errorf("the key %q has a control character", key)
		}
	}
	return nil
}

// castagnoli returns the table of CRC-32C; the standard library keeps one and computes with the processor's own
// instruction.
func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }
