package library

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/internal/library/fetch"
	"github.com/trayd/trayd/internal/library/ingest"
	"github.com/trayd/trayd/internal/wire"
	"github.com/trayd/trayd/iso"
)

// job brings one image into its pool.
type job struct {
	l     *Library
	pool  Pool
	store store
	// request is what was asked for, with what isn't written down; nil of an upload.
	request *Request
	cancel  context.CancelCauseFunc
	done    chan struct{} // closed at its end
	// resumed is set when bytes of an earlier attempt are part of the content.
	resumed bool

	mu    sync.Mutex // guards below
	entry *entry
	saved time.Time // when the state of its download was last made durable
	err   error     // of its end
}

// Why a job's context has ended.
var (
	errCancelled = errors.New("cancelled")
	errStopping  = errors.New("trayd is stopping")
)

// newJob gives the name of an image, which the caller has (occupy), to a job. The caller
// starts it, or ends it.
func (l *Library) newJob(ctx context.Context, p Pool, e *entry, r *Request) (*job, context.Context) {
	ctx, cancel := context.WithCancelCause(ctx)
	j := &job{l: l, pool: p, store: l.store(p), request: r, cancel: cancel, done: make(chan struct{}), entry: e}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.jobs[e.key()] = j
	return j, ctx
}

// end lets others have the image's name.
func (j *job) end(err error) {
	j.mu.Lock()
	j.err = err
	k := j.entry.key()
	j.mu.Unlock()
	j.l.mu.Lock()
	delete(j.l.jobs, k)
	j.l.mu.Unlock()
	j.cancel(nil)
	close(j.done)
}

// image is what is to be seen of it now.
func (j *job) image() Image {
	j.mu.Lock()
	defer j.mu.Unlock()
	i := j.entry.Image
	if p := i.Progress; p != nil {
		now := *p
		i.Progress = &now
	}
	return i
}

// change changes what is to be seen.
func (j *job) change(f func(*entry)) {
	j.mu.Lock()
	defer j.mu.Unlock()
	f(j.entry)
}

// copy is the entry as it is now, for the journal.
func (j *job) copy() *entry {
	j.mu.Lock()
	defer j.mu.Unlock()
	e := *j.entry
	e.Progress = nil
	return &e
}

// save makes the entry durable as it is.
func (j *job) save() error { return j.l.put(j.copy()) }

// freeName is what the bytes of an image go to in a volume group that has a volume of its
// name already, with a content that it shares with others; "" for the name itself.
func (l *Library) freeName(p Pool, e *entry) string {
	if p.Type != LVM || e.Unfinished != "" {
		return e.Unfinished
	}
	s := &lvmStore{l.storage, p}
	taken := make(map[string]bool)
	for _, o := range l.entries() {
		if o.Name != e.Name {
			taken[o.Place], taken[s.ref(o.unfinished()).String()] = true, true
		}
	}
	name := ""
	for n := 1; taken[s.ref(or(name, e.Name)).String()]; n++ {
		name = fmt.Sprintf("%s.%d", e.Name, n)
	}
	return name
}

// source gets the bytes: it opens the file by open and feeds what onto returns.
type source func(ctx context.Context, open func(size int64) (*os.File, error), onto func() ([]io.Writer, error)) (size int64, err error)

