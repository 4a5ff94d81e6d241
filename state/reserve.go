package state

import "errors"

const (
	// reserveSize is how much is kept allocated behind the end, for the outcomes of intents that were accepted: some
	// two hundred records of the usual 300 bytes.
	reserveSize = 64 << 10
	// reserveStep is how much more is allocated at a time, so that not every write asks the file system.
	reserveStep = 64 << 10
)

// A reserve is the space that is allocated behind the end of the journal.
type reserve struct {
	can bool  // this file system can allocate ahead
	end int64 // everything before this offset is allocated
}

// renew sees to it that everything from offset from, where the next write begins, to reserveSize bytes behind offset
// end, where it ends, is allocated.
func (r *reserve) renew(f file, from, end int64) error {
	if !r.can || r.end >= end+reserveSize {
		return nil
	}
	err := f.reserve(from, end-from+reserveSize+reserveStep)
	if err == nil {
		r.end = end + reserveSize + reserveStep
		return nil
	}
	if errors.Is(err, errNoReserve) {
		r.can = false
		return nil
	}
	if err := f.reserve(from, end-from+reserveSize); err != nil {
		return err
	}
	r.end = end + reserveSize
	return nil
}
