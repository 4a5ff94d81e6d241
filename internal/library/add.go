package library

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/blockdev/volume"
	"github.com/trayd/trayd/iso"
)

// chunk is how much is read and written at once, in bytes: large enough that the calls
// cost nothing beside the bytes.
const chunk = 1 << 20

// partial ends the name of a file that is being added.
const partial = ".partial"

// Add puts an image into a pool: it is written, made durable, read back and compared,
// and only then known by its name. After an error nothing is left. size is exact, in
// bytes; the content ends there or the image is refused.
func (l *Library) Add(ctx context.Context, pool, name string, content io.Reader, size int64) (Image, error) {
	if err := checkName(name); err != nil {
		return Image{}, err
	}
	p, err := l.pool(pool)
	if err != nil {
		return Image{}, err
	}
	if p.Type == Mount {
		return Image{}, problem(Failed, "add it to a pool of type dir or lvm", "pool %s is mounted read-only", pool)
	}
	if size <= 0 {
		return Image{}, problem(Invalid, "give a file that is a disc image", "image %s is empty, or its size is not known", name)
	}
	done, err := l.occupy(pool, name)
	if err != nil {
		return Image{}, err
	}
	defer done()
	if err := l.strayed(p, name); err != nil {
		return Image{}, err
	}
	if _, there := l.in(p, name, false); there {
		return Image{}, problem(Exists, "`trayctl image rm` removes it; or choose another name", "pool %s has an image %s already", pool, name)
	}
	i := Image{Name: name, Pool: pool, Size: size, Added: time.Now().UTC(), Place: placeIn(p, name)}
	if p.Type == LVM {
		err = l.addLV(ctx, p, &i, content)
	} else {
		err = l.addFile(ctx, p, &i, content)
	}
	return i, err
}

// occupy keeps others from the same name while it is added or removed.
func (l *Library) occupy(pool, name string) (done func(), err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := key(pool, name)
	if l.busy[k] {
		return nil, problem(InUse, "wait for it to end", "image %s of pool %s is being added or removed", name, pool)
	}
	l.busy[k] = true
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.busy, k)
	}, nil
}

// occupied reports whether an image is being added or removed. Its volume is active then
// without a drive's record, and goes off at the end, whoever has just begun to use it.
func (l *Library) occupied(pool, name string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.busy[key(pool, name)]
}

// mayWrite says how trayd gets to write where it could not.
func mayWrite(path string, err error) string {
	if errors.Is(err, unix.EROFS) {
		return "trayd's unit lets it write beneath /var/lib/trayd only: `systemctl edit trayd`, [Service], ReadWritePaths=" + path
	}
	return "let trayd's user write to " + path
}

// addFile writes a file beside its name and gives it the name when it is whole.
func (l *Library) addFile(ctx context.Context, p Pool, i *Image, content io.Reader) (err error) {
	if err := os.MkdirAll(p.Path, 0o755); err != nil {
		return problem(Failed, mayWrite(p.Path, err), "the directory of pool %s can't be made: %w", p.Name, err)
	}
	var fs unix.Statfs_t
	if unix.Statfs(p.Path, &fs) == nil && int64(fs.Bavail)*fs.Bsize < i.Size {
		return problem(NoSpace, "free space, or use another pool", "pool %s has %d MiB free, image %s needs %d", p.Name, int64(fs.Bavail)*fs.Bsize>>20, i.Name, i.Size>>20+1)
	}
	final := filepath.Join(p.Path, i.Name+".iso")
	path := filepath.Join(p.Path, "."+i.Name+partial)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return problem(Failed, mayWrite(p.Path, err), "image %s can't be written to pool %s: %w", i.Name, p.Name, err)
	}
	defer f.Close()
	defer func() {
		if e := os.Remove(path); err != nil { // else Clean removes it
			err = errors.Join(err, e)
		}
	}()
	if err := fill(ctx, f, i, content); err != nil {
		return err
	}
	if err := os.Link(path, final); err != nil { // and not rename: it never replaces one
		return problem(Failed, "is there one of that name?", "image %s can't get its name: %w", i.Name, err)
	}
	// The other name goes last: by the two cleanFile knows a file that is not in the
	// catalogue for ours.
	if err := syncDir(p.Path); err != nil {
		return errors.Join(problem(Failed, "see the disk that holds it", "image %s can't be made durable: %w", i.Name, err), os.Remove(final))
	}
	if err := l.journal.Put(key(i.Pool, i.Name), i); err != nil {
		return errors.Join(problem(Failed, "see `trayctl state check`", "image %s can't be written to the catalogue: %w", i.Name, err), os.Remove(final))
	}
	return nil
}

