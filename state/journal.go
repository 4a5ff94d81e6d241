package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// Options change how a journal is kept. The zero value is the usual way.
type Options struct {
	// CompactSize is the size in bytes below which the file is never rewritten; 1 MiB when 0.
	CompactSize int64
	// CompactRatio is how many times larger than its live data the file must be to be rewritten; 4 when 0.
	CompactRatio int64

	disk disk // the file system, in tests
}

// A Journal is an open state file. All its methods may be called concurrently.
type Journal struct {
	path    string
	disk    disk
	lock    *lock
	table   *crc32.Table
	options Options
	encode  sync.Pool // of *encoder

	// mu guards what follows. It is never held while the disk is asked, so that reading does not wait for it.
	mu        sync.Mutex
	idle      *sync.Cond // on mu: flushing became false
	flushing  bool       // somebody writes; only that goroutine changes the fields of the second group
	gathering *batch     // what waits for the flush that comes next
	spare     *batch     // to be used again
	closed    bool
	err       error // sticky
	stats     Stats

	// The second group is changed by the flusher alone, with mu held; so the flusher may read it without mu.
	entries   map[string]entry
	live      int64 // bytes that entries take in a file
	file      file
	size      int64  // of the file: the end of the last good line
	next      uint64 // sequence number of the next record
	ahead     reserve
	compactAt int64 // after a compaction that failed: the size at which to try again

	buf []byte // the flusher's
}

// Stats are numbers about a journal.
type Stats struct {
	Sequence     uint64 // of the last durable record
	Bytes        int64  // of the file
	LiveBytes    int64  // what the file would have if it were rewritten now, about
	Live         int    // keys that have a value
	Syncs        uint64 // fdatasync calls for changes since the journal was opened
	Compactions  uint64 // since the journal was opened
	CompactError error  // why the last compaction was put off; nil after one that succeeded
	DroppedTorn  bool   // a torn last write was dropped when the journal was opened
	Refused      uint64 // changes that were not written since the journal was opened
	SyncTime     Durations
}

// Durations is how long the writes of changes took, each with its fdatasync.
type Durations struct {
	Sum time.Duration
	// Within counts those that took at most DurationBounds()[i]; the last those that took longer.
	Within [12]uint64
}

// DurationBounds are the bounds of Durations.
func DurationBounds() []time.Duration {
	const us, ms = time.Microsecond, time.Millisecond
	return []time.Duration{100 * us, 250 * us, 500 * us, ms, 2500 * us, 5 * ms, 10 * ms, 25 * ms, 100 * ms, 500 * ms, 2500 * ms}
}

func (d *Durations) add(took time.Duration) {
	d.Sum += took
	bounds := DurationBounds()
	i := 0
	for i < len(bounds) && took > bounds[i] {
		i++
	}
	d.Within[i]++
}

// Open opens the journal at path, or creates it, and takes its lock. A torn last line is cut off durably. The errors
// are ErrLocked, *DamageError, *VersionError, and what the file system says. The directory must exist; the file and
// its companions (.lock, .tmp) are made with mode 0600. opts may be nil.
func Open(path string, opts *Options) (*Journal, error) {
	j := &Journal{table: castagnoli(), disk: osDisk{}}
	if opts != nil {
		j.options = *opts
	}
	if j.options.disk != nil {
		j.disk = j.options.disk
	}
	if j.options.CompactSize == 0 {
		j.options.CompactSize = 1 << 20
	}
	if j.options.CompactRatio == 0 {
		j.options.CompactRatio = 4
	}
	j.idle = sync.NewCond(&j.mu)
	j.encode.New = newEncoder
	var err error
	if j.path, err = resolve(path); err != nil {
		return nil, err
	}
	if j.lock, err = acquire(j.path); err != nil {
		return nil, err
	}
	if err = j.load(); err != nil {
		return nil, errors.Join(err, j.lock.release())
	}
	return j, nil
}

