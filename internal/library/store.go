package library

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/blockdev/volume"
	"github.com/trayd/trayd/internal/library/ingest"
	"github.com/trayd/trayd/internal/wire"
)

// store is how a kind of pool keeps contents. What isn't finished has no place yet; there
// is one of a name at most.
type store interface {
	// open makes, or takes up, what the bytes of an unfinished image go to. size is -1
	// when it isn't known. What is there already is kept. The caller closes it.
	open(ctx context.Context, name string, size int64) (*os.File, error)
	// keeps reports whether what open has made for an image of size bytes is still there.
	keeps(ctx context.Context, name string, size int64) bool
	// check reads back what was written, where the pool wants that.
	check(ctx context.Context, f *os.File, size int64, sha256 string) error
	// placeOf is the place that finish gives a content.
	placeOf(e *entry) string
	// has reports whether a content is at its place, as far as that tells without reading it.
	has(ctx context.Context, e *entry) bool
	// finish gives a whole, durable content its place, for good. It may be repeated after
	// a death at any point of it.
	finish(ctx context.Context, e *entry) (place string, err error)
	// park leaves an unfinished image for later, discard removes it.
	park(ctx context.Context, name string) error
	discard(ctx context.Context, name string) error
	// remove removes the content at a place. One that isn't there is a success.
	remove(ctx context.Context, place string) error
}

func (l *Library) store(p Pool) store {
	if p.Type == LVM {
		return &lvmStore{l.storage, p}
	}
	return &dirStore{p}
}

// partial ends the name of a file that isn't finished.
const partial = ".partial"

// dirStore is a directory.
type dirStore struct{ pool Pool }

func (s *dirStore) unfinished(name string) string {
	return filepath.Join(s.pool.Path, "."+name+partial)
}

func (s *dirStore) placeOf(e *entry) string {
	return filepath.Join(s.pool.Path, "sha256", e.SHA256+extension(e.Image))
}

// extension is how the file of a content ends.
func extension(i Image) string {
	if i.Kind == wire.ImageDisk {
		return "." + i.Format
	}
	return ".iso"
}

func (s *dirStore) has(_ context.Context, e *entry) bool {
	f, err := os.Open(e.Place)
	if err != nil {
		return false
	}
	defer f.Close()
	return e.Seen != nil && e.Seen.Is(f)
}

func (s *dirStore) open(_ context.Context, name string, size int64) (*os.File, error) {
	if err := os.MkdirAll(s.pool.Path, 0o755); err != nil {
		return nil, problem(Failed, mayWrite(s.pool.Path, err), "the directory of pool %s can't be made: %w", s.pool.Name, err)
	}
	f, err := os.OpenFile(s.unfinished(name), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, problem(Failed, mayWrite(s.pool.Path, err), "image %s can't be written to pool %s: %w", name, s.pool.Name, err)
	}
	var at unix.Statfs_t
	var st unix.Stat_t
	if size > 0 && unix.Fstatfs(int(f.Fd()), &at) == nil && unix.Fstat(int(f.Fd()), &st) == nil {
		if room := int64(at.Bavail)*at.Bsize + st.Blocks*512; room < size {
			f.Close()
			return nil, problem(NoSpace, "free space, or use another pool", "pool %s has %d MiB free, image %s needs %d", s.pool.Name, room>>20, name, size>>20+1)
		}
	}
	return f, nil
}

func (s *dirStore) keeps(_ context.Context, name string, _ int64) bool {
	st, err := os.Lstat(s.unfinished(name))
	return err == nil && st.Mode().IsRegular()
}

// mayWrite says how trayd gets to write where it could not.
func mayWrite(path string, err error) string {
	if errors.Is(err, unix.EROFS) {
		return "trayd's unit lets it write beneath /var/lib/trayd only: `systemctl edit trayd`, [Service], ReadWritePaths=" + path
	}
	return "let trayd's user write to " + path
}

// check has nothing to do: a file system that takes an fsync for done has the bytes.
func (s *dirStore) check(context.Context, *os.File, int64, string) error { return nil }

