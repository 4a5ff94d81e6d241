package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// Places of a qcow2 header (docs/interop/qcow2.txt of QEMU).
const (
	qcow2Magic   = 0x514649fb // "QFI\xfb"
	l1SizeAt     = 36
	l1OffsetAt   = 40
	qcow2Header  = 72
	maxL1Entries = 4 << 20 // 32 MiB of table: QEMU's limit (QCOW_MAX_L1_SIZE)
)

// Written reports whether a guest has ever written to a qcow2 disk: an untouched one has an
// empty first table. What a running QEMU hasn't flushed yet isn't seen.
func Written(file string) (bool, error) {
	f, err := os.Open(file)
	if err != nil {
		return false, err
	}
	defer f.Close()
	h := make([]byte, qcow2Header)
	if _, err := io.ReadFull(f, h); err != nil {
		return false, err
	}
	entries := binary.BigEndian.Uint32(h[l1SizeAt:])
	if binary.BigEndian.Uint32(h) != qcow2Magic || entries > maxL1Entries {
		return false, fmt.Errorf("%s is no qcow2 disk", file)
	}
	table := io.NewSectionReader(f, int64(binary.BigEndian.Uint64(h[l1OffsetAt:])), 8*int64(entries))
	piece := make([]byte, 64<<10) // the whole of a disk of 4 TiB
	for {
		n, err := table.Read(piece)
		switch {
		case len(bytes.Trim(piece[:n], "\x00")) > 0:
			return true, nil
		case errors.Is(err, io.EOF): // the file may end within an empty table
			return false, nil
		case err != nil:
			return false, err
		}
	}
}
