package iso

import (
	"encoding/binary"
	"fmt"
)

// checkTag checks the 16 bytes that begin every descriptor of ECMA-167 (3/7.2), and the descriptor by the CRC in them.
// d is the descriptor's sector, or the part of it that was read.
func checkTag(d []byte, location int64) error {
	var sum byte
	for i, b := range d[:tagSize] {
		if i != 4 {
			sum += b
		}
	}
	if sum != d[4] {
		return fmt.Errorf("its tag's checksum is %#02x, its content has %#02x", d[4], sum)
	}
	if version := binary.LittleEndian.Uint16(d[2:]); version != 2 && version != 3 {
		return fmt.Errorf("its tag's version is %d, not 2 or 3", version)
	}
	if at := binary.LittleEndian.Uint32(d[12:]); int64(at) != location {
		return fmt.Errorf("it says that it is in sector %d, it is in %d", at, location)
	}
	length := int(binary.LittleEndian.Uint16(d[10:]))
	if length > len(d)-tagSize {
		return fmt.Errorf("its CRC covers %d bytes, it has %d", length, len(d)-tagSize)
	}
	want := binary.LittleEndian.Uint16(d[8:])
	if got := crcITU(d[tagSize : tagSize+length]); got != want {
		return fmt.Errorf("its CRC is %#04x, its content has %#04x", want, got)
	}
	return nil
}

// crcITU is the CRC of ECMA-167 3/7.2.6: polynomial x^16+x^12+x^5+1, beginning with 0, high bit first.
func crcITU(b []byte) uint16 {
	var crc uint16
	for _, c := range b {
		// Eight steps of the shift register at once, possible because the polynomial has so few terms.
		x := byte(crc>>8) ^ c
		x ^= x >> 4
		crc = crc<<8 ^ uint16(x)<<12 ^ uint16(x)<<5 ^ uint16(x)
	}
	return crc
}