// addLV writes a logical volume, which is marked as unfinished until it is whole and in
// the catalogue.
func (l *Library) addLV(ctx context.Context, p Pool, i *Image, content io.Reader) (err error) {
	if err := l.storage.CreateLV(ctx, p.VG, i.Name, i.Size); err != nil {
		return volumeProblem(i, p, err)
	}
	defer func() {
		if err != nil { // also when the caller has gone
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanLimit)
			defer cancel()
			err = errors.Join(err, l.storage.RemoveLV(clean, p.VG, i.Name))
		}
	}()
	f, err := l.storage.OpenForWriting(ctx, p.VG, i.Name)
	if err != nil {
		return volumeProblem(i, p, err)
	}
	err = fill(ctx, f, i, content)
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	if err := l.journal.Put(key(i.Pool, i.Name), i); err != nil {
		return problem(Failed, "see `trayctl state check`", "image %s can't be written to the catalogue: %w", i.Name, err)
	}
	if err := l.finish(ctx, p, i); err != nil {
		return errors.Join(err, l.journal.Delete(key(i.Pool, i.Name)))
	}
	return nil
}

// finish takes the mark off a logical volume that is whole and in the catalogue, and
// turns it off.
func (l *Library) finish(ctx context.Context, p Pool, i *Image) error {
	err := l.storage.FinishLV(ctx, p.VG, i.Name)
	var v volume.Volume
	if err == nil {
		v, err = l.storage.Volume(volume.Ref{Kind: volume.LVM, Name: p.VG + "/" + i.Name})
	}
	if err == nil {
		err = releasePatiently(ctx, v)
	}
	if err != nil {
		return volumeProblem(i, p, err)
	}
	return nil
}

// scanTime is how long whoever scans a volume that was just written may hold it open: a
// slow disk, a udev with much to do. The upload is not thrown away over that.
const scanTime = 20 * time.Second

func releasePatiently(ctx context.Context, v volume.Volume) error {
	for end := time.Now().Add(scanTime); ; time.Sleep(scanTime / 100) {
		err := v.Release(ctx)
		var busy *volume.BusyError
		if !errors.As(err, &busy) || ctx.Err() != nil || time.Now().After(end) {
			return err
		}
	}
}

// cleanLimit is how long the removal of what a failure left may take.
const cleanLimit = 30 * time.Second

func volumeProblem(i *Image, p Pool, err error) error {
	var e *volume.Error
	if errors.As(err, &e) {
		code := Failed
		if e.Reason == volume.NoSpace {
			code = NoSpace
		}
		return &Error{Code: code, Detail: fmt.Sprintf("image %s in pool %s: %v", i.Name, p.Name, err), Next: e.Next, Err: err}
	}
	return problem(Failed, "see `vgs` and `lvs`", "image %s in pool %s: %w", i.Name, p.Name, err)
}

// fill copies the content, makes it durable, reads it back past the page cache, and
// says what disc it is.
func fill(ctx context.Context, f *os.File, i *Image, content io.Reader) error {
	sum := sha256.New()
	buf := make([]byte, chunk)
	n, err := io.CopyBuffer(onlyWriter{io.MultiWriter(f, sum)}, io.LimitReader(stoppable{ctx, content}, i.Size+1), buf)
	switch {
	case err != nil && errors.Is(err, unix.ENOSPC):
		return problem(NoSpace, "free space, or use another pool", "image %s: no space left after %d bytes: %w", i.Name, n, err)
	case err != nil:
		return problem(Failed, "try again", "image %s broke off after %d of %d bytes: %w", i.Name, n, i.Size, err)
	case n != i.Size:
		return problem(Invalid, "is the file still being written?", "image %s has not the %d bytes that were announced", i.Name, i.Size)
	}
	written := sum.Sum(nil)
	if err := f.Sync(); err != nil {
		return problem(Failed, "see the disk that holds it", "image %s can't be made durable: %w", i.Name, err)
	}
	// Without this the page cache would be compared with itself.
	_ = unix.Fadvise(int(f.Fd()), 0, i.Size, unix.FADV_DONTNEED)
	sum.Reset()
	if _, err := io.CopyBuffer(onlyWriter{sum}, stoppable{ctx, io.NewSectionReader(f, 0, i.Size)}, buf); err != nil {
		return problem(Failed, "see the disk that holds it", "image %s can't be read back: %w", i.Name, err)
	}
	if !bytes.Equal(written, sum.Sum(nil)) {
		return problem(Failed, "see the disk that holds it: it loses what is written", "image %s reads back as something else than was written", i.Name)
	}
	i.SHA256 = hex.EncodeToString(written)
	info, err := new(iso.Prober).Probe(io.NewSectionReader(f, 0, i.Size), i.Size)
	if err != nil {
		return problem(Invalid, "use an ISO 9660 or UDF image that is whole", "image %s: %w", i.Name, err)
	}
	i.VolumeID = info.VolumeID
	return nil
}