func (s *dirStore) finish(_ context.Context, e *entry) (string, error) {
	name, size := e.unfinished(), e.Size
	from, place := s.unfinished(name), s.placeOf(e)
	failed := func(err error) (string, error) {
		return "", problem(Failed, "see the disk that holds pool "+s.pool.Name, "image %s can't get its place: %w", name, err)
	}
	switch st, err := os.Lstat(from); {
	case errors.Is(err, fs.ErrNotExist): // a death came after the rename
		if st, err := os.Lstat(place); err != nil || st.Size() != size {
			return "", problem(Interrupted, "add it again", "image %s was cut off, and its bytes are gone", name)
		}
		return place, s.sync(place)
	case err != nil:
		return failed(err)
	case st.Size() > size: // an earlier attempt had more
		if err := os.Truncate(from, size); err != nil {
			return failed(err)
		}
	}
	f, err := os.Open(from)
	if err != nil {
		return failed(err)
	}
	err = errors.Join(f.Chmod(0o444), f.Sync(), f.Close())
	if err == nil {
		err = os.MkdirAll(filepath.Dir(place), 0o755)
	}
	if err == nil {
		err = os.Rename(from, place)
	}
	if err == nil {
		err = s.sync(place)
	}
	if err != nil {
		return failed(err)
	}
	return place, nil
}

// sync makes names durable: the file's, and its directory's.
func (s *dirStore) sync(place string) error {
	return errors.Join(syncDir(filepath.Dir(place)), syncDir(s.pool.Path))
}

func (s *dirStore) park(context.Context, string) error { return nil }

func (s *dirStore) discard(_ context.Context, name string) error {
	return absentIsFine(os.Remove(s.unfinished(name)))
}

func (s *dirStore) remove(_ context.Context, place string) error {
	err := os.Remove(place)
	if err == nil {
		err = syncDir(filepath.Dir(place))
	}
	if err := absentIsFine(err); err != nil {
		return problem(Failed, mayWrite(s.pool.Path, err), "%s can't be removed: %w", place, err)
	}
	return nil
}

