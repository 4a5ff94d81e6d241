package library

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/internal/library/fetch"
	"github.com/trayd/trayd/internal/library/ingest"
	"github.com/trayd/trayd/internal/wire"
)

// uploaded is the source of an image whose bytes came from a client.
const uploaded = "upload"

// Upload brings in an image whose bytes come from a reader: size bytes, or -1 for all that
// there are. It is in the catalogue once it is ready; after an error nothing is left.
//
// Where content is an *os.File, its blocks are shared (a reflink) if the file system of the
// pool can do that; it is not read then but for the hashes. It is never a hard link: who has
// the file could still write to it.
func (l *Library) Upload(ctx context.Context, r Request, content io.Reader, size int64) (Image, error) {
	p, e, err := l.fresh(&r, or(baseOf(r.FileName), uploaded))
	if err != nil {
		return Image{}, err
	}
	o, _ := l.configured()
	e.Source = uploaded
	switch {
	case size == 0:
		return Image{}, problem(Invalid, "give a file that is a disc or a disk image", "image %s is empty", r.Name)
	case o.MaxSize > 0 && size > o.MaxSize:
		return Image{}, problem(Invalid, "raise max_size in [library] if it is meant to be so large", "image %s has %d bytes, and at most %d are taken", r.Name, size, o.MaxSize)
	}
	done, err := l.occupy(p.Name, r.Name)
	if err != nil {
		return Image{}, err
	}
	defer done()
	old, ok := l.entry(p.Name, r.Name) // one that has failed
	switch {
	case !ok:
		old = nil
	case old.Place != "":
		return Image{}, exists(p, r.Name)
	}
	j, ctx := l.newJob(ctx, p, e, nil)
	j.format = r.Format
	var x *expectation
	if x, err = l.expect(ctx, &r); err == nil && old != nil {
		err = l.forgetKept(ctx, p, old)
	}
	if err == nil {
		err = j.acquire(ctx, x, j.stream(content, size, largest(o, p)))
	}
	if err != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanLimit)
		defer cancel()
		err = errors.Join(err, j.undo(clean, old))
		if len(joined(err)) == 1 {
			err = joined(err)[0]
		}
		err = about(e, err)
	}
	i := j.image()
	j.end(err)
	return i, err
}

// about names the image in an error that doesn't.
func about(e *entry, err error) error {
	var known *Error
	if !errors.As(err, &known) || strings.HasPrefix(known.Detail, "image ") {
		return err
	}
	named := *known
	named.Detail = fmt.Sprintf("image %s of pool %s: %s", e.Name, e.Pool, known.Detail)
	return &named
}

func joined(err error) []error {
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		return j.Unwrap()
	}
	return []error{err}
}

// forgetKept lets go what a failed download has kept: other bytes are about to take its
// place, and no retry may go on behind them.
func (l *Library) forgetKept(ctx context.Context, p Pool, e *entry) error {
	e.Fetched = fetch.State{}
	if e.Failure != nil {
		failure := *e.Failure
		failure.Kept, failure.Remedy = 0, "try again: `trayctl image retry "+e.Name+"`"
		e.Failure = &failure
	}
	return errors.Join(l.put(e), l.store(p).discard(ctx, e.unfinished()))
}

// undo removes all of an image that could not be brought in. old is what its name was
// before; nil: nothing.
func (j *job) undo(ctx context.Context, old *entry) error {
	e := j.copy()
	err := j.store.discard(ctx, e.unfinished())
	if stays := j.unplace(ctx); stays != nil { // the next start, or gc, tries again
		e.State = wire.ImageRemoving
		return errors.Join(err, stays, j.l.put(e))
	}
	now, there := j.l.entry(e.Pool, e.Name)
	switch {
	case there && old == nil:
		err = errors.Join(err, j.l.drop(e))
	case old != nil && now.State != old.State:
		err = errors.Join(err, j.l.put(old))
	}
	return err
}

// announceLimit is how long an upload that was announced may take to begin.
const announceLimit = 10 * time.Minute

// announcement is what is to be known of an upload besides its bytes.
type announcement struct {
	request Request
	until   time.Time
}

