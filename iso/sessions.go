package iso

import "encoding/binary"

const (
	maxSessions = 99 // of a CD
	// xorrisoFirst is where xorriso begins the first session of an image that it may add to, in sectors: those of the
	// newest are written to sector 16 as well.
	xorrisoFirst = 32
)

// countSessions counts the sessions of an image: ISO 9660 volumes behind one another. No list of them is in an image:
// it is in the table of contents of a real disc. So they are looked for where writers put them: at sector 32
// (xorriso), and behind the end of each at the next multiple of 16 or 32 sectors (growisofs, genisoimage -M and
// xorriso).
func (i *inspection) countSessions() error {
	i.Sessions = 1
	if i.set.primary == 0 || i.DeclaredSize == 0 {
		return nil
	}
	base, size, err := i.sessionAt(xorrisoFirst)
	if err != nil {
		return err
	}
	n := 1
	if size == 0 { // the first session is the one at the beginning
		base, size = 0, i.DeclaredSize/sectorSize
		n = 0
	}
	for i.Sessions = max(n, 1); i.Sessions < maxSessions; i.Sessions++ {
		next, length, err := i.nextSession(base, size)
		if err != nil {
			return err
		}
		if length == 0 {
			return nil
		}
		base, size = next, length
	}
	return nil
}

// nextSession finds the session behind one that begins in sector base. Its size counts from its own beginning when
// xorriso wrote it, and from the image's when others did.
func (i *inspection) nextSession(base, size int64) (int64, int64, error) {
	var tried [4]int64
	for n, end := range [...]int64{base + size, base + size, size, size} {
		align := int64(16 << (n % 2))
		next := (end + align - 1) / align * align
		if next <= base || tried[0] == next || tried[1] == next || tried[2] == next {
			continue
		}
		tried[n] = next
		at, length, err := i.sessionAt(next)
		if err != nil || length > 0 {
			return at, length, err
		}
	}
	return 0, 0, nil
}

// sessionAt says how many sectors the volume has that begins in a sector; 0 when there is none.
func (i *inspection) sessionAt(sector int64) (int64, int64, error) {
	var d [pvdSpaceSize + 8]byte
	at := (sector + 16) * sectorSize
	if !i.has(at, int64(len(d))) {
		return 0, 0, nil
	}
	if err := i.read(d[:], at); err != nil {
		return 0, 0, err
	}
	if d[0] != typePrimary || string(d[1:6]) != "CD001" || d[6] != 1 {
		return 0, 0, nil
	}
	return sector, int64(binary.LittleEndian.Uint32(d[pvdSpaceSize:])), nil
}
