package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
)

// Of a qcow2 header's extensions (docs/interop/qcow2.txt of QEMU).
const (
	extensionBackingFormat = 0xe2792aca
	// maxBackingName is of the backing file's name, in bytes.
	maxBackingName = 1023
)

// CreateOverlay makes a qcow2 disk of that size in bytes, durable, that keeps only what differs
// from its base. It does what `qemu-img create -b` does, without the 8 ms that starting a
// program takes: half of what a linked machine may take as a whole. path must not exist.
func CreateOverlay(path, base string, format Format, size int64) (err error) {
	if len(base) > maxBackingName {
		return fmt.Errorf("the path of the image has %d bytes; a disk can name one of at most %d: %s", len(base), maxBackingName, base)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
			_ = os.Remove(path)
		}
	}()
	empty := Flat{size: size}
	empty.layOut()
	buf := make([]byte, clusterSize)
	for i := range empty.all() {
		if err := empty.cluster(buf, i); err != nil {
			return err
		}
		if i == 0 {
			standOn(buf, base, format)
		}
		if _, err := f.Write(buf); err != nil {
			return err
		}
	}
	return nil
}

// standOn adds to a header what the disk stands on.
func standOn(header []byte, base string, format Format) {
	be := binary.BigEndian
	at := int(be.Uint32(header[100:])) // the header's end
	be.PutUint32(header[at:], extensionBackingFormat)
	be.PutUint32(header[at+4:], uint32(len(format)))
	copy(header[at+8:], format)
	at += 8 + (len(format)+7)/8*8
	at += 8 // the end of the extensions is zeros
	be.PutUint64(header[8:], uint64(at))
	be.PutUint32(header[16:], uint32(len(base)))
	copy(header[at:], base)
}
