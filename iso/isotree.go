package iso

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"math"
	"strings"
)

// An isoTree reads the directories of an ISO 9660 volume, with names by Rock Ridge, or by Joliet, or as recorded.
type isoTree struct {
	source
	*budget
	volume
	rockRidge bool
	joliet    bool
	skip      int    // bytes before each system use area (SUSP 5.3)
	buf       []byte // scratch for directories
	scratch   []byte // and for continuation areas
}

func newISOTree(s source, v volume, joliet bool) *isoTree {
	return &isoTree{source: s, budget: newBudget(), volume: v, joliet: joliet, buf: make([]byte, dirBuffer), scratch: make([]byte, maxContinuation)}
}

func (t *isoTree) root() (*node, error) {
	n := &node{name: ".", mode: fs.ModeDir | 0o555, size: t.volume.root.length, modified: math.MinInt64, id: uint64(t.volume.root.start)}
	n.parts = []extent{t.volume.root}
	if t.joliet {
		return n, nil
	}
	return n, t.records(t.volume.root, t.volume.block, t.buf, func(_ int64, r record) bool {
		// Only the root's own record says whether there is Rock Ridge.
		found, err := t.source.rockRidge(r, t.volume.block)
		if t.rockRidge = found && err == nil; t.rockRidge {
			t.skip = int(r.systemUse[6])
		}
		return false
	})
}

func (t *isoTree) list(dir *node, add func(*node) error) error {
	e := dir.parts[0]
	if e.length > maxDirectory {
		return &DamagedError{fmt.Sprintf("a directory of %d bytes", e.length), e.start}
	}
	if err := t.charge(e.length); err != nil {
		return err
	}
	var failed error
	var parts []extent // of a file whose last record is still to come
	err := t.records(e, t.volume.block, t.buf, func(_ int64, r record) bool {
		const associated = 1 << 2 // a resource fork, not a file of its own (ECMA-119 9.1.6)
		if r.special() || r.flags&associated != 0 {
			return true
		}
		parts = append(parts, r.extent)
		if r.flags&flagMore != 0 && r.flags&flagDirectory == 0 {
			if len(parts) > maxParts {
				failed = fmt.Errorf("a file in more than %d parts", maxParts)
			}
			return failed == nil
		}
		var n *node
		if n, failed = t.node(r, parts); failed == nil && n != nil {
			failed = add(n)
		}
		parts = nil
		return failed == nil
	})
	if failed != nil {
		return failed
	}
	return err
}

// maxParts is how many records a file may have: each is of up to 4 GiB.
const maxParts = 4096

// node makes an entry of a record; nil for one that isn't to be listed.
func (t *isoTree) node(r record, parts []extent) (*node, error) {
	n := &node{mode: 0o444, modified: unix(readRecordDate(r.date)), parts: parts}
	if r.flags&flagDirectory != 0 {
		n.mode = fs.ModeDir | 0o555
	}
	for _, p := range parts {
		n.size += p.length
	}
	switch {
	case t.joliet:
		n.name = withoutVersion(ucs2(r.name))
	case t.rockRidge:
		attributes, err := t.attributes(r)
		if err != nil || attributes.relocated {
			return nil, err
		}
		if err := t.apply(n, attributes); err != nil {
			return nil, err
		}
	}
	if n.name == "" {
		n.name = strings.TrimSuffix(withoutVersion(string(r.name)), ".")
	}
	n.id = uint64(n.parts[0].start)
	if r.interleave {
		n.broken = &unsupportedError{"an interleaved file"}
	}
	return n, nil
}

// apply takes Rock Ridge's attributes.
func (t *isoTree) apply(n *node, a attributes) error {
	n.name = a.name
	if a.hasMode {
		n.mode = a.mode
	}
	if a.modified != math.MinInt64 {
		n.modified = a.modified
	}
	if n.mode.Type() == fs.ModeSymlink {
		n.target = a.target
		n.size = int64(len(a.target))
	}
	if a.child == 0 {
		if n.IsDir() != (n.mode.Type() == fs.ModeDir) {
			n.broken = &DamagedError{"a directory by its record or by Rock Ridge, but not by both", n.parts[0].start}
		}
		return nil
	}
	// A directory that was too deep for ISO 9660 stands elsewhere; its own first record says how long it is.
	var b [minRecord]byte
	at := a.child * t.volume.block
	n.mode |= fs.ModeDir
	n.parts = []extent{{at, 0}}
	if !t.has(at, minRecord) {
		n.broken = &DamagedError{"a relocated directory lies outside of the file", at}
		return nil
	}
	if err := t.read(b[:], at); err != nil {
		return err
	}
	n.parts[0].length = int64(binary.LittleEndian.Uint32(b[10:]))
	n.size = n.parts[0].length
	return nil
}

func (t *isoTree) content(n *node) ([]piece, error) {
	pieces := make([]piece, 0, len(n.parts))
	for _, p := range n.parts {
		pieces = append(pieces, piece{extent: p})
	}
	return pieces, nil
}

// withoutVersion cuts the version number off a name (ECMA-119 7.5.1).
func withoutVersion(name string) string {
	if i := strings.LastIndexByte(name, ';'); i > 0 && strings.Trim(name[i+1:], "0123456789") == "" {
		return name[:i]
	}
	return name
}
