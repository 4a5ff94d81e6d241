package iso

import (
	"fmt"
	"io"
	"sync"
)

// A Format is the kind of a volume.
type Format string

// The formats of optical discs.
const (
	ISO9660 Format = "iso9660" // ECMA-119 alone, with or without Rock Ridge, Joliet and El Torito
	UDF     Format = "udf"     // ECMA-167 alone
	Bridge  Format = "bridge"  // both over the same files, as on Windows installation discs
)

// Info is what an image says about itself.
type Info struct {
	Format   Format `json:"format"`
	VolumeID string `json:"volume_id"` // printable UTF-8, without the padding; may be empty
	Size     int64  `json:"size"`      // bytes of the input
	// DeclaredSize is how many bytes the volume has at least, by its own descriptors; at most Size.
	DeclaredSize int64 `json:"declared_size"`
}

const (
	// systemArea is where the volume descriptors and the volume recognition sequence begin: behind 16 sectors of
	// 2048 bytes that are left to the system (ECMA-119 6.2.1, ECMA-167 2/8.3).
	systemArea = 16 * sectorSize
	sectorSize = 2048
	// headSize is what is read of every image: the system area and 16 descriptors behind it. Real discs have two to
	// six.
	headSize = 64 << 10
)

// A Prober keeps the memory that a probe reads into, 64 KiB, for the next one. It is for those who probe often; the zero
// Prober is ready, and safe for concurrent use.
type Prober struct {
	heads sync.Pool // of *[headSize]byte
}

// Probe is the function of that name.
func (p *Prober) Probe(r io.ReaderAt, size int64) (Info, error) {
	buf, ok := p.heads.Get().(*[headSize]byte)
	if !ok {
		buf = new([headSize]byte)
	}
	defer p.heads.Put(buf)
	return probe(r, size, buf[:])
}

// Probe says whether r, which has size bytes, holds an ISO 9660 or UDF file system that is complete as far as its
// descriptors tell.
//
// The errors are *NotDiscError, *TruncatedError and *DamagedError, and those of r, wrapped. Input that ends before
// size is io.ErrUnexpectedEOF. Concurrent calls are safe as far as r is.
func Probe(r io.ReaderAt, size int64) (Info, error) {
	return probe(r, size, make([]byte, headSize))
}

func probe(r io.ReaderAt, size int64, buf []byte) (Info, error) {
	if size <= 0 {
		return Info{}, &NotDiscError{Format: "empty", Found: "empty", hint: "a download that went wrong?"}
	}
	head := buf[:min(size, headSize)]
	if err := readAt(r, head, 0); err != nil {
		return Info{}, err
	}
	found, err := recognize(head)
	if err != nil {
		return Info{}, err
	}
	info := Info{Size: size}
	if found.primary > 0 {
		info.Format = ISO9660
		if err := info.readPrimary(head, found.primary); err != nil {
			return Info{}, err
		}
		if !found.terminated {
			return Info{}, &DamagedError{Defect: "the set of volume descriptors has no terminator", Offset: found.end}
		}
	}
	switch {
	case found.nsr && found.primary > 0:
		info.Format = Bridge
	case found.nsr:
		info.Format = UDF
	case found.primary == 0:
		return Info{}, identify(head, size)
	}
	if found.nsr {
		if err := info.readUDF(r, buf); err != nil {
			return Info{}, err
		}
	}
	return info, nil
}

// declare takes a size that a structure declares, and compares it with what is there.
func (i *Info) declare(size int64) error {
	i.DeclaredSize = max(i.DeclaredSize, size)
	if i.DeclaredSize > i.Size {
		return &TruncatedError{Declared: i.DeclaredSize, Size: i.Size}
	}
	return nil
}

// readAt fills b from offset on.
func readAt(r io.ReaderAt, b []byte, offset int64) error {
	n, err := r.ReadAt(b, offset)
	if n >= len(b) {
		return nil // an io.EOF right behind the last byte is none of ours
	}
	if err == io.EOF || err == nil {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("reading %d bytes of the image at byte %d: %w", len(b), offset, err)
}
