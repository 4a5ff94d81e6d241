package disk

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/trayd/trayd/internal/child"
)

// Tool is QEMU's program for disk images: qemu-img, or where that is. It dies with its
// context, and with this process, and has none of this process's capabilities: it reads what
// guests have written. Files are given to it by their absolute paths, which it takes for
// nothing else: what begins otherwise could be a protocol. Errors are an *exec.Error where it
// isn't installed, see NotInstalled, and else what it says.
type Tool string

// NotInstalled reports whether an error of a Tool is that there is none, and what to do.
func NotInstalled(err error) (next string, is bool) {
	return "install it: Debian's package is qemu-utils, others call it qemu-img", errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist)
}

// Create makes an empty, sparse qcow2 disk of that size in bytes.
func (q Tool) Create(ctx context.Context, path string, size int64) error {
	return q.run(ctx, io.Discard, "create", "-q", "-f", string(QCOW2), path, strconv.FormatInt(size, 10))
}

// Resize makes a qcow2 disk larger.
func (q Tool) Resize(ctx context.Context, path string, size int64) error {
	return q.run(ctx, io.Discard, "resize", "-q", "-f", string(QCOW2), path, strconv.FormatInt(size, 10))
}

// Measure says how many bytes the disk in a file, and beneath it, needs at most as one qcow2
// image.
func (q Tool) Measure(ctx context.Context, path string, format Format) (int64, error) {
	var out bytes.Buffer
	if err := q.run(ctx, &out, "measure", "--output", "json", "-f", string(format), "-O", string(QCOW2), path); err != nil {
		return 0, err
	}
	var m struct {
		Required int64 `json:"required"`
	}
	if err := json.Unmarshal(out.Bytes(), &m); err != nil || m.Required <= 0 {
		return 0, fmt.Errorf("%s measure says what can't be understood: %.100q", q, out.String())
	}
	return m.Required, nil
}

// Convert writes the disk into to, whatever that was, as qcow2 that stands alone. Nothing of
// it is durable afterwards. told hears how much is done, between 0 and 1.
func (q Tool) Convert(ctx context.Context, from string, format Format, to string, compress bool, told func(share float64)) error {
	args := []string{"convert", "-p", "-f", string(format), "-O", string(QCOW2)}
	if compress {
		args = append(args, "-c", "-o", "compression_type=zstd")
	}
	return q.run(ctx, &percents{told: told}, append(args, from, to)...)
}

// endLimit is how long its output is waited for when it has been killed.
const endLimit = 5 * time.Second

// run runs it to its end. The error of one that has failed is what it says.
func (q Tool) run(ctx context.Context, out io.Writer, args ...string) error {
	cmd := exec.CommandContext(ctx, string(q), args...)
	said := &child.Output{Most: 2 << 10}
	cmd.Stdout, cmd.Stderr = out, said
	cmd.WaitDelay = endLimit
	err := child.Run(cmd, cmd.Run)
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, exec.ErrNotFound), errors.Is(err, fs.ErrNotExist) && cmd.Process == nil:
		return fmt.Errorf("%s isn't installed on this host: %w", q, err)
	case errors.As(err, &exit) && said.String() != "":
		text := strings.TrimSpace(strings.ReplaceAll(said.String(), "qemu-img: ", ""))
		return fmt.Errorf("qemu-img %s: %s", args[0], strings.ReplaceAll(text, "\n", "; "))
	}
	return fmt.Errorf("qemu-img %s: %w", args[0], err)
}

// percents reads the progress of `qemu-img convert -p`: "    (12.34/100%)\r".
type percents struct {
	told func(share float64)
	line []byte
}

func (w *percents) Write(p []byte) (int, error) {
	for _, c := range p {
		switch {
		case c == '\r' || c == '\n':
			text, _, ok := strings.Cut(strings.TrimLeft(string(w.line), " ("), "/")
			if n, err := strconv.ParseFloat(text, 64); ok && err == nil && n >= 0 && n <= 100 {
				w.told(n / 100)
			}
			w.line = w.line[:0]
		case len(w.line) < 80:
			w.line = append(w.line, c)
		}
	}
	return len(p), nil
}
