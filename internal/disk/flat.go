package disk

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sort"
)

// Extent is a piece of a disk as its guest sees it: what is in it, and where. All numbers are
// bytes.
type Extent struct {
	Start  int64  `json:"start"`
	Length int64  `json:"length"`
	Depth  int    `json:"depth"` // 0: in the file itself; 1: in the one that it stands on
	Zero   bool   `json:"zero"`
	Data   bool   `json:"data"`
	Offset *int64 `json:"offset"` // in that file; nil: it isn't there as the guest sees it
}

// Map says where the pieces of a disk are, in their order.
func (q Tool) Map(ctx context.Context, path string, format Format) ([]Extent, error) {
	var out limited
	if err := q.run(ctx, &out, "map", "--output", "json", "-f", string(format), path); err != nil {
		return nil, err
	}
	var all []Extent
	if err := json.Unmarshal(out.b, &all); err != nil {
		return nil, fmt.Errorf("%s map says what can't be understood: %w", q, err)
	}
	return all, nil
}

// mapLimit is of a map, in bytes: 400,000 pieces.
const mapLimit = 64 << 20

type limited struct{ b []byte }

func (l *limited) Write(p []byte) (int, error) {
	if len(l.b)+len(p) > mapLimit {
		return 0, errors.New("a disk in too many pieces")
	}
	l.b = append(l.b, p...)
	return len(p), nil
}

// ErrNotPlain is for a disk with pieces that aren't in a file as the guest sees them:
// compressed ones.
var ErrNotPlain = errors.New("a part of the disk is compressed")

// Flat is a disk, and what it stands on, as one qcow2 image that stands alone: a stream, with
// everything that QEMU wants to find before the data in front of that. So it can be hashed
// while it is written, which the output of qemu-img can't: that goes back to its beginning.
// Clusters of zeros are left out. It is not safe for concurrent use.
//
// The format is docs/interop/qcow2.txt of QEMU: version 3, clusters of 64 KiB, references
// counted in 16 bits.
type Flat struct {
	files   []io.ReaderAt // by depth
	extents []Extent      // of data alone, in their order
	size    int64         // that the guest sees
	runs    []clusterRun
	next    int64 // the cluster that is read next
	rest    []byte

	// In clusters of the image: how many tables there are of each kind. They follow each other
	// in this order, after the header, and the data follows them.
	l1, refTable, refBlocks, l2 int64
	tables                      []int64 // the indices of the first table that have a second one
	data                        int64
}

// clusterRun is clusters of the guest that follow each other, and are not zero.
type clusterRun struct {
	guest, n int64
	rank     int64 // how many clusters of data are before it
}

const (
	clusterSize = 64 << 10
	perL2       = clusterSize / 8 // clusters that a second table speaks of
	perRefBlock = clusterSize / 2 // clusters whose references a block counts
	copied      = 1 << 63         // the flag of an entry whose cluster has one reference
	probeSize   = 4 << 10         // of a cluster that is looked at first for not being zero
)

// NewFlat looks at a disk of that size in bytes, as the guest sees it. files are the disk's
// own and the one that it stands on. The error is ErrNotPlain, or of reading.
func NewFlat(ctx context.Context, files []io.ReaderAt, extents []Extent, size int64) (*Flat, error) {
	f := &Flat{files: files, size: size}
	for _, e := range extents {
		switch {
		case !e.Data || e.Length <= 0:
			continue
		case e.Offset == nil || e.Depth >= len(files) || e.Depth < 0:
			return nil, ErrNotPlain
		case e.Start < 0 || e.Start+e.Length > size || *e.Offset < 0 || len(f.extents) > 0 && e.Start < f.end():
			return nil, fmt.Errorf("the pieces of the disk contradict each other at byte %d", e.Start)
		}
		f.extents = append(f.extents, e)
	}
	if err := f.find(ctx); err != nil {
		return nil, err
	}
	f.layOut()
	return f, nil
}

// end is where the last extent ends.
func (f *Flat) end() int64 {
	last := f.extents[len(f.extents)-1]
	return last.Start + last.Length
}

// find finds the clusters that aren't zero.
func (f *Flat) find(ctx context.Context) error {
	buf := make([]byte, clusterSize)
	done := int64(-1)
	for _, e := range f.extents {
		for c := max(e.Start/clusterSize, done+1); c*clusterSize < e.Start+e.Length; c++ {
			done = c
			if c%1024 == 0 && ctx.Err() != nil {
				return ctx.Err()
			}
			// Most have something at the beginning.
			zero, err := f.isZero(buf[:probeSize], c*clusterSize)
			if err == nil && zero {
				zero, err = f.isZero(buf, c*clusterSize)
			}
			if err != nil {
				return err
			}
			if !zero {
				f.keep(c)
			}
		}
	}
	return nil
}

func (f *Flat) isZero(buf []byte, at int64) (bool, error) {
	if err := f.guest(buf, at); err != nil {
		return false, err
	}
	for len(buf) >= 8 {
		if binary.NativeEndian.Uint64(buf) != 0 {
			return false, nil
		}
		buf = buf[8:]
	}
	return true, nil
}

func (f *Flat) keep(cluster int64) {
	if n := len(f.runs); n > 0 && f.runs[n-1].guest+f.runs[n-1].n == cluster {
		f.runs[n-1].n++
	} else {
		f.runs = append(f.runs, clusterRun{guest: cluster, n: 1, rank: f.data})
	}
	f.data++
	if table, n := cluster/perL2, len(f.tables); n == 0 || f.tables[n-1] != table {
		f.tables = append(f.tables, table)
	}
}