// onlyWriter hides the methods by which io.Copy would leave the buffer unused.
type onlyWriter struct{ io.Writer }

// stoppable is a reader that ends with its context.
type stoppable struct {
	ctx context.Context
	r   io.Reader
}

func (s stoppable) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	return s.r.Read(p)
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Remove removes an image of the catalogue from its pool. users says who uses it now.
func (l *Library) Remove(ctx context.Context, pool, name string, users func(Place) []string) error {
	p, err := l.pool(pool)
	if err != nil {
		return err
	}
	if err := checkName(name); err != nil {
		return err
	}
	done, err := l.occupy(pool, name)
	if err != nil {
		return err
	}
	defer done()
	i, known := l.Image(pool, name)
	place, there := l.in(p, name, false)
	if !known {
		return problem(NoSuchImage, "`trayctl image ls` shows those that there are", "no image %s that trayd has added to pool %s", name, pool)
	}
	if err := l.strayed(p, name); err != nil {
		return err
	}
	if by := users(place); there && len(by) > 0 {
		return problem(InUse, "eject it first", "image %s of pool %s is in use by %s", name, pool, strings.Join(by, ", "))
	}
	if p.Type == LVM {
		err = l.storage.RemoveLV(ctx, p.VG, name)
	} else if err = os.Remove(filepath.Join(p.Path, name+".iso")); errors.Is(err, fs.ErrNotExist) {
		err = nil
	} else if err == nil {
		err = syncDir(p.Path)
	}
	if err != nil {
		return volumeProblem(&i, p, err)
	}
	if err := l.journal.Delete(key(pool, name)); err != nil {
		return problem(Failed, "see `trayctl state check`", "image %s is removed, but the catalogue can't be written: %w", name, err)
	}
	return nil
}

// Clean puts in order what additions that were cut off have left: it finishes what is
// in the catalogue and removes the rest. What is being added meanwhile is left alone.
func (l *Library) Clean(ctx context.Context) error {
	var errs []error
	for _, p := range l.list() {
		switch p.Type {
		case Dir:
			left, _ := filepath.Glob(filepath.Join(p.Path, ".*"+partial)) // the pattern is right
			for _, path := range left {
				name := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(path), "."), partial)
				errs = append(errs, l.alone(p, name, func() error { return l.cleanFile(p, name, path) }))
			}
		case LVM:
			lvs, err := l.storage.ListLVs(ctx, p.VG)
			errs = append(errs, err)
			for _, lv := range lvs {
				if lv.Incomplete {
					errs = append(errs, l.alone(p, lv.Name, func() error { return l.cleanLV(ctx, p, lv.Name) }))
				}
			}
		}
	}
	return errors.Join(errs...)
}

// alone does something about an image unless it is being added or removed.
func (l *Library) alone(p Pool, name string, f func() error) error {
	done, err := l.occupy(p.Name, name)
	if err != nil {
		return nil
	}
	defer done()
	return f()
}

// cleanFile removes what is left of a file; with the image's own name, if it got that and
// didn't get into the catalogue.
func (l *Library) cleanFile(p Pool, name, path string) error {
	if _, ok := l.Image(p.Name, name); !ok {
		final := filepath.Join(p.Path, name+".iso")
		left, err := os.Lstat(path)
		if err != nil {
			return err
		}
		if named, err := os.Lstat(final); err == nil && os.SameFile(left, named) {
			if err := os.Remove(final); err != nil {
				return err
			}
		}
	}
	return os.Remove(path)
}

func (l *Library) cleanLV(ctx context.Context, p Pool, name string) error {
	if i, ok := l.Image(p.Name, name); ok && i.Place == placeIn(p, name) {
		return l.finish(ctx, p, &i)
	}
	return l.storage.RemoveLV(ctx, p.VG, name)
}
