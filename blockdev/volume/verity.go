package volume

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"math/bits"
	"strings"
)

// veritySuper is the superblock that veritysetup writes before the hashes
// (cryptsetup's wiki, DMVerity: "Verity superblock format"). Little endian, 512 bytes.
type veritySuper struct {
	Signature     [8]byte
	Version       uint32
	HashType      uint32
	UUID          [16]byte
	Algorithm     [32]byte
	DataBlockSize uint32
	HashBlockSize uint32
	DataBlocks    uint64
	SaltSize      uint16
	_             [6]byte
	Salt          [256]byte
	_             [168]byte
}

// veritySuperSize is the superblock's size in bytes.
const veritySuperSize = 512

// digestSizes are the algorithms whose root hash's length can be checked, in bytes.
var digestSizes = map[string]int{
	"sha1": 20, "sha224": 28, "sha256": 32, "sha384": 48, "sha512": 64,
	"sha3-256": 32, "sha3-384": 48, "sha3-512": 64, "blake2b-256": 32, "blake2b-512": 64, "blake2s-256": 32,
	"ripemd160": 20, "rmd160": 20, "sm3": 32, "streebog256": 32, "streebog512": 64,
}

// parseVerity reads a superblock and checks what is in it alone.
func parseVerity(b []byte) (*veritySuper, error) {
	s := new(veritySuper)
	if err := binary.Read(bytes.NewReader(b), binary.LittleEndian, s); err != nil {
		return nil, err
	}
	blockSizeOK := func(n uint32) bool { return n >= sector && n <= 1<<19 && n&(n-1) == 0 } // dm-verity's limits
	switch {
	case string(s.Signature[:]) != "verity\x00\x00":
		return nil, fmt.Errorf("there is no verity superblock")
	case s.Version != 1:
		return nil, fmt.Errorf("its superblock is of version %d; version 1 is known", s.Version)
	case s.HashType > 1:
		return nil, fmt.Errorf("its hashes are of type %d; types 0 and 1 are known", s.HashType)
	case !blockSizeOK(s.DataBlockSize) || !blockSizeOK(s.HashBlockSize):
		return nil, fmt.Errorf("its blocks of %d and %d bytes are no powers of 2 from 512 bytes to 512 KiB", s.DataBlockSize, s.HashBlockSize)
	case int(s.SaltSize) > len(s.Salt):
		return nil, fmt.Errorf("its salt of %d bytes is longer than 256", s.SaltSize)
	case s.DataBlocks == 0 || s.DataBlocks > 1<<62/uint64(s.DataBlockSize):
		return nil, fmt.Errorf("it can't have %d blocks", s.DataBlocks)
	case digestSizes[s.algorithm()] == 0:
		return nil, fmt.Errorf("its hash algorithm %q is not known", s.algorithm())
	case s.perBlock() < 1:
		return nil, fmt.Errorf("its hash blocks of %d bytes are too small for %s", s.HashBlockSize, s.algorithm())
	}
	return s, nil
}

func (s *veritySuper) algorithm() string { return text(s.Algorithm[:]) }

// perBlock is the logarithm (base 2) of how many hashes are in a hash block.
func (s *veritySuper) perBlock() int {
	return bits.Len(uint(s.HashBlockSize)/uint(digestSizes[s.algorithm()])) - 1
}

// hashStart is the hash tree's first block: behind the superblock, in whole blocks.
func (s *veritySuper) hashStart(offset int64) uint64 {
	size := uint64(s.HashBlockSize)
	return (uint64(offset) + veritySuperSize + size - 1) / size
}

// hashBlocks is how many blocks the tree has (dm-verity's verity_ctr counts so).
func (s *veritySuper) hashBlocks() uint64 {
	var sum uint64
	for n := s.DataBlocks; n > 1; {
		n = (n-1)>>s.perBlock() + 1
		sum += n
	}
	return sum
}

// verityTable checks everything that can be checked before the kernel is asked.
func (v *dmVolume) verityTable(ctx context.Context, t *table, d *Verity) error {
	data, hash, err := v.verityParts(ctx, t, d)
	if err != nil {
		return err
	}
	if d.HashOffset < 0 || d.HashOffset%sector != 0 || d.HashOffset > hash.size-veritySuperSize {
		return v.damaged("the hashes' offset %d has to be whole sectors of %d bytes inside %s", d.HashOffset, sector, d.Hash)
	}
	raw := make([]byte, veritySuperSize)
	if _, err := io.ReadFull(io.NewSectionReader(hash.f, d.HashOffset, veritySuperSize), raw); err != nil {
		return v.failed(err)
	}
	s, err := parseVerity(raw)
	if err != nil {
		return v.damaged("%s at offset %d: %v", d.Hash, d.HashOffset, err)
	}
	root, err := hex.DecodeString(d.RootHash)
	if want := digestSizes[s.algorithm()]; err != nil || len(root) != want {
		return v.damaged("the root hash has to be %d hexadecimal digits, which is %s; it has %d", want*2, s.algorithm(), len(d.RootHash))
	}
	if need := s.DataBlocks * uint64(s.DataBlockSize); need > uint64(data.size) {
		return v.damaged("%s has %d bytes, the hashes are of %d", d.Data, data.size, need)
	}
	start := s.hashStart(d.HashOffset)
	if need := (start + s.hashBlocks()) * uint64(s.HashBlockSize); need > uint64(hash.size) {
		return v.damaged("%s has %d bytes, the hashes need %d", d.Hash, hash.size, need)
	}
	salt := "-"
	if s.SaltSize > 0 {
		salt = hex.EncodeToString(s.Salt[:s.SaltSize])
	}
	t.targets = []dmTarget{{
		Length: s.DataBlocks * uint64(s.DataBlockSize) / sector, Type: "verity",
		Params: fmt.Sprintf("%d %s %s %d %d %d %d %s %s %s", s.HashType, data.number(), hash.number(), s.DataBlockSize, s.HashBlockSize,
			s.DataBlocks, start, s.algorithm(), strings.ToLower(d.RootHash), salt),
	}}
	return ctx.Err()
}

// verityParts opens what a verity volume stands on.
func (v *dmVolume) verityParts(ctx context.Context, t *table, d *Verity) (data, hash *part, err error) {
	if d.Under != nil {
		under, err := v.host.Volume(*d.Under)
		if err != nil {
			return nil, nil, err
		}
		f, err := under.Open(ctx, "")
		if err != nil {
			return nil, nil, err
		}
		data, err = v.part(t, d.Under.String(), f)
		return data, data, err
	}
	if data, err = v.open(t, d.Data); err == nil {
		hash, err = v.open(t, d.Hash)
	}
	return data, hash, err
}
