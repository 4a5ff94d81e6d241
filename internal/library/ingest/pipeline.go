package ingest

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// block is a piece of the stream on its way.
type block struct {
	buf   []byte // blockSize
	n     int
	users atomic.Int32 // stages that still need it; the last puts it back
}

// memory is the blocks of one copy. It is mapped and not from the heap: it goes back when
// the copy ends, whenever the collector runs, and is only resident as far as it was used.
type memory struct {
	all     []byte
	free    chan *block // holds the blocks that nobody uses
	holders atomic.Int32
}

// newMemory makes blocks for that many holders; the last one that lets go unmaps them.
func newMemory(holders int32) (*memory, error) {
	all, err := unix.Mmap(-1, 0, blocks*blockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, err
	}
	m := &memory{all: all, free: make(chan *block, blocks)}
	m.holders.Store(holders)
	for i := range blocks {
		m.free <- &block{buf: all[i*blockSize : (i+1)*blockSize : (i+1)*blockSize]}
	}
	return m, nil
}

func (m *memory) letGo() {
	if m.holders.Add(-1) == 0 {
		_ = unix.Munmap(m.all) // of what Mmap returned: it can't fail
	}
}

// piece is what the reader hands on: a block, or its end.
type piece struct {
	b   *block
	err error // io.EOF at the end
}

// stage is one of those that each block goes to.
type stage struct {
	in  chan *block // as long as there are blocks: a send never waits
	use func([]byte) error
	end func() error // may be nil; not called after an error
	err error        // to be read when the stage has ended
}

// run is the pipeline: a goroutine that reads, one for out and one for each of onto. out
// may be nil. What is reported of several errors is the disk's, else a hash's, else the
// reader's.
func run(ctx context.Context, r io.Reader, limit int64, out *writer, offset int64, onto []io.Writer) error {
	mem, err := newMemory(2) // of the reader, which may outlast us, and of ourselves
	if err != nil {
		return &Error{Step: Read, Offset: offset, Err: err}
	}
	defer mem.letGo()
	inner, stop := context.WithCancel(ctx)
	defer stop()

	var stages []*stage
	if out != nil {
		stages = append(stages, &stage{use: out.write, end: out.finish})
	}
	for _, w := range onto {
		stages = append(stages, &stage{use: func(p []byte) error { return feed(w, p) }})
	}
	var running sync.WaitGroup
	for _, s := range stages {
		s.in = make(chan *block, blocks)
		running.Go(func() { s.work(mem, stop) })
	}

	pieces := make(chan piece) // from the reader
	go func() {
		defer mem.letGo()
		read(inner, r, limit, mem.free, pieces)
	}()
	total, err := hand(inner, pieces, stages)
	for _, s := range stages {
		close(s.in)
	}
	running.Wait()

	for i, s := range stages {
		switch {
		case s.err == nil:
		case i == 0 && out != nil:
			return &Error{Step: Write, Offset: out.at, Err: s.err}
		default:
			return &Error{Step: Hash, Offset: offset, Err: s.err}
		}
	}
	if e := ctx.Err(); e != nil && err != nil {
		return &Error{Step: Read, Offset: offset + total, Err: context.Cause(ctx)}
	}
	if err != nil {
		return &Error{Step: Read, Offset: offset + total, Err: err}
	}
	return nil
}

// hand hands each piece to every stage, until the reader's end or that of ctx.
func hand(ctx context.Context, pieces <-chan piece, stages []*stage) (total int64, err error) {
	for {
		select {
		case <-ctx.Done():
			return total, ctx.Err()
		case p := <-pieces:
			if p.b != nil {
				total += int64(p.b.n)
				p.b.users.Store(int32(len(stages)))
				for _, s := range stages {
					s.in <- p.b
				}
			}
			if errors.Is(p.err, io.EOF) {
				return total, nil
			}
			if p.err != nil {
				return total, p.err
			}
		}
	}
}

// work uses blocks until there are no more. After an error it only puts them back, and
// stop makes the reader end.
func (s *stage) work(mem *memory, stop func()) {
	for b := range s.in {
		if s.err == nil {
			if s.err = s.use(b.buf[:b.n]); s.err != nil {
				stop()
			}
		}
		if b.users.Add(-1) == 0 {
			mem.free <- b
		}
	}
	if s.err == nil && s.end != nil {
		s.err = s.end()
	}
}

func feed(w io.Writer, p []byte) error {
	n, err := w.Write(p)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	return err
}

// read fills blocks and sends them. The last piece has an error.
func read(ctx context.Context, r io.Reader, limit int64, free <-chan *block, to chan<- piece) {
	for left := limit; ; {
		var b *block
		select {
		case <-ctx.Done():
			return
		case b = <-free:
		}
		// One byte more than is left tells a stream that ends here from one that goes on.
		most := int64(blockSize)
		if left < most {
			most = left + 1
		}
		n, err := fill(ctx, r, b.buf[:most])
		if int64(n) > left {
			n, err = int(left), ErrTooLarge
		}
		b.n = n
		left -= int64(n)
		select {
		case <-ctx.Done():
			return
		case to <- piece{b, err}:
		}
		if err != nil {
			return
		}
	}
}

// fill reads until p is full, the reader has an error, or patience is over.
func fill(ctx context.Context, r io.Reader, p []byte) (n int, err error) {
	var empty int
	for began := time.Now(); n < len(p) && err == nil; {
		var got int
		got, err = r.Read(p[n:])
		n += got
		if got > 0 && time.Since(began) > patience {
			break
		}
		if got > 0 || err != nil {
			empty = 0
			continue
		}
		if empty++; empty > 100 { // as bufio does
			return n, io.ErrNoProgress
		}
		if ctx.Err() != nil {
			return n, ctx.Err()
		}
	}
	return n, err
}
