package library

import (
	"context"
	"errors"
	"os"
	"strings"

	"github.com/trayd/trayd/internal/wire"
)

// Start lets downloads run until ctx ends. told hears what becomes of each; it may be nil.
func (l *Library) Start(ctx context.Context, told func(Event)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ctx, l.told = ctx, told
}

// Drain waits until nothing is under way any more, once the context of Start has ended.
func (l *Library) Drain() {
	_ = l.context() // whoever has entered has added itself; from here on nobody enters
	l.work.Wait()
}

// Resume goes on with what an earlier trayd, or a death of it, has left: downloads go on,
// what was whole gets its place, what was to go goes, and the rest is removed. What is
// under way meanwhile is left alone. An error says which pool can't be looked into now;
// it may be repeated.
func (l *Library) Resume(ctx context.Context) error {
	var errs []error
	for _, p := range l.list() {
		if p.Type != Mount {
			errs = append(errs, l.resumePool(ctx, p))
		}
	}
	return errors.Join(errs...)
}

func (l *Library) resumePool(ctx context.Context, p Pool) error {
	left, err := l.unfinished(ctx, p)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range l.entries() {
		if e.Pool == p.Name && l.strayed(p, e) == nil {
			errs = append(errs, l.resume(ctx, p, e.Name))
		}
	}
	for _, name := range left {
		e, ok := l.ofUnfinished(p, name)
		errs = append(errs, l.alone(p, e.Name, func() error {
			switch {
			case ok && e.State != wire.ImageReady:
				return nil // a download that has failed, and can be gone on with
			case ok && p.Type == LVM && e.Place == (&lvmStore{l.storage, p}).ref(name).String():
				_, err := l.store(p).finish(ctx, e)
				return err
			}
			return l.store(p).discard(ctx, name)
		}))
	}
	return errors.Join(errs...)
}

