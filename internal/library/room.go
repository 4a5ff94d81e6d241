package library

import (
	"context"
	"slices"
	"time"

	"github.com/trayd/trayd/internal/wire"
)

// group is a content with all its names.
type group struct {
	entries []*entry
	last    time.Time // when any of them was used
	free    bool      // nobody uses it, pins it, or does something about it
}

// groups are the contents of a pool that can be used, the one that was used least recently
// first.
func (l *Library) groups(pool string) []*group {
	by := make(map[string]*group)
	var all []*group
	for _, e := range l.entries() {
		if e.Pool != pool || e.State != wire.ImageReady {
			continue
		}
		g := by[e.Place]
		if g == nil {
			g = &group{free: true}
			by[e.Place], all = g, append(all, g)
		}
		g.entries = append(g.entries, e)
		used := e.Used
		if used.Before(e.Added) {
			used = e.Added
		}
		if used.After(g.last) {
			g.last = used
		}
		g.free = g.free && !e.Pinned && !l.occupied(e.Pool, e.Name) && len(l.usersOf(e)) == 0
	}
	slices.SortFunc(all, func(a, b *group) int { return a.last.Compare(b.last) })
	return all
}

// used is how many bytes the images of a pool have, but for one that is on its way: each
// content once, what is on its way with the size that it will have.
func (l *Library) used(pool, but string) int64 {
	var sum int64
	for _, g := range l.groups(pool) {
		sum += g.entries[0].Size
	}
	for _, e := range l.entries() {
		if e.Pool == pool && e.Name != but && e.State == wire.ImageFailed && e.Failure != nil && !l.occupied(pool, e.Name) {
			sum += e.Failure.Kept
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, j := range l.jobs {
		if i := j.image(); i.Pool == pool && i.Name != but && i.State != wire.ImageReady {
			sum += max(i.Size, 0)
		}
	}
	return sum
}

// reserve makes room for the job's image of size bytes, which counts from then on.
func (j *job) reserve(ctx context.Context, size int64) error {
	j.l.room.Lock()
	defer j.l.room.Unlock()
	if err := j.l.makeRoom(ctx, j.pool, j.image().Name, size); err != nil {
		return err
	}
	j.change(func(e *entry) { e.Size = max(size, 0) })
	return nil
}

// makeRoom makes room for an image of size bytes in a pool with a quota: what was used
// least recently goes, never what is pinned, in a drive, or under way.
func (l *Library) makeRoom(ctx context.Context, p Pool, name string, size int64) error {
	if p.Quota <= 0 {
		return nil
	}
	need := max(size, 0)
	over := func() int64 { return l.used(p.Name, name) + need - p.Quota }
	if need > p.Quota {
		return problem(OverQuota, "raise the pool's quota in trayd.toml, or use another pool", "image %s has %d MiB, and pool %s may have %d altogether", name, need>>20+1, p.Name, p.Quota>>20)
	}
	for _, g := range l.groups(p.Name) {
		if over() <= 0 {
			return nil
		}
		if !g.free {
			continue
		}
		for _, e := range g.entries {
			if err := l.evict(ctx, p, e); err != nil {
				l.log.Warn("an image can't be removed to make room", "image", e.String(), "error", err)
			}
		}
	}
	if missing := over(); missing > 0 {
		return problem(OverQuota, "remove or unpin images, eject discs, or raise the pool's quota in trayd.toml",
			"pool %s may have %d MiB, and with image %s it would have %d MiB more; what is left is pinned or in use", p.Name, p.Quota>>20, name, missing>>20+1)
	}
	return nil
}

// evict removes an image that still is of no use to anybody.
func (l *Library) evict(ctx context.Context, p Pool, e *entry) error {
	removed, err := l.removeIf(ctx, p, e.Name, func(now *entry) bool { return now.State == wire.ImageReady && !now.Pinned })
	if removed {
		l.log.Info("image removed to make room", "image", e.String(), "bytes", e.Size, "last_used", e.Used)
	}
	return err
}

// removeIf removes an image that nobody uses or does anything about, if it is of no use now
// that the name is ours.
func (l *Library) removeIf(ctx context.Context, p Pool, name string, useless func(*entry) bool) (removed bool, err error) {
	err = l.alone(p, name, func() error {
		e, ok := l.entry(p.Name, name)
		if !ok || !useless(e) || len(l.usersOf(e)) > 0 {
			return nil
		}
		if err := l.strayed(p, e); err != nil {
			return err
		}
		err := l.remove(ctx, p, e)
		removed = err == nil
		return err
	})
	return removed, err
}

// Collect removes what is of no use: what failed downloads have kept, staged copies whose
// pool is no more, and, when unused is positive, images that no drive has had for so long
// and that aren't pinned. With dry it only says what that is.
func (l *Library) Collect(ctx context.Context, unused time.Duration, dry bool) ([]wire.ImageRemoval, error) {
	all := []wire.ImageRemoval{}
	if !dry {
		if err := l.Resume(ctx); err != nil {
			return nil, err
		}
	}
	add := func(e *entry, why string, bytes int64, still func(*entry) bool) {
		r := wire.ImageRemoval{What: e.String(), Why: why, Bytes: bytes}
		if !dry {
			p, err := l.pool(e.Pool)
			removed := false
			if err == nil {
				removed, err = l.removeIf(ctx, p, e.Name, still)
			}
			switch {
			case err != nil:
				r.Error = err.Error()
			case !removed:
				return // it is of use by now
			}
		}
		all = append(all, r)
	}
	failed := func(e *entry) bool { return e.State == wire.ImageFailed && !rotten(e) }
	for _, e := range l.entries() {
		if failed(e) && !l.occupied(e.Pool, e.Name) {
			kept := int64(0)
			if e.Failure != nil {
				kept = e.Failure.Kept
			}
			add(e, "it has failed", kept, failed)
		}
		if e.Origin != nil {
			if p, err := l.pool(e.Origin.Pool); err != nil || p.Stage != e.Pool {
				add(e, "its pool "+e.Origin.Pool+" is not staged any more", e.Size, func(now *entry) bool { return now.Origin != nil && *now.Origin == *e.Origin })
			}
		}
	}
	if unused <= 0 {
		return all, nil
	}
	for _, p := range l.list() {
		for _, g := range l.groups(p.Name) {
			if !g.free || time.Since(g.last) < unused {
				continue
			}
			for n, e := range g.entries {
				bytes := e.Size
				if n > 0 {
					bytes = 0
				}
				add(e, "no drive has had it since "+g.last.Local().Format("2006-01-02 15:04"), bytes,
					func(now *entry) bool { return now.State == wire.ImageReady && !now.Pinned && now.Used.Equal(e.Used) })
			}
		}
	}
	return all, nil
}

// usedEvery is how exact Used is: a write to the state file an hour at most.
const usedEvery = time.Hour

// NoteUse notes that an image was put into a drive.
func (l *Library) NoteUse(p Place) {
	for _, e := range l.entries() {
		pool, err := l.pool(e.Pool)
		if err != nil || e.State != wire.ImageReady || time.Since(e.Used) < usedEvery {
			continue
		}
		at, ok := l.placeOf(pool, e)
		same := ok && at.Path == p.Path && (at.Volume == nil) == (p.Volume == nil) && (at.Volume == nil || *at.Volume == *p.Volume)
		if !same {
			continue
		}
		l.noteUse(e)
	}
}

func (l *Library) noteUse(e *entry) {
	done, err := l.note(e.Pool, e.Name)
	if err != nil {
		return // the next use tries again
	}
	defer done()
	if now, ok := l.entry(e.Pool, e.Name); ok && now.State == wire.ImageReady {
		now.Used = time.Now().UTC().Truncate(time.Minute)
		_ = l.put(now)
	}
}
