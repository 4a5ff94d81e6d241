package volume

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
)

// treeBlock is the size of a block of hashes, in bytes: what veritysetup(8) takes, too.
const treeBlock = 4096

// hashTree is the place of everything in a tree of SHA-256 hashes.
type hashTree struct {
	dataBlock int64   // bytes
	blocks    int64   // of data
	levels    []int64 // where each begins, in bytes, the leaves first
	end       int64
}

// newHashTree lays out the tree of size bytes. The kernel looks for the superblock first,
// then for the levels from the top on (dm-verity's verity_ctr).
func newHashTree(size int64) (*hashTree, error) {
	t := &hashTree{dataBlock: treeBlock, end: treeBlock}
	for t.dataBlock > sector && size%t.dataBlock != 0 { // a block that ends behind the data can't be read
		t.dataBlock /= 2
	}
	if size <= 0 || size%t.dataBlock != 0 {
		return nil, fmt.Errorf("%d bytes are no whole sectors of %d, as dm-verity needs them", size, sector)
	}
	t.blocks = size / t.dataBlock
	var counts []int64
	for n := t.blocks; n > 1; {
		n = (n + perTreeBlock - 1) / perTreeBlock
		counts = append(counts, n)
	}
	t.levels = make([]int64, len(counts))
	for i := len(counts) - 1; i >= 0; i-- {
		t.levels[i] = t.end
		t.end += counts[i] * treeBlock
	}
	return t, nil
}

const perTreeBlock = treeBlock / sha256.Size

// VerityTreeSize is how many bytes the hash tree of size bytes of data has, its superblock
// included. Data that is no whole sectors of 512 bytes can't have one.
func VerityTreeSize(size int64) (int64, error) {
	t, err := newHashTree(size)
	if err != nil {
		return 0, err
	}
	return t.end, nil
}

// WriteVerityTree writes the hash tree of the first size bytes of data to w at offset, a
// multiple of 4096, as veritysetup(8) does, and returns the root hash in hexadecimal. It
// needs memory for one block of each level. Nothing is synced.
func WriteVerityTree(ctx context.Context, w io.WriterAt, offset int64, data io.Reader, size int64) (root string, err error) {
	t, err := newHashTree(size)
	if err != nil {
		return "", err
	}
	if offset%treeBlock != 0 {
		return "", fmt.Errorf("a hash tree can't begin at byte %d: that is no multiple of %d", offset, treeBlock)
	}
	s := veritySuper{
		Signature: [8]byte([]byte("verity\x00\x00")), Version: 1, HashType: 1,
		DataBlockSize: uint32(t.dataBlock), HashBlockSize: treeBlock, DataBlocks: uint64(t.blocks), SaltSize: sha256.Size,
	}
	copy(s.Algorithm[:], "sha256")
	rand.Read(s.UUID[:])
	salt := s.Salt[:s.SaltSize]
	rand.Read(salt)
	b := &treeWriter{w: w, offset: offset, tree: t, salt: salt, h: sha256.New(), levels: make([]treeLevel, len(t.levels))}
	if err := b.read(ctx, io.LimitReader(data, size)); err != nil {
		return "", err
	}
	// The superblock comes last: a tree that was cut off has none.
	var super bytes.Buffer
	if err := binary.Write(&super, binary.LittleEndian, &s); err != nil {
		return "", err
	}
	super.Write(make([]byte, treeBlock-super.Len()))
	if _, err := w.WriteAt(super.Bytes(), offset); err != nil {
		return "", err
	}
	return hex.EncodeToString(b.root), nil
}

// treeWriter writes a tree from its leaves on.
type treeWriter struct {
	w      io.WriterAt
	offset int64
	tree   *hashTree
	salt   []byte
	h      hash.Hash
	levels []treeLevel
	root   []byte
}

// treeLevel is a level's block that isn't full yet.
type treeLevel struct {
	block   [treeBlock]byte
	n       int   // bytes of it
	written int64 // blocks before it
}

func (b *treeWriter) read(ctx context.Context, data io.Reader) error {
	buf := make([]byte, 1<<20)
	var blocks int64
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := io.ReadFull(data, buf)
		for at := int64(0); at+b.tree.dataBlock <= int64(n); at += b.tree.dataBlock {
			blocks++
			if err := b.add(0, b.digest(buf[at:at+b.tree.dataBlock])); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	if blocks != b.tree.blocks {
		return fmt.Errorf("the data ends after %d of %d blocks: %w", blocks, b.tree.blocks, io.ErrUnexpectedEOF)
	}
	for i := range b.levels {
		if b.levels[i].n > 0 {
			if err := b.flush(i); err != nil {
				return err
			}
		}
	}
	return nil
}

// digest is that of a block, the salt before it (hash type 1).
func (b *treeWriter) digest(block []byte) []byte {
	b.h.Reset()
	b.h.Write(b.salt)
	b.h.Write(block)
	return b.h.Sum(nil)
}

// add adds a digest to a level; the one above the last level is the root.
func (b *treeWriter) add(level int, digest []byte) error {
	if level == len(b.levels) {
		b.root = digest
		return nil
	}
	l := &b.levels[level]
	l.n += copy(l.block[l.n:], digest)
	if l.n == treeBlock {
		return b.flush(level)
	}
	return nil
}

// flush writes a level's block, padded with zeroes, and adds its digest to the next.
func (b *treeWriter) flush(level int) error {
	l := &b.levels[level]
	clear(l.block[l.n:])
	if _, err := b.w.WriteAt(l.block[:], b.offset+b.tree.levels[level]+l.written*treeBlock); err != nil {
		return err
	}
	l.n = 0
	l.written++
	return b.add(level+1, b.digest(l.block[:]))
}