func absentIsFine(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// lvmStore is a volume group. A content is a logical volume with the name of the image
// that it was added as.
type lvmStore struct {
	storage Storage
	pool    Pool
}

func (s *lvmStore) ref(name string) volume.Ref {
	return volume.Ref{Kind: volume.LVM, Name: s.pool.VG + "/" + name}
}

func (s *lvmStore) placeOf(e *entry) string { return s.ref(e.unfinished()).String() }

func (s *lvmStore) has(ctx context.Context, e *entry) bool {
	lvs, err := s.storage.ListLVs(ctx, s.pool.VG)
	return err == nil && slices.ContainsFunc(lvs, func(lv volume.LVInfo) bool { return !lv.Incomplete && s.ref(lv.Name).String() == e.Place })
}

// open makes a volume of the size, or takes up one that has it.
func (s *lvmStore) open(ctx context.Context, name string, size int64) (*os.File, error) {
	if size < 0 {
		return nil, problem(BadRequest, "use a pool of type dir, or a source that says it", "the size of image %s isn't known, and a logical volume needs it", name)
	}
	lvs, err := s.storage.ListLVs(ctx, s.pool.VG)
	if err != nil {
		return nil, s.failed(name, err)
	}
	for _, lv := range lvs {
		switch {
		case lv.Name != name:
		case lv.Incomplete && fits(lv, size):
			return s.write(ctx, name)
		case lv.Incomplete:
			if err := s.storage.RemoveLV(ctx, s.pool.VG, name); err != nil {
				return nil, s.failed(name, err)
			}
		default:
			return nil, problem(Exists, "choose another name, or remove it (`lvremove "+s.pool.VG+"/"+name+"`)", "volume group %s has a logical volume %s already, which trayd did not make", s.pool.VG, name)
		}
	}
	if err := s.storage.CreateLV(ctx, s.pool.VG, name, size); err != nil {
		return nil, s.failed(name, err)
	}
	return s.write(ctx, name)
}

func (s *lvmStore) keeps(ctx context.Context, name string, size int64) bool {
	lvs, err := s.storage.ListLVs(ctx, s.pool.VG)
	return err == nil && slices.ContainsFunc(lvs, func(lv volume.LVInfo) bool { return lv.Name == name && lv.Incomplete && fits(lv, size) })
}

func fits(lv volume.LVInfo, size int64) bool { return lv.Size >= size && lv.Size < size+slack }

// slack is how much larger than its content a volume may be by its group's extents, which
// have 4 MiB unless somebody says else (vgcreate(8)), in bytes.
const slack = 128 << 20

func (s *lvmStore) write(ctx context.Context, name string) (*os.File, error) {
	f, err := s.storage.OpenForWriting(ctx, s.pool.VG, name)
	if err != nil {
		return nil, s.failed(name, err)
	}
	return f, nil
}

// check reads the volume back past the page cache: nothing but this tells whether a disk
// has kept what it was given.
func (s *lvmStore) check(ctx context.Context, f *os.File, size int64, sha256 string) error {
	_ = unix.Fadvise(int(f.Fd()), 0, size, unix.FADV_DONTNEED)
	got, err := hashOf(ctx, f, size)
	switch {
	case err != nil:
		return problem(Failed, "see the disk that holds it", "it can't be read back: %w", err)
	case got != sha256:
		return problem(Failed, "see the disk that holds it: it loses what is written", "it reads back as something else than was written")
	}
	return nil
}

func (s *lvmStore) finish(ctx context.Context, e *entry) (string, error) {
	name := e.unfinished()
	lvs, err := s.storage.ListLVs(ctx, s.pool.VG)
	if err != nil {
		return "", s.failed(name, err)
	}
	for _, lv := range lvs {
		if lv.Name != name {
			continue
		}
		if lv.Incomplete {
			if err := s.storage.FinishLV(ctx, s.pool.VG, name); err != nil {
				return "", s.failed(name, err)
			}
		}
		return s.ref(name).String(), s.park(ctx, name)
	}
	return "", problem(Interrupted, "add it again", "image %s was cut off, and its logical volume is gone", name)
}

// park turns the volume off. Whoever scans one that was just written is waited for: a slow
// disk, a udev with much to do.
func (s *lvmStore) park(ctx context.Context, name string) error {
	v, err := s.storage.Volume(s.ref(name))
	if err == nil {
		err = releasePatiently(ctx, v)
	}
	if err != nil {
		return s.failed(name, err)
	}
	return nil
}

// scanTime is how long whoever scans a volume may hold it open.
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

func (s *lvmStore) discard(ctx context.Context, name string) error {
	lvs, err := s.storage.ListLVs(ctx, s.pool.VG)
	if err != nil {
		return s.failed(name, err)
	}
	for _, lv := range lvs {
		if lv.Name != name {
			continue
		}
		if lv.Incomplete {
			return s.removeLV(ctx, name)
		}
		return nil
	}
	return s.park(ctx, name) // somebody may have renamed it
}

func (s *lvmStore) remove(ctx context.Context, place string) error {
	ref, err := volume.ParseRef(place)
	if err != nil {
		return err
	}
	return s.removeLV(ctx, ref.Name[len(s.pool.VG)+1:])
}

func (s *lvmStore) removeLV(ctx context.Context, name string) error {
	if err := s.storage.RemoveLV(ctx, s.pool.VG, name); err != nil {
		return s.failed(name, err)
	}
	return nil
}

func (s *lvmStore) failed(name string, err error) error {
	var e *volume.Error
	if errors.As(err, &e) {
		code := Failed
		if e.Reason == volume.NoSpace {
			code = NoSpace
		}
		return &Error{Code: code, Detail: fmt.Sprintf("image %s in pool %s: %v", name, s.pool.Name, err), Next: e.Next, Err: err}
	}
	return problem(Failed, "see `vgs` and `lvs`", "image %s in pool %s: %w", name, s.pool.Name, err)
}

// hashOf is the SHA-256 of the first size bytes.
func hashOf(ctx context.Context, f *os.File, size int64) (string, error) {
	sum := newSum()
	if err := ingest.HashFile(ctx, f, size, sum); err != nil {
		return "", err
	}
	return sum.hex(), nil
}
