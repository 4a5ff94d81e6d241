// Package disk is about disk images in files: what one is, and how one gets into another
// file.
//
// Probe tells a qcow2 image, and a raw one by its partition table, from anything else, and
// refuses those that a host may not take from a stranger: QEMU opens whatever file such an
// image names. It reads at most maxRead bytes, of an image however large or hostile, and
// starts no process. What a machine has written inside the disk is none of its business.
//
// Copy copies an image within this host, sharing its blocks where the file system can.
package disk

import (
	"bytes"
	"errors"
	"io"
)

// Format is how a disk image is laid out in its file, as QEMU's block drivers are called.
type Format string

// The formats.
const (
	QCOW2 Format = "qcow2"
	Raw   Format = "raw"
)

// Info is what a disk image says of itself.
type Info struct {
	Format      Format
	VirtualSize int64 // of the disk that a machine sees, in bytes

	// Of qcow2 only.
	Version        int         // 2 or 3
	ClusterSize    int64       // bytes
	Compression    Compression // of the clusters that are compressed, if any are
	BackingFile    string      // as it is written in the image; "": none
	BackingFormat  string      // "": not said
	ExternalData   bool        // the disk's content is in another file
	DataFile       string      // which, if the image says so
	Encryption     Encryption
	Dirty, Corrupt bool // it was not closed; QEMU has found it to be damaged
	Snapshots      int  // inside the image

	// Table is the partition table of a raw image.
	Table Table
}

// Compression is of the clusters of a qcow2 image.
type Compression string

// The compressions.
const (
	Zlib Compression = "zlib"
	Zstd Compression = "zstd"
)

// Encryption is of a qcow2 image; "" for none.
type Encryption string

// The encryptions.
const (
	AES  Encryption = "aes"
	LUKS Encryption = "luks"
)

// Table is a kind of partition table.
type Table string

// The tables.
const (
	MBR Table = "mbr"
	GPT Table = "gpt"
)

// maxRead is the most that Probe reads of an image, in bytes: the sum of what qcow2.go
// allows itself for the header, the first-level table, the refcount table and one of its
// blocks.
const maxRead = maxHeader + maxTable + maxTable + maxTable

const (
	// MaxVirtualSize is the largest disk that is believed, in bytes: 64 TiB, as of Hyper-V's
	// VHDX, the largest of the common formats. ext4 ends at 16.
	MaxVirtualSize = 64 << 40
	sector         = 512 // bytes
)

// IsQCOW2 reports whether the first bytes of a file say that it is qcow2, of whatever
// version. Four are enough.
func IsQCOW2(head []byte) bool { return bytes.HasPrefix(head, []byte(magic)) }

// Probe says what disk image the first size bytes of r are. The error is an *Error for
// what is no disk image, or one that may not be taken, with as much in Info as was read by
// then; any other is r's own. It is safe for concurrent use as far as r is.
func Probe(r io.ReaderAt, size int64) (Info, error) {
	head := make([]byte, len(magic))
	n, err := read(r, size, head, 0)
	switch {
	case err != nil:
		return Info{}, err
	case n == 0:
		return Info{}, refuse(NotADisk, "give a disk image", "it is empty")
	case IsQCOW2(head[:n]):
		return probeQCOW2(r, size)
	}
	return probeRaw(r, size)
}

// read fills p from an offset as far as there is something, and returns how much that was.
func read(r io.ReaderAt, size int64, p []byte, offset int64) (int, error) {
	if offset < 0 || offset >= size {
		return 0, nil
	}
	p = p[:min(int64(len(p)), size-offset)]
	n, err := r.ReadAt(p, offset)
	if n == len(p) || errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}
