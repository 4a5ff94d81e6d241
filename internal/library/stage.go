package library

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/blockdev/volume"
	"github.com/trayd/trayd/internal/wire"
)

// staged is where the copy lies of a file in a slow pool, if there is one. It is used
// without a look at the file, which may not be there: only where the pool is mounted
// anyway, a file that was changed since makes the copy one of no use.
func (l *Library) staged(p Pool, name string) (Place, bool) {
	if p.Stage == "" {
		return Place{}, false
	}
	fast, err := l.pool(p.Stage)
	if err != nil {
		return Place{}, false
	}
	for _, e := range l.entries() {
		if e.Origin == nil || e.Pool != p.Stage || e.Origin.Pool != p.Name || e.Origin.File != name || e.State != wire.ImageReady || l.occupied(e.Pool, e.Name) {
			continue
		}
		if now, there := l.originNow(p, name); there && now != *e.Origin {
			return Place{}, false
		}
		return l.placeOf(fast, e)
	}
	return Place{}, false
}

// originNow is a file of a pool that is mounted now.
func (l *Library) originNow(p Pool, name string) (Origin, bool) {
	v, err := l.storage.Volume(volume.Ref{Kind: volume.Mount, Name: p.Name})
	if err != nil {
		return Origin{}, false
	}
	ctx := l.context()
	if st, err := v.State(ctx); err != nil || !st.Active {
		return Origin{}, false
	}
	f, err := v.Open(ctx, name)
	if err != nil {
		return Origin{}, false
	}
	defer f.Close()
	o, err := originOf(p.Name, name, f)
	return o, err == nil
}

func originOf(pool, name string, f *os.File) (Origin, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return Origin{}, err
	}
	return Origin{Pool: pool, File: name, Size: st.Size, Modified: st.Mtim.Nano()}, nil
}

// Stage copies a file of a slow pool, which is open, into the pool that keeps copies of
// it. It closes f, and returns at once; the copy is made in the background, and used from
// the next time on.
func (l *Library) Stage(pool, name string, f *os.File) error {
	p, err := l.pool(pool)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	o, err := originOf(pool, name, f)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	r := Request{Name: pool + "." + name, Pool: p.Stage}
	to, e, err := l.fresh(&r, "image:"+pool+"/"+name)
	if err != nil {
		return errors.Join(err, f.Close())
	}
	e.Origin = &o
	ctx, err := l.enter()
	if err != nil {
		return f.Close() // the next time
	}
	done, err := l.occupy(to.Name, e.Name)
	if err != nil { // it is being copied already
		l.work.Done()
		return f.Close()
	}
	defer done()
	j, ctx := l.newJob(ctx, to, e, nil)
	j.format = anyDisc
	go func() {
		defer l.work.Done()
		j.stage(ctx, f, o)
	}()
	return nil
}

func (j *job) stage(ctx context.Context, f *os.File, o Origin) {
	defer f.Close()
	l := j.l
	i := j.image()
	old, replaces := l.entry(i.Pool, i.Name)
	if replaces { // of the file as it was before
		if old.Origin == nil {
			j.end(nil)
			l.tell(Event{Image: i, Err: exists(j.pool, i.Name)}) // and is somebody's own
			return
		}
		if by := l.usersOf(old); len(by) > 0 {
			j.end(nil)
			return // the next time
		}
		if err := l.remove(ctx, j.pool, old); err != nil { // the old copy keeps its record
			j.end(err)
			l.tell(Event{Image: i, Err: err})
			return
		}
	}
	err := j.acquire(ctx, &expectation{}, j.stream(io.NewSectionReader(f, 0, o.Size), o.Size, 0))
	if err == nil {
		if now, e := originOf(o.Pool, o.File, f); e != nil || now != o {
			err = problem(Changed, "", "it was changed while it was copied")
		}
	}
	if err != nil {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanLimit)
		defer cancel()
		if e := j.undo(clean, nil); e != nil {
			err = errors.Join(err, e)
		}
	}
	i = j.image()
	j.end(err)
	l.tell(Event{Image: i, Err: err})
}