// load brings the state into memory and the file into order.
func (j *Journal) load() error {
	// A rewrite that was cut off; the journal itself is untouched by it.
	if err := os.Remove(j.path + suffixTemp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("state: stale temporary file: %w", err)
	}
	j.ahead.can = true
	f, err := j.disk.open(j.path)
	if errors.Is(err, os.ErrNotExist) {
		return j.begin()
	}
	if err != nil {
		return fmt.Errorf("state: %w", err)
	}
	p, err := readJournal(j.path, io.NewSectionReader(f, 0, 1<<62))
	if err == nil && p.damage != nil {
		err = p.damage
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	j.stats.DroppedTorn = p.torn
	if p.next == 0 { // an empty file, or a header that was torn
		if err := f.Close(); err != nil {
			return fmt.Errorf("state: %w", err)
		}
		return j.begin()
	}
	if p.torn {
		err = f.Truncate(p.end)
	}
	// What an earlier process wrote but did not live to sync, and a rename that it did not live to make durable, are
	// read here as if they stood: so make them stand before anybody builds on them.
	if err == nil {
		err = f.datasync()
	}
	if err == nil {
		err = j.disk.syncDir(filepath.Dir(j.path))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("state: %s: %w", j.path, err), f.Close())
	}
	j.file, j.entries, j.size, j.next = f, p.entries, p.end, p.next
	j.live = liveSize(j.entries)
	_ = j.ahead.renew(j.file, j.size, j.size) // a full disk is told to those who want to write
	return nil
}

// begin makes a new journal.
func (j *Journal) begin() error {
	n, err := writeFresh(j.disk, j.path, 1, nil)
	if err == nil {
		if err = n.publish(j.disk, j.path); errors.Is(err, errDirectory) {
			err = errors.Join(err, n.file.Close())
		}
	}
	if err != nil {
		return fmt.Errorf("state: %s: cannot be created: %w", j.path, err)
	}
	j.file, j.entries, j.size, j.next = n.file, map[string]entry{}, n.size, n.next
	j.live = liveSize(nil)
	_ = j.ahead.renew(j.file, j.size, j.size)
	return nil
}

// Get reads the value of key into value, as encoding/json does, and says whether there is one. It sees what is
// durable, and goes on after the journal failed or was closed.
func (j *Journal) Get(key string, value any) (bool, error) {
	j.mu.Lock()
	e, ok := j.entries[key]
	j.mu.Unlock()
	if !ok {
		return false, nil
	}
	if err := json.Unmarshal(e.value, value); err != nil {
		return true, fmt.Errorf("state: %s: the value of %q: %w", j.path, key, err)
	}
	return true, nil
}

// Range calls f for every key that has a value, sorted by key, until f returns false. It goes over the state of the
// moment of the call; f may change the journal. f must not change the bytes of the value.
func (j *Journal) Range(f func(key string, value json.RawMessage) bool) {
	j.mu.Lock()
	snapshot := maps.Clone(j.entries)
	j.mu.Unlock()
	for _, key := range sortedKeys(snapshot) {
		if !f(key, snapshot[key].value) {
			return
		}
	}
}

// Err says why the journal refuses every change: an error that is ErrFailed or ErrClosed, or nil while it takes
// changes. A refusal for want of space is not among them, since it ends by itself.
func (j *Journal) Err() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.refusal()
}

// refusal is Err with mu held.
func (j *Journal) refusal() error {
	if j.err == nil && j.closed {
		return fmt.Errorf("state: %s: %w", j.path, ErrClosed)
	}
	return j.err
}

// Stats returns numbers about the journal as it is now.
func (j *Journal) Stats() Stats {
	j.mu.Lock()
	defer j.mu.Unlock()
	s := j.stats
	s.Sequence, s.Bytes, s.LiveBytes, s.Live = j.next-1, j.size, j.live, len(j.entries)
	return s
}

// Close waits for the changes that are under way, then closes the file and lets the lock go. Closing again does
// nothing. What was acknowledged is durable without it.
func (j *Journal) Close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return nil
	}
	j.closed = true
	for j.flushing || j.gathering != nil {
		j.idle.Wait()
	}
	if err := errors.Join(j.file.Close(), j.lock.release()); err != nil {
		return fmt.Errorf("state: %s: %w", j.path, err)
	}
	return nil
}

// lineSize is what a key and its value take in the file, give or take a digit of the sequence number.
func lineSize(key string, value json.RawMessage) int64 {
	return int64(len(key) + len(value) + 50)
}

func liveSize(entries map[string]entry) int64 {
	size := lineSize("", json.RawMessage(`{"format":"trayd-state","version":1}`))
	for key, e := range entries {
		size += lineSize(key, e.value)
	}
	return size
}

func sortedKeys(entries map[string]entry) []string {
	return slices.Sorted(maps.Keys(entries))
}
