package qmp

import (
	"fmt"
	"io"
	"os"
	"sync"
)

// wireVariable is the environment variable that shows all traffic.
const wireVariable = "TRAYD_QMP_WIRE"

// A wire writes down what is said. A nil wire does not.
type wire struct {
	prefix string

	mu sync.Mutex // keeps the lines of the reader and of the writers apart
	w  io.Writer
}

func newWire(opts *Options, path string) *wire {
	if opts != nil && opts.Wire != nil {
		return &wire{w: opts.Wire, prefix: path}
	}
	if os.Getenv(wireVariable) == "1" {
		return &wire{w: os.Stderr, prefix: "qmp " + path}
	}
	return nil
}

func (w *wire) in(msg []byte) {
	if w != nil {
		w.line("<-", msg, "")
	}
}

func (w *wire) out(msg []byte, file *os.File) {
	if w == nil {
		return
	}
	note := ""
	if file != nil {
		note = fmt.Sprintf(" (with descriptor of %s)", file.Name())
	}
	w.line("->", msg, note)
}

func (w *wire) line(arrow string, msg []byte, note string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	line := make([]byte, 0, len(w.prefix)+len(msg)+len(note)+8)
	if w.prefix != "" {
		line = append(line, w.prefix...)
		line = append(line, ' ')
	}
	line = append(line, arrow...)
	line = append(line, ' ')
	for _, c := range msg {
		if c != '\n' && c != '\r' { // between JSON's tokens only; within a string they would be escaped
			line = append(line, c)
		}
	}
	line = append(line, note...)
	w.w.Write(append(line, '\n'))
}
