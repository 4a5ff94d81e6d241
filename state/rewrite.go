package state

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// suffixTemp is what a file that is not yet the journal is called. There is at most one, since its writer has the
// lock; one that is there when the lock was just taken belongs to nobody.
const suffixTemp = ".tmp"

// A fresh file is a journal that is being born beside the path that it will have.
type fresh struct {
	file file
	size int64
	next uint64 // sequence number of the next record
}

// writeFresh writes a journal with a header and the given records to the temporary file of path, and makes its
// content durable. On an error nothing is left.
func writeFresh(d disk, path string, seq uint64, state map[string]entry) (*fresh, error) {
	table := castagnoli()
	text := appendHeader(nil, table, seq)
	for _, key := range sortedKeys(state) {
		seq++
		text = appendRecord(text, table, record{seq: seq, key: key, value: state[key].value, with: seq})
	}
	f, err := d.create(path + suffixTemp)
	if err != nil {
		return nil, err
	}
	if _, err = f.WriteAt(text, 0); err == nil {
		err = f.datasync()
	}
	if err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(path+suffixTemp))
	}
	return &fresh{file: f, size: int64(len(text)), next: seq + 1}, nil
}

// discard removes a fresh file that did not become the journal.
func (n *fresh) discard(path string) error {
	return errors.Join(n.file.Close(), os.Remove(path+suffixTemp))
}

// errDirectory says that a journal was replaced, but that a power failure may bring the old one back.
var errDirectory = errors.New("the directory could not be made durable")

// publish puts the fresh file in the journal's place. With errDirectory it is there all the same; with any other
// error the old journal stands.
func (n *fresh) publish(d disk, path string) error {
	if err := d.rename(path+suffixTemp, path); err != nil {
		return errors.Join(err, n.discard(path))
	}
	if err := d.syncDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("%w: %w", errDirectory, err)
	}
	return nil
}

// compact rewrites the journal with its live data alone. What goes wrong before the new file has the journal's name
// leaves the old one in use, and is tried again when the file has grown by another quarter. The caller is the
// flusher: nobody else writes.
func (j *Journal) compact() {
	err := j.rewrite()
	j.mu.Lock()
	defer j.mu.Unlock()
	j.stats.CompactError = err
	if err != nil {
		j.compactAt = j.size + j.size/4
		return
	}
	j.compactAt = 0
	j.stats.Compactions++
}

func (j *Journal) rewrite() error {
	n, err := writeFresh(j.disk, j.path, j.next, j.entries)
	if err != nil {
		return err
	}
	ahead := reserve{can: true}
	if err := ahead.renew(n.file, n.size, n.size); err != nil {
		return errors.Join(err, n.discard(j.path)) // the old file has its reserve
	}
	err = n.publish(j.disk, j.path)
	if err != nil && !errors.Is(err, errDirectory) {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	_ = j.file.Close()
	j.file, j.size, j.next, j.ahead = n.file, n.size, n.next, ahead
	if err != nil {
		// Records appended from now on would be lost with the new file if a power failure brought the old one back.
		j.fail(err)
	}
	return err
}
