package iso

import (
	"errors"
	"io"
	"io/fs"
)

// Files returns the file tree of an image, which has fs.ReadDirFS, fs.StatFS and fs.ReadLinkFS.
//
// Of ISO 9660 the names are those of Rock Ridge, else of Joliet, else as recorded, without the version number. On a
// disc with ISO 9660 and UDF the tree is that of UDF, unless its root can't be read or has fewer entries: Windows
// installation discs have but a README in their ISO 9660 half. Symbolic links are followed inside the disc. A name
// that no path can have ("a/b", not UTF-8) is listed with U+FFFD; names may have control characters, which a terminal
// must not see.
//
// An input that is no disc is a *NotDiscError. A truncated or damaged image is opened as far as its root can be read:
// what can't be is an error where it is asked for, a *DamagedError or io.ErrUnexpectedEOF. No call takes more than 16
// MiB, and what is read of directories is bounded over the tree's life, so that a walk ends: a tree is for listing
// and copying, not to be kept for months. It is safe for concurrent use as far as r is; files that it opens are each
// for one goroutine, and are an io.ReaderAt and io.Seeker too.
func Files(r io.ReaderAt, size int64) (fs.FS, error) {
	s := source{r, size}
	head := make([]byte, headSize)
	_, err := probe(r, size, head)
	var not *NotDiscError
	var short *TruncatedError
	var damaged *DamagedError
	if errors.As(err, &not) || err != nil && !errors.As(err, &short) && !errors.As(err, &damaged) {
		return nil, err
	}
	head = head[:min(size, headSize)]
	if err := s.read(head, 0); err != nil {
		return nil, err
	}
	set := scanDescriptors(head)
	isoFiles, isoErr := openISO(s, set, head)
	if !set.nsr {
		return asFS(isoFiles, isoErr)
	}
	udfFiles, udfErr := openUDF(s)
	if udfErr != nil && isoErr == nil || udfErr == nil && isoErr == nil && len(udfFiles.listed) < len(isoFiles.listed) {
		return isoFiles, nil
	}
	return asFS(udfFiles, udfErr)
}

// asFS keeps a nil tree from becoming an fs.FS that isn't nil.
func asFS(t *fileTree, err error) (fs.FS, error) {
	if err != nil {
		return nil, err
	}
	return t, nil
}

func openISO(s source, set descriptorSet, head []byte) (*fileTree, error) {
	if set.primary == 0 || set.primary+sectorSize > len(head) {
		return nil, &DamagedError{"no primary volume descriptor", systemArea}
	}
	v := readVolume(head[set.primary:])
	if v.block != 512 && v.block != 1024 && v.block != 2048 {
		return nil, &DamagedError{"no logical block size that can be", int64(set.primary + pvdBlockSize)}
	}
	primary := newISOTree(s, v, false)
	t, err := newTree(s, primary)
	if set.joliet == 0 || set.joliet+sectorSize > len(head) || err == nil && primary.rockRidge {
		return t, err
	}
	joliet, jolietErr := newTree(s, newISOTree(s, readVolume(head[set.joliet:]), true))
	if jolietErr != nil {
		return t, err
	}
	return joliet, nil
}

func openUDF(s source) (*fileTree, error) {
	v, err := s.readUDFVolume(0, func(int64, bool, string) {})
	if err != nil {
		return nil, err
	}
	if v == nil {
		return nil, &DamagedError{"no anchor of the UDF volume", 256 * sectorSize}
	}
	r, err := v.open()
	if err != nil {
		return nil, err
	}
	return newTree(s, r)
}
