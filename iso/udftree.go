package iso

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"unicode/utf16"
)

// A udfTree reads the directories of a UDF volume.
type udfTree struct {
	*udfVolume
	*budget
	rootICB place
	block   []byte // scratch of a sector, for file entries
}

// open finds the root directory: partition maps, file set descriptor (ECMA-167 4/14.1), ICB.
func (v *udfVolume) open() (*udfTree, error) {
	if v.logical == nil || v.sequence.count == 0 {
		return nil, &DamagedError{"the UDF volume has no partition or no logical volume descriptor", 0}
	}
	t := &udfTree{udfVolume: v, budget: newBudget(), block: make([]byte, v.sector)}
	if err := t.loadMaps(); err != nil {
		return nil, err
	}
	set := longAddress(v.logical[248:])
	e, err := t.locate(set, v.sector)
	if err != nil {
		return nil, fmt.Errorf("file set descriptor: %w", err)
	}
	if e.length < v.sector {
		return nil, &DamagedError{"the file set descriptor is cut by its partition", e.start}
	}
	d := t.block
	if err := t.read(d, e.start); err != nil {
		return nil, err
	}
	if tag := binary.LittleEndian.Uint16(d); tag != tagFileSet {
		return nil, &DamagedError{fmt.Sprintf("a descriptor with tag %d where the file set descriptor should be", tag), e.start}
	}
	if err := checkTag(d, int64(set.block)); err != nil {
		return nil, &DamagedError{fmt.Sprintf("the file set descriptor: %v", err), e.start}
	}
	t.rootICB = longAddress(d[400:])
	return t, nil
}

// longAddress reads the place in a long allocation descriptor (ECMA-167 4/14.14.2).
func longAddress(b []byte) place {
	return place{binary.LittleEndian.Uint32(b[4:]), binary.LittleEndian.Uint16(b[8:])}
}

func (t *udfTree) root() (*node, error) {
	i, err := t.readICB(t.rootICB)
	if err != nil {
		return nil, err
	}
	if i.kind != fileDirectory {
		return nil, &DamagedError{fmt.Sprintf("the root directory has file type %d", i.kind), i.offset}
	}
	return newUDFNode(".", i), nil
}

func newUDFNode(name string, i icb) *node {
	n := &node{name: name, mode: i.mode, size: i.length, modified: unix(i.modified), id: i.at.id()}
	if n.IsDir() {
		n.mode |= 0o111 // readers of a disc may enter every directory
	}
	return n
}

// Positions and flags of a file identifier descriptor (ECMA-167 4/14.4).
const (
	fidHead    = 38
	fidDeleted = 1 << 2
	fidParent  = 1 << 3
)

// list reads the file identifiers of a directory.
func (t *udfTree) list(dir *node, add func(*node) error) error {
	i, err := t.readICB(place{uint32(dir.id), uint16(dir.id >> 32)})
	if err != nil {
		return err
	}
	pieces, err := t.pieces(i)
	if err != nil {
		return err
	}
	if i.length > maxDirectory {
		return &DamagedError{fmt.Sprintf("a directory of %d bytes", i.length), i.offset}
	}
	if err := t.charge(i.length); err != nil {
		return err
	}
	r := bufio.NewReaderSize(&content{source: t.source, pieces: pieces, size: i.length}, dirBuffer)
	var head [fidHead]byte
	for left := i.length; left >= fidHead; {
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return cutDirectory(err, i.offset)
		}
		if tag := binary.LittleEndian.Uint16(head[:]); tag != tagFileIdentifier {
			return &DamagedError{fmt.Sprintf("a descriptor with tag %d where a file identifier should be", tag), i.offset}
		}
		use, length := int(binary.LittleEndian.Uint16(head[36:])), int(head[19])
		pad := -(fidHead + use + length) & 3
		name := make([]byte, length)
		if _, err := r.Discard(use); err != nil {
			return cutDirectory(err, i.offset)
		}
		if _, err := io.ReadFull(r, name); err != nil {
			return cutDirectory(err, i.offset)
		}
		left -= int64(fidHead + use + length + pad)
		if _, err := r.Discard(pad); err != nil && left > 0 {
			return cutDirectory(err, i.offset)
		}
		if head[18]&(fidDeleted|fidParent) != 0 {
			continue
		}
		child, err := t.child(osta(name), longAddress(head[20:]))
		if err != nil {
			return err
		}
		if err := add(child); err != nil {
			return err
		}
	}
	return nil
}

// cutDirectory makes of the end of a directory's content what it means. That the input ends is another matter, and comes
// wrapped.
func cutDirectory(err error, at int64) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		return &DamagedError{"a directory ends inside a file identifier", at}
	}
	return err
}

// child is an entry of a directory; of one whose file entry is damaged the name is listed, and the error comes when it is
// opened.
func (t *udfTree) child(name string, p place) (*node, error) {
	i, err := t.readICB(p)
	var damaged *DamagedError
	var unsupported *unsupportedError
	if errors.As(err, &damaged) || errors.As(err, &unsupported) {
		return &node{name: name, id: p.id(), mode: fs.ModeIrregular, broken: err}, nil
	}
	if err != nil {
		return nil, err
	}
	n := newUDFNode(name, i)
	if i.kind == fileLink {
		n.target, err = t.link(i)
	}
	return n, err
}

// link reads where a symbolic link points to: path components (ECMA-167 4/14.16.1).
func (t *udfTree) link(i icb) (string, error) {
	pieces, err := t.pieces(i)
	var damaged *DamagedError
	if errors.As(err, &damaged) || i.length > maxLink {
		return "", nil
	}
	b := make([]byte, i.length)
	if _, err := io.ReadFull(&content{source: t.source, pieces: pieces, size: i.length}, b); err != nil {
		return "", nil //nolint:nilerr // a link that can't be followed
	}
	var parts []string
	absolute := false
	for len(b) >= 4 && 4+int(b[1]) <= len(b) {
		switch b[0] {
		case 1, 2:
			parts, absolute = nil, true
		case 3:
			parts = append(parts, "..")
		case 4:
			parts = append(parts, ".")
		case 5:
			parts = append(parts, osta(b[4:4+int(b[1])]))
		}
		b = b[4+int(b[1]):]
	}
	target := strings.Join(parts, "/")
	if absolute {
		target = "/" + target
	}
	return target, nil
}

func (t *udfTree) content(n *node) ([]piece, error) {
	i, err := t.readICB(place{uint32(n.id), uint16(n.id >> 32)})
	if err != nil {
		return nil, err
	}
	return t.pieces(i)
}

// osta reads a name in OSTA CS0 without a length (UDF 2.1.1): a compression identifier and the characters.
func osta(b []byte) string {
	if len(b) < 2 {
		return ""
	}
	if b[0] == 16 {
		return ucs2(b[1:])
	}
	units := make([]uint16, 0, len(b))
	for _, c := range b[1:] {
		units = append(units, uint16(c))
	}
	return string(utf16.Decode(units))
}
