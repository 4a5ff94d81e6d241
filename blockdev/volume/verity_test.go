package volume

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"
)

func superblock(change func(*veritySuper)) []byte {
	s := veritySuper{Version: 1, HashType: 1, DataBlockSize: 4096, HashBlockSize: 4096, DataBlocks: 1024, SaltSize: 32}
	copy(s.Signature[:], "verity\x00\x00")
	copy(s.Algorithm[:], "sha256")
	if change != nil {
		change(&s)
	}
	var b bytes.Buffer
	_ = binary.Write(&b, binary.LittleEndian, s) // never fails
	return b.Bytes()
}

func TestParseVerity(t *testing.T) {
	require.Len(t, superblock(nil), veritySuperSize)
	s, err := parseVerity(superblock(nil))
	require.NoError(t, err)
	// As veritysetup writes it: a superblock's block, 1024/128 + 1 blocks of hashes.
	require.EqualValues(t, 9, s.hashBlocks())
	require.EqualValues(t, 1, s.hashStart(0))
	require.EqualValues(t, 1025, s.hashStart(4<<20))
	one, err := parseVerity(superblock(func(s *veritySuper) { s.DataBlocks = 1 }))
	require.NoError(t, err)
	require.Zero(t, one.hashBlocks(), "the root hash is the block's")

	for name, change := range map[string]func(*veritySuper){
		"magic":     func(s *veritySuper) { s.Signature[7] = 1 },
		"version":   func(s *veritySuper) { s.Version = 0 },
		"type":      func(s *veritySuper) { s.HashType = 2 },
		"data":      func(s *veritySuper) { s.DataBlockSize = 0 },
		"hash":      func(s *veritySuper) { s.HashBlockSize = 1 << 31 },
		"odd":       func(s *veritySuper) { s.HashBlockSize = 4095 },
		"salt":      func(s *veritySuper) { s.SaltSize = 257 },
		"empty":     func(s *veritySuper) { s.DataBlocks = 0 },
		"overflow":  func(s *veritySuper) { s.DataBlocks = 1 << 63 },
		"algorithm": func(s *veritySuper) { s.Algorithm = [32]byte{} },
		"words":     func(s *veritySuper) { copy(s.Algorithm[:], "sha256 1 ignore_corruption") },
	} {
		_, err := parseVerity(superblock(change))
		require.Error(t, err, name)
	}
}

func FuzzParseVerity(f *testing.F) {
	f.Add(superblock(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := parseVerity(b); err == nil {
			s.hashBlocks()
			s.hashStart(1 << 40)
		}
	})
}

func TestUevent(t *testing.T) {
	e := parseUevent([]byte("change@/devices/virtual/block/dm-0\x00ACTION=change\x00MAJOR=253\x00MINOR=0\x00DM_VERITY_ERR_BLOCK_NR=0,17\x00"))
	require.Equal(t, "253", e["MAJOR"])
	require.Equal(t, "block 17 of its data", badBlock(e["DM_VERITY_ERR_BLOCK_NR"]))
	require.Equal(t, "block 3 of its hashes", badBlock("1,3"))
	require.Empty(t, badBlock(""))
}

func TestToolWords(t *testing.T) {
	o := output{code: 5, stderr: "  WARNING: Running as a non-root user. Functionality may be unavailable.\n  Volume group \"vg\" not found\n  Cannot process volume group vg\n"}
	require.Equal(t, `Volume group "vg" not found; Cannot process volume group vg`, o.words())
	require.Equal(t, "exit status 5", output{code: 5}.words())
}
