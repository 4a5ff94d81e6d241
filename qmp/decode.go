package qmp

import (
	"errors"
	"fmt"
	"io"
)

const (
	// minBuffer is the read buffer of a connection at rest. Replies of the commands that run often (query-status,
	// query-block with a few drives) and all events fit.
	minBuffer = 4 << 10

	// maxMessage bounds one message. QEMU has no limit of its own; libvirt has lived with this one for years
	// (QEMU_MONITOR_MAX_RESPONSE in its qemu_monitor.c). The largest reply seen is the schema with 207,000 bytes.
	maxMessage = 10 << 20

	// maxEmptyReads is how many reads without data or error in a row are taken for a broken reader.
	maxEmptyReads = 100
)

var (
	errTooLarge = fmt.Errorf("a message is larger than %d MiB", maxMessage>>20)
	errNotQMP   = errors.New("not a QMP message")
)

// A decoder cuts a stream into JSON objects by their nesting, because neither lines nor reads are boundaries: a
// pretty-printing monitor sends a message in many lines, and a read ends anywhere. What stands in an object is not its
// business. It has one user at a time.
type decoder struct {
	r   io.Reader
	max int

	buf   []byte // buf[start:end] has been read and not been returned yet
	start int
	end   int

	// Where the scan of buf[start:end] stands, so that a message that comes in many reads is scanned once.
	scan     int
	depth    int
	inString bool
	escaped  bool
}

func newDecoder(r io.Reader) *decoder {
	return &decoder{r: r, max: maxMessage, buf: make([]byte, minBuffer)}
}

// next returns the next message, which stays valid until the following call. The error is io.EOF between messages,
// io.ErrUnexpectedEOF within one, errTooLarge, errNotQMP, or the reader's own. No error can be recovered from.
func (d *decoder) next() ([]byte, error) {
	d.settle()
	for empty := 0; ; {
		msg, err := d.cut()
		if msg != nil || err != nil {
			return msg, err
		}
		if err := d.makeRoom(); err != nil {
			return nil, err
		}
		n, err := d.r.Read(d.buf[d.end:])
		d.end += n
		switch {
		case n > 0:
			empty = 0 // an error that came along with data comes again with the next read
		case err == io.EOF && d.depth > 0:
			return nil, io.ErrUnexpectedEOF
		case err != nil:
			return nil, err
		default:
			if empty++; empty == maxEmptyReads {
				return nil, io.ErrNoProgress
			}
		}
	}
}

// cut returns the first complete message of the buffer, or nil when it is not complete yet.
func (d *decoder) cut() ([]byte, error) {
	for i := d.scan; i < d.end; i++ {
		c := d.buf[i]
		if d.inString {
			switch {
			case d.escaped:
				d.escaped = false
			case c == '\\':
				d.escaped = true
			case c == '"':
				d.inString = false
			}
			continue
		}
		switch c {
		case '{', '[':
			if d.depth == 0 && c == '[' {
				return nil, d.garbage(i)
			}
			d.depth++
		case '}', ']':
			d.depth--
			if d.depth < 0 {
				return nil, d.garbage(i)
			}
			if d.depth == 0 {
				msg := d.buf[d.start : i+1 : i+1]
				d.start, d.scan = i+1, i+1
				return msg, nil
			}
		case ' ', '\t', '\r', '\n':
			if d.depth == 0 {
				d.start = i + 1
			}
		case '"':
			if d.depth == 0 {
				return nil, d.garbage(i)
			}
			d.inString = true
		default:
			if d.depth == 0 {
				return nil, d.garbage(i)
			}
		}
	}
	d.scan = d.end
	return nil, nil
}

// garbage is the error for what cannot begin a message. It quotes some of it: the first words of a human monitor, or
// of another service, tell a person at once what is listening there.
func (d *decoder) garbage(at int) error {
	const quoted = 40
	return fmt.Errorf("%w: %q", errNotQMP, d.buf[at:min(d.end, at+quoted)])
}

// settle gives the room of the last message back, and the memory of a large one.
func (d *decoder) settle() {
	if d.start == d.end {
		d.start, d.scan, d.end = 0, 0, 0
	}
	if len(d.buf) > minBuffer && d.end-d.start <= minBuffer/2 {
		d.move(make([]byte, minBuffer))
	}
}

// makeRoom makes sure that there is room for another read, as long as the message at hand stays within its limit.
func (d *decoder) makeRoom() error {
	if d.end-d.start >= d.max {
		return errTooLarge
	}
	if d.end < len(d.buf) {
		return nil
	}
	if d.start > 0 && d.end-d.start <= len(d.buf)/2 {
		d.move(d.buf)
		return nil
	}
	d.move(make([]byte, min(2*len(d.buf), d.max+d.start)))
	return nil
}

// move puts the unread bytes at the front of buf and goes on with it.
func (d *decoder) move(buf []byte) {
	d.end = copy(buf, d.buf[d.start:d.end])
	d.scan -= d.start
	d.start = 0
	d.buf = buf
}

// own returns the message that next just returned as memory that no later call touches. A small one is copied into the
// given slice; a large one takes the buffer with it, which would have been given up anyway.
func (d *decoder) own(msg, into []byte) []byte {
	if len(d.buf) <= minBuffer || len(msg) < len(d.buf)/4 {
		return append(into[:0], msg...)
	}
	d.move(make([]byte, max(minBuffer, d.end-d.start)))
	return msg
}
