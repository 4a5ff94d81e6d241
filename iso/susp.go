package iso

import (
	"encoding/binary"
	"strings"
)

// What is followed of continuation areas, for one record: real ones have one.
const (
	maxContinuations = 16
	maxContinuation  = sectorSize // bytes; one may not cross a block (SUSP 5.1)
)

// systemUse calls visit for the entries of a system use area: their two-letter signature and their data behind the
// four bytes of their head (SUSP 1.12, chapter 4). It goes on into continuation areas that lie in the file, into scratch,
// of maxContinuation bytes, and returns how many bytes they had. Data is valid until visit returns.
func (s source) systemUse(area []byte, block int64, scratch []byte, visit func(signature string, data []byte)) (int64, error) {
	more := int64(0)
	for hops := 0; ; hops++ {
		var next []byte
		for len(area) >= 4 {
			length := int(area[2])
			if length < 4 || length > len(area) {
				break
			}
			signature, data := string(area[:2]), area[4:length]
			area = area[length:]
			switch {
			case signature == "ST":
				area = nil
			case signature == "CE" && len(data) >= 24:
				next = data
			default:
				visit(signature, data)
			}
		}
		if next == nil || hops == maxContinuations {
			return more, nil
		}
		start := int64(binary.LittleEndian.Uint32(next))*block + int64(binary.LittleEndian.Uint32(next[8:]))
		length := int64(min(binary.LittleEndian.Uint32(next[16:]), maxContinuation))
		if !s.has(start, length) {
			return more, nil
		}
		area = scratch[:length]
		if err := s.read(area, start); err != nil {
			return more, err
		}
		more += length
	}
}

// rockRidge says whether the root's own record announces Rock Ridge: by SUSP's SP, and by RRIP's ER or RR.
func (s source) rockRidge(root record, block int64) (bool, error) {
	if len(root.systemUse) < 7 || string(root.systemUse[:2]) != "SP" || string(root.systemUse[4:6]) != "\xbe\xef" {
		return false, nil
	}
	found := false
	_, err := s.systemUse(root.systemUse, block, make([]byte, maxContinuation), func(signature string, data []byte) {
		switch {
		case signature == "RR":
			found = true
		case signature == "ER" && len(data) >= 4 && 4+int(data[0]) <= len(data):
			id := string(data[4 : 4+data[0]])
			found = found || id == "RRIP_1991A" || strings.HasPrefix(id, "IEEE_")
		}
	})
	return found, err
}