// acquire brings the bytes in, compares and inspects them, and gives them their place.
// After an error nothing of them is in the catalogue.
func (j *job) acquire(ctx context.Context, x *expectation, get source) error {
	var (
		f    *os.File
		seen *witness
		room int64 // that was made, in bytes
	)
	closed := func() error {
		if f == nil {
			return nil
		}
		err := f.Close()
		f = nil
		return err
	}
	defer closed()
	open := func(size int64) (*os.File, error) {
		if err := closed(); err != nil {
			return nil, err
		}
		if err := j.reserve(ctx, size); err != nil {
			return nil, err
		}
		room = size
		var err error
		e := j.copy()
		if e.Integrity == integrityVerity && size >= 0 {
			whole, err := withTree(size) // what can't have a tree isn't fetched
			if err != nil {
				return nil, err
			}
			if j.pool.Type == LVM {
				size = whole
			}
		}
		f, err = j.store.open(ctx, e.unfinished(), size)
		if err == nil {
			j.l.failPoint("image-opened")
		}
		return f, err
	}
	onto := func() (all []io.Writer, err error) {
		seen, all, err = x.witness()
		return all, err
	}
	lv := j.l.freeName(j.pool, j.copy())
	j.change(func(e *entry) { e.State, e.Unfinished = wire.ImageDownloading, lv })
	size, err := get(ctx, open, onto)
	if err != nil {
		return refused("", err)
	}
	j.l.failPoint("image-received")
	if size > j.image().Size { // nobody has said it before
		if err := j.reserve(ctx, size); err != nil {
			return err
		}
	}
	j.change(func(e *entry) { e.State, e.Size, e.Progress = wire.ImageVerifying, size, nil })
	i := j.image()
	if size > room { // its source didn't say how large it is
		if err := j.reserve(ctx, size); err != nil {
			return err
		}
	}
	if err := seen.verdict(&i); err != nil {
		return err
	}
	if i.Integrity == integrityVerity { // its size may not have been known
		if _, err := withTree(size); err != nil {
			return err
		}
	}
	if err := j.store.check(ctx, f, size, i.SHA256); err != nil {
		return err
	}
	if err := inspectInto(&i, f, size); err != nil {
		return err
	}
	i.RootHash = "" // of an earlier attempt
	j.change(func(e *entry) { e.Image = i })
	if err := closed(); err != nil {
		return err
	}
	return j.place(ctx)
}

// inspectInto says what disc a content is, and refuses what is none.
func inspectInto(i *Image, f io.ReaderAt, size int64) error {
	report, err := iso.Inspect(io.NewSectionReader(f, 0, size), size)
	if err != nil {
		return problem(Failed, "see the disk that holds it", "it can't be read back: %w", err)
	}
	_, err = iso.Probe(io.NewSectionReader(f, 0, size), size) // what each insert wants
	var cut *iso.TruncatedError
	switch {
	case errors.As(err, &cut):
		return problem(Truncated, "download it again and compare its checksum", "it is %w", err)
	case err != nil:
		return problem(Invalid, "use an ISO 9660 or UDF image that is whole", "%w", err)
	}
	i.Format, i.VolumeID = string(report.Format), report.VolumeID
	i.Boot = &wire.ImageBoot{BIOS: report.Boot.BIOS, UEFIx64: report.Boot.UEFIx64, UEFIarm64: report.Boot.UEFIarm64}
	return nil
}

// place gives a content that is whole its place, or points to the same one that the pool
// has already. It may be repeated after a death at any point of it.
func (j *job) place(ctx context.Context) error {
	e := j.copy()
	done, err := j.l.hold(ctx, e.Pool, e.SHA256)
	if err != nil {
		return err
	}
	defer done()
	if same, ok := j.l.withContent(j.pool, e.SHA256, e.Image); ok && j.store.has(ctx, same) {
		j.change(func(e *entry) { e.RootHash = same.RootHash })
		if err := j.store.discard(ctx, e.unfinished()); err != nil {
			return err
		}
		return j.ready(same.Place, same.Seen)
	}
	// Wherever it ends from here on, the place is known: the next start finds it there, and
	// a removal or a failure leaves nothing.
	j.change(func(e *entry) { e.Place = j.store.placeOf(e.unfinished(), e.SHA256) })
	if err := j.save(); err != nil {
		return err
	}
	j.l.failPoint("image-verified")
	if j.pool.Type == LVM && e.Integrity == integrityVerity && !isRoot(e.RootHash) { // behind the data, as long as it can be written
		if err := j.hashTree(ctx, ""); err != nil {
			return err
		}
		if err := j.save(); err != nil { // once it is finished it isn't made again
			return err
		}
	}
	place, err := j.store.finish(ctx, e.unfinished(), e.Size, e.SHA256)
	if err != nil {
		return err
	}
	j.l.failPoint("image-placed")
	if j.pool.Type == Dir {
		if err := j.hashTree(ctx, place); err != nil {
			return err
		}
	}
	return j.ready(place, seenAt(j.pool, place))
}

