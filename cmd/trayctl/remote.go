package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/trayd/trayd/internal/wire"
	"github.com/trayd/trayd/iso"
)

// remoteImage is an image of the library. trayd reads it; what is looked for in it is found
// here.
type remoteImage struct {
	ctx   context.Context // of the command
	c     *client
	path  string
	size  int64
	cache map[int64][]byte // pieces by their number
}

// piece is how much is asked for at once, in bytes: a volume may have to be activated for
// each. pieces is how many are kept.
const (
	piece  = 1 << 20
	pieces = 8
)

// libraryImage opens an image that was added to a pool.
func (c *cli) libraryImage(ctx context.Context, name string) (image, error) {
	r := &remoteImage{ctx: ctx, c: c.client, path: imagePath("", name), cache: make(map[int64][]byte)}
	var i wire.Image
	if err := c.client.do(ctx, "GET", r.path, nil, &i); err != nil {
		return nil, err
	}
	if i.Kind == wire.ImageDisk {
		return nil, &wire.Problem{Code: string(wire.NotADisc), Detail: fmt.Sprintf("%s is a disk image (%s), not a disc", i, i.Format), Next: "`trayctl image show " + i.Name + "` says what is known of it"}
	}
	r.size = i.Size
	return r, nil
}

func (r *remoteImage) inspect() (iso.Report, error) {
	var report iso.Report
	err := r.c.do(r.ctx, "GET", r.path+"/inspection", nil, &report)
	return report, err
}

func (r *remoteImage) files() (fs.FS, error) { return iso.Files(r, r.size) }
func (r *remoteImage) Close() error          { return nil }

// ReadAt is that of io.ReaderAt.
func (r *remoteImage) ReadAt(b []byte, offset int64) (n int, err error) {
	for n < len(b) {
		if offset+int64(n) >= r.size {
			return n, io.EOF
		}
		number := (offset + int64(n)) / piece
		p, err := r.piece(number)
		if err != nil {
			return n, err
		}
		at := offset + int64(n) - number*piece
		if at >= int64(len(p)) {
			return n, io.ErrUnexpectedEOF
		}
		n += copy(b[n:], p[at:])
	}
	return n, nil
}

func (r *remoteImage) piece(number int64) ([]byte, error) {
	if p, ok := r.cache[number]; ok {
		return p, nil
	}
	last := min((number+1)*piece, r.size) - 1
	a, err := r.c.sendWith(r.ctx, "GET", r.path+"/content", fmt.Sprintf("Range: bytes=%d-%d\r\n", number*piece, last), nil, 0)
	if err != nil {
		return nil, err
	}
	defer a.Close()
	p, err := r.c.read(r.ctx, a)
	if err == nil && int64(len(p)) != last-number*piece+1 {
		err = errors.New("trayd sent another part of the image than was asked for")
	}
	if err != nil {
		return nil, err
	}
	if len(r.cache) >= pieces {
		clear(r.cache)
	}
	r.cache[number] = p
	return p, nil
}
