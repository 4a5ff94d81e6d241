package state

import (
	"fmt"
	"time"
)

// flush writes the requests, makes them durable, and sets their outcomes. The caller is the flusher.
func (j *Journal) flush(requests []request) {
	count := j.encodeAll(requests)
	if err := j.ahead.renew(j.file, j.size, j.size+int64(len(j.buf))); err != nil {
		// Only what an accepted intent needs is written now.
		err = fmt.Errorf("state: %s: not written, since the space that outcomes need could not be kept free: %w", j.path, err)
		for i := range requests {
			if !requests[i].reserved {
				requests[i].err = err
			}
		}
		count = j.encodeAll(requests)
	}
	if count == 0 {
		return
	}
	began := time.Now()
	if _, err := j.file.WriteAt(j.buf, j.size); err != nil {
		j.undo()
		if j.stickyError() == nil && count > 1 {
			// What is small may still fit where all together did not.
			for i := range requests {
				if requests[i].err == nil {
					j.flush(requests[i : i+1])
				}
			}
			return
		}
		err = fmt.Errorf("state: %s: not written: %w", j.path, err)
		if failed := j.stickyError(); failed != nil {
			err = failed
		}
		setPending(requests, err)
		return
	}
	err := j.file.datasync()
	if err != nil {
		j.mu.Lock()
		j.fail(err)
		err = j.err
		j.mu.Unlock()
		setPending(requests, err)
		return
	}
	j.apply(requests, count, time.Since(began))
}

// encodeAll writes the lines of the requests that are not refused to buf, and counts them.
func (j *Journal) encodeAll(requests []request) (count int) {
	const keep = 1 << 16 // a buffer that a rare large record has grown is not kept
	if cap(j.buf) > keep {
		j.buf = nil
	}
	j.buf = j.buf[:0]
	for i := range requests {
		r := &requests[i]
		if r.err != nil {
			continue
		}
		j.buf = appendRecord(j.buf, j.table, record{
			seq: j.next + uint64(count), key: r.key, value: r.value, with: j.next,
		})
		count++
	}
	return count
}

// apply brings durable requests into the state.
func (j *Journal) apply(requests []request, count int, took time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.size += int64(len(j.buf))
	j.next += uint64(count)
	j.stats.Syncs++
	j.stats.SyncTime.add(took)
	for _, r := range requests {
		if r.err != nil {
			continue
		}
		if old, ok := j.entries[r.key]; ok {
			j.live -= lineSize(r.key, old.value)
		}
		if string(r.value) == null {
			delete(j.entries, r.key)
			continue
		}
		j.entries[r.key] = entry{value: r.value}
		j.live += lineSize(r.key, r.value)
	}
}

// undo takes back what a failed write left behind the last good line. It is made durable, so that no power failure
// brings back a part of what was reported as not written.
func (j *Journal) undo() {
	err := j.file.Truncate(j.size)
	if err == nil {
		err = j.file.datasync()
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if err != nil {
		j.fail(fmt.Errorf("a failed write could not be undone: %w", err))
		return
	}
	// Cutting the file gave the space behind its end back.
	j.ahead.end = j.size
	_ = j.ahead.renew(j.file, j.size, j.size)
}

// fail makes the journal refuse writes. mu is held.
func (j *Journal) fail(cause error) {
	j.err = fmt.Errorf("state: %s: %w: %w", j.path, ErrFailed, cause)
}

func (j *Journal) stickyError() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.err
}

// setPending sets the outcome of the requests that have none.
func setPending(requests []request, err error) {
	for i := range requests {
		if requests[i].err == nil {
			requests[i].err = err
		}
	}
}
