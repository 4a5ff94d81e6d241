package library

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/trayd/trayd/internal/library/fetch"
	"github.com/trayd/trayd/internal/wire"
)

// job brings one image into its pool.
type job struct {
	l     *Library
	pool  Pool
	store store
	// request is what was asked for, with what isn't written down; nil of an upload.
	request *Request
	format  string // that the bytes have to be, as in Request
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
	if err := inspectInto(&i, f, size, j.format); err != nil {
		return err
	}
	if err := takes(j.pool, i.Kind, i.Integrity); err != nil {
		return err
	}
	i.RootHash = "" // of an earlier attempt
	j.change(func(e *entry) { e.Image = i })
	if err := closed(); err != nil {
		return err
	}
	return j.place(ctx)
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
	j.change(func(e *entry) { e.Place = j.store.placeOf(e) })
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
	place, err := j.store.finish(ctx, e)
	if err != nil {
		return err
	}
	j.l.failPoint("image-placed")
	if e.Captured {
		j.l.failPoint("capture-placed")
	}
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