// ofUnfinished is the image that something unfinished is of.
func (l *Library) ofUnfinished(p Pool, name string) (*entry, bool) {
	for _, e := range l.entries() {
		if e.Pool == p.Name && e.unfinished() == name {
			return e, true
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, j := range l.jobs {
		if e := j.copy(); e.Pool == p.Name && e.unfinished() == name {
			return e, false
		}
	}
	return &entry{Image: Image{Name: name, Pool: p.Name}}, false
}

// unfinished are the names of what lies unfinished in a pool.
func (l *Library) unfinished(ctx context.Context, p Pool) ([]string, error) {
	var left []string
	if p.Type == LVM {
		lvs, err := l.storage.ListLVs(ctx, p.VG)
		for _, lv := range lvs {
			if lv.Incomplete {
				left = append(left, lv.Name)
			}
		}
		return left, err
	}
	files, err := os.ReadDir(p.Path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	for _, f := range files {
		if name, ok := strings.CutSuffix(f.Name(), partial); ok && strings.HasPrefix(name, ".") && checkName(name[1:]) == nil {
			left = append(left, name[1:])
		}
	}
	return left, err
}

// resume goes on with one image.
func (l *Library) resume(ctx context.Context, p Pool, name string) error {
	return l.alone(p, name, func() error {
		e, ok := l.entry(p.Name, name)
		switch {
		case !ok || e.State == wire.ImageReady || e.State == wire.ImageFailed:
			return nil
		case e.Captured && e.State != wire.ImageRemoving: // the machine that it is of may have gone on since
			return l.remove(ctx, p, e)
		case e.State == wire.ImageVerifying:
			return l.resumePlace(ctx, p, e)
		case e.State == wire.ImageRemoving:
			return l.remove(ctx, p, e)
		case e.Request == nil || len(e.Request.URLs) == 0:
			return errors.Join(l.store(p).discard(ctx, e.unfinished()), l.drop(e))
		case incomplete(e.Request):
			e.State = wire.ImageFailed
			e.Failure = &wire.ImageFailure{
				Code: Interrupted, Cause: "trayd was started anew, and the query of its URL is not written down",
				Remedy: "`trayctl image add " + e.Name + " URL` with the whole URL goes on where it was", At: e.Added, Kept: e.Fetched.Bytes,
			}
			return l.put(e)
		}
		_, err := l.begin(p, e, e.Request)
		return err
	})
}

// resumePlace gives a content its place that was whole when trayd died.
func (l *Library) resumePlace(ctx context.Context, p Pool, e *entry) error {
	j := &job{l: l, pool: p, store: l.store(p), entry: e}
	err := j.place(ctx)
	var known *Error
	if !errors.As(err, &known) || known.Code != Interrupted {
		return err
	}
	// The bytes are gone. They are fetched again, if anybody knows where from.
	if e.Request == nil || len(e.Request.URLs) == 0 {
		return errors.Join(j.store.discard(ctx, e.unfinished()), l.drop(e))
	}
	j.failed(ctx, err)
	return nil
}

// alone does something about an image unless somebody else does.
func (l *Library) alone(p Pool, name string, f func() error) error {
	done, err := l.occupy(p.Name, name)
	if err != nil {
		return nil
	}
	defer done()
	return f()
}

// Remove removes an image: its name, and its content if that has no other. What a failed
// download has left goes with it.
func (l *Library) Remove(ctx context.Context, pool, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	i, err := l.Image(pool, name)
	if err != nil {
		return err
	}
	p, err := l.pool(i.Pool)
	if err != nil {
		return err
	}
	done, err := l.occupy(p.Name, name)
	if err != nil {
		return err
	}
	defer done()
	e, ok := l.entry(p.Name, name)
	if !ok {
		return problem(NoSuchImage, "`trayctl image ls` shows those that there are", "no image %s that trayd has added to pool %s", name, p.Name)
	}
	if err := l.strayed(p, e); err != nil {
		return err
	}
	if by := l.usersOf(e); len(by) > 0 {
		return inUse(e, by)
	}
	return l.remove(ctx, p, e)
}

// remove removes an image that nobody uses. The caller has its name.
func (l *Library) remove(ctx context.Context, p Pool, e *entry) error {
	if e.State != wire.ImageReady || e.Place == "" {
		if err := l.store(p).discard(ctx, e.unfinished()); err != nil {
			return err
		}
		if e.Place == "" {
			return l.drop(e)
		}
	}
	done, err := l.hold(ctx, e.Pool, e.SHA256)
	if err != nil {
		return err
	}
	defer done()
	if len(l.sharing(e)) > 0 {
		return l.drop(e)
	}
	before := e.State
	e.State = wire.ImageRemoving
	if err := l.put(e); err != nil {
		return err
	}
	l.failPoint("image-removing")
	if err := l.removeUnshared(ctx, p, e); err != nil { // it stays as it was
		e.State = before
		err = errors.Join(err, l.put(e))
		if all := joined(err); len(all) == 1 {
			err = all[0]
		}
		return err
	}
	l.failPoint("image-removed")
	return l.drop(e)
}

// removeUnshared removes the content of an image, unless it has another name. The caller
// holds the content.
func (l *Library) removeUnshared(ctx context.Context, p Pool, e *entry) error {
	if len(l.sharing(e)) > 0 {
		return nil
	}
	if err := l.store(p).remove(ctx, e.Place); err != nil {
		return err
	}
	return l.removeTree(e) // another name of it may have had one
}

// Pin keeps an image from being removed to make room, or lets it be.
func (l *Library) Pin(pool, name string, pinned bool) (Image, error) {
	i, err := l.Image(pool, name)
	if err != nil {
		return i, err
	}
	done, err := l.note(i.Pool, name)
	if err != nil {
		return i, err
	}
	defer done()
	e, ok := l.entry(i.Pool, name)
	if !ok {
		return i, problem(NoSuchImage, "`trayctl image ls` shows those that there are", "no image %s that trayd has added to pool %s", name, i.Pool)
	}
	if e.Pinned != pinned {
		e.Pinned = pinned
		if err := l.put(e); err != nil {
			return i, err
		}
	}
	return e.Image, nil
}
