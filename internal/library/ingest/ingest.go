// Package ingest brings a stream of bytes into a file or a block device in one pass: while
// one piece is read, the one before it is written and hashed, and the one before that goes
// to the disk. At the end everything is durable and every hash has seen every byte.
//
// It knows nothing of images, networks or pools. Where the bytes come from, what the
// hashes are compared with, and what happens to a file that broke off is the caller's.
package ingest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// blockSize is how much is read, written and hashed at once, in bytes: large enough
	// that the calls cost nothing beside the bytes.
	blockSize = 1 << 20
	// blocks is how many pieces may be on their way. With fewer, a disk that pauses stops
	// the network, too; with more nothing gets faster.
	blocks = 8
	// patience is how long a piece of a slow stream is waited for before what there is of
	// it goes on to the disk.
	patience = time.Second
)

// NoLimit takes a stream of whatever length.
const NoLimit = math.MaxInt64

// ErrTooLarge is of a stream that goes on after the limit.
var ErrTooLarge = errors.New("it goes on after the most that is taken")

// Step is where a copy broke off.
type Step string

// The steps. An error of Write is the disk's, one of Hash is of a writer in onto.
const (
	Read  Step = "reading"
	Write Step = "writing"
	Hash  Step = "hashing"
)

// Error is why a copy broke off. Err is the reader's, the kernel's or the hash's own, so
// that errors.Is(err, unix.ENOSPC) and such work.
type Error struct {
	Step   Step
	Offset int64 // in the file, in bytes
	Err    error
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s at byte %d: %v", e.Step, e.Offset, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

// IsFull reports whether the disk, or what of it is allowed, is used up.
func IsFull(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// Options of a Copy.
type Options struct {
	Offset int64 // where in the file the first byte goes
	// Limit is the most bytes that are written; a stream that has more ends in ErrTooLarge.
	// NoLimit takes all. A block device wants one, since nothing else keeps its end.
	Limit int64
	// Durable is told from time to time up to which byte of the file (from its beginning,
	// Offset included) all would survive a loss of power. It is called by one goroutine at
	// a time, not after Copy has returned, and holds up the writing. May be nil.
	Durable func(end int64)
}

// Copy writes r to w, a regular file or a block device, from o.Offset on and to every one
// of onto, each in a goroutine of its own. It returns how many bytes were written.
//
// With a nil error they are durable. After an error of the reader, or the end of ctx, what
// had been read until then is durable as well, and onto has seen just these n bytes: the
// rest can be copied later with the same hashes. After an error of Write or Hash neither
// holds, and the hashes are of no use.
//
// Copy returns soon after ctx ends even if r.Read blocks; the goroutine that reads then
// ends with that Read, so the caller has to close r or let it end with ctx. Neither w nor
// onto are touched after Copy has returned. It keeps at most 8 MiB in memory, and gives
// them back.
func Copy(ctx context.Context, w *os.File, r io.Reader, o Options, onto ...io.Writer) (n int64, err error) {
	out := &writer{w: w, start: o.Offset, at: o.Offset, synced: o.Offset, durable: o.Durable, lastSync: time.Now()}
	err = run(ctx, r, o.Limit, out, o.Offset, onto)
	return out.at - o.Offset, err
}

// HashFile feeds the first size bytes of f to every one of onto, each in a goroutine of its
// own. A file that is shorter is an error that is io.ErrUnexpectedEOF.
func HashFile(ctx context.Context, f *os.File, size int64, onto ...io.Writer) error {
	_ = unix.Fadvise(int(f.Fd()), 0, size, unix.FADV_SEQUENTIAL)
	seen := &counter{}
	if err := run(ctx, io.NewSectionReader(f, 0, size), size, nil, 0, append([]io.Writer{seen}, onto...)); err != nil {
		return err
	}
	if seen.n < size {
		return &Error{Step: Read, Offset: seen.n, Err: fmt.Errorf("of %d bytes only %d are there: %w", size, seen.n, io.ErrUnexpectedEOF)}
	}
	return nil
}

type counter struct{ n int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}