// unplace removes a content that has got its place, unless it has another name.
func (j *job) unplace(ctx context.Context) error {
	if e := j.copy(); e.Place != "" {
		return j.l.letGo(ctx, j.pool, e)
	}
	return nil
}

// ready makes the image one that can be used.
func (j *job) ready(place string, seen *Seen) error {
	j.change(func(e *entry) {
		e.State, e.Place, e.Seen, e.Unfinished = wire.ImageReady, place, seen, ""
		e.Fetched, e.Failure, e.Progress = fetch.State{}, nil, nil
		if e.Request != nil {
			e.Request = e.afterRot()
		}
	})
	if err := j.save(); err != nil {
		return err
	}
	j.l.failPoint("image-ready")
	return nil
}

// maxKept is the largest signature that is kept with an image, in bytes: those of minisign
// and OpenPGP have less than a thousand.
const maxKept = 16 << 10

// seenAt is the file at a place as it is now; nil for a volume, which can be written
// without a trace.
func seenAt(p Pool, place string) *Seen {
	if p.Type != Dir {
		return nil
	}
	f, err := os.Open(place)
	if err != nil {
		return nil
	}
	defer f.Close()
	if seen, ok := seenNow(f); ok {
		return &seen
	}
	return nil
}

// download gets the bytes from the request's URLs.
func (j *job) download(r *Request, client *fetch.Client, limit int64) source {
	return func(ctx context.Context, open func(int64) (*os.File, error), onto func() ([]io.Writer, error)) (int64, error) {
		e := j.copy()
		had := e.Fetched
		size := had.Size
		if e.Integrity == integrityVerity && j.pool.Type == LVM && size > 0 {
			size, _ = withTree(size) // open says what is wrong with it
		}
		if had.Bytes > 0 && !j.store.keeps(ctx, e.unfinished(), size) {
			had = fetch.State{}
		}
		got, err := client.Run(ctx, fetch.Job{
			URLs: r.URLs, Limit: limit, State: had, Open: open, Onto: onto, Progress: j.progress,
		})
		j.resumed = got.Resumed > 0
		return got.Size, err
	}
}

// saveEvery is how often the state of a download is made durable. A death costs the bytes
// since then, and those since the disk was flushed last (ingest: 10 s, or 64 MiB).
const saveEvery = 2 * time.Second

// progress notes how far a download is.
func (j *job) progress(p fetch.Progress) {
	j.mu.Lock()
	now := &wire.ImageProgress{Bytes: p.Bytes, Total: max(p.Total, 0), Rate: int64(p.Rate), Attempt: p.Attempt, URL: p.URL}
	if p.ETA > 0 {
		now.Left = int64(p.ETA.Seconds())
	}
	if p.Phase == fetch.Waiting && p.Err != nil {
		now.Waiting = p.Err.Detail
	}
	e := j.entry
	e.Progress = now
	if p.Total > 0 {
		e.Size = p.Total
	}
	// The validator is durable before the first byte counts, and the bytes now and then.
	other := e.Fetched.Validator != p.State.Validator
	due := other || e.Fetched.Bytes != p.State.Bytes && time.Since(j.saved) >= saveEvery || p.Phase == fetch.Ended
	e.Fetched = p.State
	if due {
		j.saved = time.Now()
	}
	j.mu.Unlock()
	if due {
		if err := j.save(); err != nil {
			j.l.log.Warn("how far a download is can't be written down", "image", j.image().String(), "error", err)
		}
	}
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
			return n, problem(Invalid, "give a file that is a disc image", "image %s is empty", name)
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
