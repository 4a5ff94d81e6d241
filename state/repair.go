package state

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// Repair saves what is intact in the damaged journal at path. It takes the lock, keeps the original beside it under
// path + ".damaged-<UTC time>", and puts a new file in its place durably: every key has its last intact value. The
// Report says what was lost, and where the original is. A journal that has nothing wrong is left alone (Copy is
// empty), and so is a file without a single intact line, which may not be a journal at all.
func Repair(path string) (*Report, error) {
	path, err := resolve(path)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("state: %w", err) // before a lock file is made beside nothing
	}
	l, err := acquire(path)
	if err != nil {
		return nil, err
	}
	report, err := repair(osDisk{}, path, time.Now())
	return report, errors.Join(err, l.release())
}

func repair(d disk, path string, now time.Time) (*Report, error) {
	p, err := replayFile(path)
	if err != nil {
		return nil, err
	}
	report := p.report()
	if p.damage == nil && !p.torn {
		return report, nil
	}
	if p.next == 0 {
		return report, fmt.Errorf("state: %s: nothing in it is a line of a journal, so it was left alone; "+
			"move it away to begin with an empty one", path)
	}
	if report.Copy, err = keep(path, now); err != nil {
		return report, fmt.Errorf("state: %s: the original could not be kept, so nothing was changed: %w", path, err)
	}
	n, err := writeFresh(d, path, p.next, p.entries)
	if err == nil {
		if err = n.publish(d, path); err == nil || errors.Is(err, errDirectory) {
			err = errors.Join(err, n.file.Close())
		}
	}
	if err != nil {
		return report, fmt.Errorf("state: %s: the repaired file could not be put in place: %w", path, err)
	}
	return report, nil
}

// keep gives the file at path a second name that says when. A link takes no space, which a full disk does not have,
// and at no moment is path missing; where the file system has no links it is copied.
func keep(path string, now time.Time) (string, error) {
	stamp := path + ".damaged-" + now.UTC().Format("20060102T150405Z")
	name := stamp
	for i := 2; ; i++ {
		err := os.Link(path, name)
		if err == nil {
			return name, nil
		}
		if !errors.Is(err, os.ErrExist) {
			break
		}
		name = fmt.Sprintf("%s-%d", stamp, i)
	}
	return name, copyFile(path, name)
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err == nil {
		err = out.Sync()
	}
	if err = errors.Join(err, out.Close()); err != nil {
		return errors.Join(err, os.Remove(to))
	}
	return osDisk{}.syncDir(filepath.Dir(to))
}
