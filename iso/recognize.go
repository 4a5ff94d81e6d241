package iso

// A recognition is what the descriptors behind the system area show.
type recognition struct {
	primary    int   // offset of the primary volume descriptor; 0 when there is none
	terminated bool  // the ISO 9660 set ended in its terminator
	nsr        bool  // the volume recognition sequence promises a UDF volume structure
	end        int64 // where the descriptors ended
}

// recognize walks over the descriptors from byte 32768 on. ISO 9660 has its own, from there up to a terminator; the
// extended area that announces UDF (ECMA-167 2/8.3.1: BEA01, NSR02 or NSR03, TEA01) is in the same place or right
// behind them. Each takes a sector of 2048 bytes, or one of 4096 on a medium that has those: then every other is zero.
func recognize(head []byte) (recognition, error) {
	var r recognition
	iso, extended, zeroes := false, false, 0
	offset := systemArea
walk:
	for ; offset+7 <= len(head); offset += sectorSize {
		d := head[offset:min(offset+sectorSize, len(head))]
		switch string(d[1:6]) {
		case "CD001":
			iso = true
			switch {
			case r.terminated: // copies of the terminator
			case d[0] == typePrimary && r.primary == 0:
				r.primary = offset
			case d[0] == typeTerminator:
				r.terminated = true
				if r.primary == 0 {
					return r, &DamagedError{"no primary volume descriptor before the terminator", int64(offset)}
				}
			}
		case "BEA01":
			extended = true
		case "NSR02", "NSR03":
			if !extended {
				return r, &DamagedError{"an NSR descriptor outside of an extended area", int64(offset)}
			}
			r.nsr = true
		case "BOOT2", "CDW02":
		case "TEA01":
			break walk
		case "\x00\x00\x00\x00\x00":
			if zeroes++; zeroes > 1 || offset == systemArea {
				break walk
			}
			continue
		default:
			break walk
		}
		zeroes = 0
	}
	r.end = int64(offset)
	switch {
	case iso && r.primary == 0:
		return r, &DamagedError{"no primary volume descriptor", systemArea}
	case extended && !r.nsr && r.primary == 0:
		return r, &DamagedError{"an extended area without an NSR descriptor", systemArea}
	}
	return r, nil
}
