package iso

import (
	"errors"
	"io"
	"io/fs"
	"sort"
)

// A content is the bytes of a file: pieces of the image behind one another. It is an io.Reader, io.Seeker and
// io.ReaderAt.
type content struct {
	source
	pieces []piece
	size   int64   // bytes of the file; what the pieces have beyond is not of it
	starts []int64 // of the pieces in the file; made when first needed
	at     int64
}

func (c *content) Read(b []byte) (int, error) {
	n, err := c.ReadAt(b, c.at)
	c.at += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

// ReadAt reads from an offset in the file. Input that ends before the file does is io.ErrUnexpectedEOF.
func (c *content) ReadAt(b []byte, offset int64) (int, error) {
	if offset < 0 {
		return 0, errors.New("negative offset")
	}
	if c.starts == nil {
		at := int64(0)
		for _, r := range c.pieces {
			c.starts = append(c.starts, at)
			at += r.length
		}
	}
	done := 0
	for done < len(b) && offset < c.size {
		n := sort.Search(len(c.starts), func(n int) bool { return c.starts[n] > offset }) - 1
		if n < 0 || offset >= c.starts[n]+c.pieces[n].length {
			return done, &DamagedError{"a file that says it is longer than its extents are", 0}
		}
		r, skip := c.pieces[n], offset-c.starts[n]
		part := b[done:][:min(int64(len(b)-done), r.length-skip, c.size-offset)]
		if r.zeroes {
			clear(part)
		} else if err := c.read(part, r.start+skip); err != nil {
			return done, err
		}
		done += len(part)
		offset += int64(len(part))
	}
	if done < len(b) {
		return done, io.EOF
	}
	return done, nil
}

func (c *content) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += c.at
	case io.SeekEnd:
		offset += c.size
	}
	if offset < 0 {
		return 0, errors.New("negative offset")
	}
	c.at = offset
	return offset, nil
}

// An openFile is a file being read. It isn't safe for concurrent use.
type openFile struct {
	content
	node *node
	path string
}

func (f *openFile) Stat() (fs.FileInfo, error) { return f.node, nil }
func (f *openFile) Close() error               { return nil }

func (f *openFile) Read(b []byte) (int, error) {
	n, err := f.content.Read(b)
	if err != nil && err != io.EOF {
		err = &fs.PathError{Op: "read", Path: f.path, Err: err}
	}
	return n, err
}