// Announce checks what an upload is to be compared with, and keeps it for Upload.
func (l *Library) Announce(r Request) (Image, error) {
	p, e, err := l.fresh(&r, uploaded)
	if err != nil {
		return Image{}, err
	}
	if old, ok := l.entry(p.Name, r.Name); ok && old.Place != "" {
		return Image{}, exists(p, r.Name)
	}
	x, err := l.expect(l.context(), &r)
	if err != nil {
		return Image{}, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for k, a := range l.announced {
		if time.Now().After(a.until) {
			delete(l.announced, k)
		}
	}
	const most = 64
	if len(l.announced) >= most {
		return Image{}, problem(InUse, "try again in some minutes", "%d uploads are announced already and have not begun", most)
	}
	r.Pool = p.Name
	l.announced[e.key()] = announcement{x.found(r), time.Now().Add(announceLimit)}
	return e.Image, nil
}

// Announced is what was announced of an upload, once; without that it is just the name.
func (l *Library) Announced(pool, name string) (r Request, was bool) {
	r = Request{Pool: pool, Name: name}
	p, err := l.poolFor(pool)
	if err != nil {
		return r, false // Upload says why
	}
	r.Pool = p.Name
	l.mu.Lock()
	defer l.mu.Unlock()
	if a, ok := l.announced[key(p.Name, name)]; ok {
		delete(l.announced, key(p.Name, name))
		a.request.Pool = p.Name
		return a.request, true
	}
	return r, false
}

// stream gets the bytes from a reader of size bytes; -1: until its end.
func (j *job) stream(content io.Reader, size, limit int64) source {
	return func(ctx context.Context, open func(int64) (*os.File, error), onto func() ([]io.Writer, error)) (int64, error) {
		room := size
		from, clones := content.(*os.File)
		if clones = clones && j.l.CanClone(j.pool.Name, from); clones {
			room = 0 // on the disk; of the quota it needs as much as a copy
		}
		f, err := open(room)
		if err == nil && clones {
			err = j.reserve(ctx, size)
		}
		if err != nil {
			return 0, err
		}
		all, err := onto()
		if err != nil {
			return 0, err
		}
		if size >= 0 {
			limit = size
		} else if limit <= 0 {
			limit = ingest.NoLimit
		}
		count := &counter{j: j, total: max(size, 0), began: time.Now()}
		if clones && unix.IoctlFileClone(int(f.Fd()), int(from.Fd())) == nil {
			return size, j.hashClone(ctx, f, size, append(all, count))
		}
		n, err := ingest.Copy(ctx, f, content, ingest.Options{Limit: limit}, append(all, count)...)
		name := j.copy().Name
		var broken *ingest.Error
		switch {
		case err != nil && errors.Is(context.Cause(ctx), errCancelled):
			return n, problem(Cancelled, "", "it was cancelled after %d bytes", n)
		case errors.Is(err, ingest.ErrTooLarge) && size >= 0:
			return n, problem(Invalid, "is the file still being written?", "image %s has more than the %d bytes that were announced", name, size)
		case errors.Is(err, ingest.ErrTooLarge):
			return n, problem(Invalid, "raise max_size in [library], or the pool's quota, if it is meant to be so large", "image %s is larger than the %d bytes that are taken", name, limit)
		case err != nil && ingest.IsFull(err):
			return n, problem(NoSpace, "free space, or use another pool", "no space left after %d bytes: %w", n, err)
		case errors.As(err, &broken) && broken.Step == ingest.Read || err != nil && ctx.Err() != nil:
			return n, problem(Interrupted, "try again", "it broke off after %d bytes: %w", n, err)
		case err != nil:
			return n, problem(Failed, "see the disk that holds pool "+j.pool.Name, "it can't be written: %w", err)
		case size >= 0 && n != size:
			return n, problem(Invalid, "is the file still being written?", "image %s has %d bytes, and %d were announced", name, n, size)
		case n == 0:
			return n, problem(Invalid, "give a file that is a disc or a disk image", "image %s is empty", name)
		}
		if info, err := f.Stat(); err == nil && info.Mode().IsRegular() && info.Size() > n {
			return n, f.Truncate(n) // a longer one was there before
		}
		return n, nil
	}
}

// hashClone hashes a file that shares its blocks with another one.
func (j *job) hashClone(ctx context.Context, f *os.File, size int64, onto []io.Writer) error {
	st, err := f.Stat()
	switch {
	case err != nil:
		return err
	case st.Size() != size:
		return problem(Invalid, "is the file still being written?", "image %s has %d bytes, and %d were announced", j.copy().Name, st.Size(), size)
	}
	if err = ingest.HashFile(ctx, f, size, onto...); err == nil {
		err = f.Sync()
	}
	if err != nil {
		return problem(Failed, "see the disk that holds pool "+j.pool.Name, "it can't be read: %w", err)
	}
	return nil
}

// counter shows how far a stream is.
type counter struct {
	j     *job
	n     int64
	total int64
	began time.Time
	shown time.Time
}

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	if now := time.Now(); now.Sub(c.shown) >= tick {
		c.shown = now
		rate := int64(float64(c.n) / max(now.Sub(c.began).Seconds(), 0.001))
		left := int64(0)
		if c.total > 0 && rate > 0 {
			left = (c.total - c.n) / rate
		}
		c.j.change(func(e *entry) {
			e.Progress = &wire.ImageProgress{Bytes: c.n, Total: c.total, Rate: rate, Left: left}
		})
	}
	return len(p), nil
}

// tick is how often progress is shown anew.
const tick = 250 * time.Millisecond