// guest reads what the guest sees at a byte; beyond the end are zeros.
func (f *Flat) guest(buf []byte, at int64) error {
	clear(buf)
	end := at + int64(len(buf))
	i := sort.Search(len(f.extents), func(i int) bool { return f.extents[i].Start+f.extents[i].Length > at })
	for ; i < len(f.extents) && f.extents[i].Start < end; i++ {
		e := f.extents[i]
		from, to := max(e.Start, at), min(e.Start+e.Length, end)
		n, err := f.files[e.Depth].ReadAt(buf[from-at:to-at], *e.Offset+from-e.Start)
		// A file may end within its last cluster, whose rest is zeros.
		if err != nil && !(errors.Is(err, io.EOF) && n >= 0) {
			return fmt.Errorf("the disk can't be read at byte %d: %w", from, err)
		}
	}
	return nil
}

func clusters(n, per int64) int64 { return (n + per - 1) / per }

// layOut counts the tables. Those that count references count themselves, too.
func (f *Flat) layOut() {
	f.l1 = max(1, clusters(f.l1Entries()*8, clusterSize))
	f.l2 = int64(len(f.tables))
	f.refBlocks, f.refTable = 1, 1
	for {
		blocks := clusters(f.all(), perRefBlock)
		table := clusters(blocks*8, clusterSize)
		if blocks == f.refBlocks && table == f.refTable {
			return
		}
		f.refBlocks, f.refTable = max(blocks, f.refBlocks), max(table, f.refTable)
	}
}

func (f *Flat) l1Entries() int64 { return clusters(clusters(f.size, clusterSize), perL2) }

// all is how many clusters the image has.
func (f *Flat) all() int64 { return 1 + f.l1 + f.refTable + f.refBlocks + f.l2 + f.data }

// Size is of the stream, in bytes.
func (f *Flat) Size() int64 { return f.all() * clusterSize }

// Read implements io.Reader.
func (f *Flat) Read(p []byte) (n int, err error) {
	for n < len(p) {
		if len(f.rest) > 0 {
			m := copy(p[n:], f.rest)
			f.rest, n = f.rest[m:], n+m
			continue
		}
		if f.next == f.all() {
			break
		}
		into := p[n:]
		small := len(into) < clusterSize
		if small {
			into = make([]byte, clusterSize)
		}
		if err := f.cluster(into[:clusterSize], f.next); err != nil {
			return n, err
		}
		f.next++
		if small {
			f.rest = into
			continue
		}
		n += clusterSize
	}
	if n == 0 && len(p) > 0 {
		return 0, io.EOF
	}
	return n, nil
}

// cluster is a cluster of the image.
func (f *Flat) cluster(buf []byte, i int64) error {
	at := int64(1)
	for _, part := range []struct {
		n    int64
		fill func(buf []byte, i int64)
	}{{f.l1, f.fillL1}, {f.refTable, f.fillRefTable}, {f.refBlocks, f.fillRefBlock}, {f.l2, f.fillL2}} {
		if i >= at && i < at+part.n {
			clear(buf)
			part.fill(buf, i-at)
			return nil
		}
		at += part.n
	}
	if i == 0 {
		clear(buf)
		f.fillHeader(buf)
		return nil
	}
	rank := i - at
	r := f.runs[sort.Search(len(f.runs), func(k int) bool { return f.runs[k].rank+f.runs[k].n > rank })]
	return f.guest(buf, (r.guest+rank-r.rank)*clusterSize)
}

func (f *Flat) fillHeader(buf []byte) {
	be := binary.BigEndian
	copy(buf, magic)
	be.PutUint32(buf[4:], 3)   // version
	be.PutUint32(buf[20:], 16) // cluster bits
	be.PutUint64(buf[24:], uint64(f.size))
	be.PutUint32(buf[36:], uint32(f.l1Entries()))
	be.PutUint64(buf[40:], clusterSize)
	be.PutUint64(buf[48:], uint64(1+f.l1)*clusterSize)
	be.PutUint32(buf[56:], uint32(f.refTable))
	be.PutUint32(buf[96:], 4)    // references are counted in 1 << 4 bits
	be.PutUint32(buf[100:], 104) // the header's length; no extensions follow
}

func (f *Flat) fillL1(buf []byte, i int64) {
	for k, table := range f.tables {
		if at := table - i*perL2; at >= 0 && at < perL2 {
			host := 1 + f.l1 + f.refTable + f.refBlocks + int64(k)
			binary.BigEndian.PutUint64(buf[8*at:], uint64(host)*clusterSize|copied)
		}
	}
}

func (f *Flat) fillRefTable(buf []byte, i int64) {
	for at := range min(perL2, f.refBlocks-i*perL2) {
		host := 1 + f.l1 + f.refTable + i*perL2 + at
		binary.BigEndian.PutUint64(buf[8*at:], uint64(host)*clusterSize)
	}
}

func (f *Flat) fillRefBlock(buf []byte, i int64) {
	for at := range min(perRefBlock, f.all()-i*perRefBlock) {
		buf[2*at+1] = 1
	}
}

func (f *Flat) fillL2(buf []byte, i int64) {
	first := f.tables[i] * perL2
	data := 1 + f.l1 + f.refTable + f.refBlocks + f.l2
	k := sort.Search(len(f.runs), func(k int) bool { return f.runs[k].guest+f.runs[k].n > first })
	for ; k < len(f.runs) && f.runs[k].guest < first+perL2; k++ {
		r := f.runs[k]
		for c := max(r.guest, first); c < min(r.guest+r.n, first+perL2); c++ {
			binary.BigEndian.PutUint64(buf[8*(c-first):], uint64(data+r.rank+c-r.guest)*clusterSize|copied)
		}
	}
}
