// Package remote runs commands at the other end of one byte stream, as many at a time
// as one likes: each has its standard input, outputs and exit code, and may have a
// terminal. The edge host's stream is a virtio serial port, on which nothing but this
// is spoken; whoever has the other end is root there.
package remote

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"sync"
)

// kind says what a frame is about.
type kind byte

const (
	start  kind = iota + 1 // a request, in JSON
	stdin                  // an empty one is its end
	resize                 // a size, in JSON
	kill
	stdout
	stderr
	exit // an outcome, in JSON
)

const (
	headerSize = 9        // kind, command number, length
	chunk      = 32 << 10 // of output: so that no command holds the stream for long
	limit      = 1 << 20  // of a frame: more means that the two ends are out of step
)

// frame is one message about one command.
type frame struct {
	kind    kind
	command uint32
	data    []byte
}

// request is a command to start.
type request struct {
	Args []string
	Dir  string   `json:",omitempty"`
	Env  []string `json:",omitempty"` // added to what the server has
	Size *Size    `json:",omitempty"` // of its terminal; without one it has none
}

// Size is that of a terminal, in characters.
type Size struct{ Rows, Columns uint16 }

// outcome is how a command ended. Error is why it could not be run.
type outcome struct {
	Code  int
	Error string `json:",omitempty"`
}

func readFrame(r io.Reader) (frame, error) {
	var header [headerSize]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return frame{}, err
	}
	f := frame{kind: kind(header[0]), command: binary.BigEndian.Uint32(header[1:])}
	size := binary.BigEndian.Uint32(header[5:])
	if f.kind < start || f.kind > exit || size > limit {
		return frame{}, fmt.Errorf("no frame: % x", header)
	}
	f.data = make([]byte, size)
	_, err := io.ReadFull(r, f.data)
	return f, err
}

// frameWriter writes whole frames, whoever calls.
type frameWriter struct {
	mu sync.Mutex // guards w: one frame at a time
	w  io.Writer
}

func (w *frameWriter) write(k kind, command uint32, data []byte) error {
	b := make([]byte, headerSize, headerSize+len(data))
	b[0] = byte(k)
	binary.BigEndian.PutUint32(b[1:], command)
	binary.BigEndian.PutUint32(b[5:], uint32(len(data)))
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err := w.w.Write(append(b, data...))
	return err
}

func (w *frameWriter) writeJSON(k kind, command uint32, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return w.write(k, command, b)
}

// stream is one kind of one command's bytes.
type stream struct {
	w       *frameWriter
	kind    kind
	command uint32
}

func (s stream) Write(b []byte) (int, error) {
	written := 0
	for written < len(b) {
		n := min(chunk, len(b)-written)
		if err := s.w.write(s.kind, s.command, b[written:written+n]); err != nil {
			return written, err
		}
		written += n
	}
	return written, nil
}
