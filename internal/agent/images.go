package agent

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/trayd/trayd/internal/library"
)

// Images lists the images of the catalogue.
func (a *Agent) Images() []library.Image { return a.images.Images() }

// AddImage puts an image into a pool, see library.Add. It ends with the agent: an upload
// of minutes would hold up its stop, and leave what a death leaves.
func (a *Agent) AddImage(ctx context.Context, pool, name string, content io.Reader, size int64, by Caller) (library.Image, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(a.ctx, cancel)()
	i, err := a.images.Add(ctx, pool, name, content, size)
	a.auditImage("add image", pool, name, by, err)
	if err != nil {
		return i, forImage(err)
	}
	a.publish(Event{Type: EventImageAdded, Detail: i.String()})
	return i, nil
}

// RemoveImage removes an image that no drive uses.
func (a *Agent) RemoveImage(ctx context.Context, pool, name string, by Caller) error {
	err := a.images.Remove(ctx, pool, name, a.usersOf)
	a.auditImage("remove image", pool, name, by, err)
	if err != nil {
		return forImage(err)
	}
	a.publish(Event{Type: EventImageRemoved, Detail: "image:" + pool + "/" + name})
	return nil
}

func (a *Agent) auditImage(verb, pool, name string, by Caller, err error) {
	log := a.log.With("audit", true, "by", by.Name, "verb", verb, "pool", pool, "image", name)
	if err != nil {
		log.Warn("refused or failed", "error", err)
		return
	}
	log.Info("done")
}

// usersOf are the drives whose records speak of what lies at a place.
func (a *Agent) usersOf(p library.Place) []string {
	var by []string
	if p.Volume != nil {
		for _, u := range a.users()[*p.Volume] {
			by = append(by, u.String())
		}
		return by
	}
	for _, v := range a.all() {
		for _, d := range v.allDrives() {
			rec := d.record()
			in, c := rec.Loaded, rec.Change
			if in != nil && in.Medium.Path == p.Path || c != nil && c.Target != nil && c.Target.Path == p.Path {
				by = append(by, v.name+"/"+d.name)
			}
		}
	}
	return by
}

// A pool that can't be looked into, since its disks aren't there yet after a boot or lvm2
// is busy, is looked into again after minClean, then after twice that each time.
const (
	minClean = time.Second
	maxClean = 5 * time.Minute
)

// cleanImages puts in order what additions that were cut off have left, active volumes
// among it, as soon as it can.
func (a *Agent) cleanImages() {
	said := ""
	for pause := minClean; ; pause = min(2*pause, maxClean) {
		ctx, cancel := context.WithTimeout(a.ctx, activateLimit)
		err := a.images.Clean(ctx)
		cancel()
		if err == nil || a.ctx.Err() != nil {
			return
		}
		if err.Error() != said {
			said = err.Error()
			a.log.Warn("what an interrupted image add left can't be removed yet; trayd goes on trying", "error", err)
		}
		select {
		case <-time.After(pause):
		case <-a.ctx.Done():
			return
		}
	}
}

// forImage gives a library's error a code of ours.
func forImage(err error) error {
	var e *library.Error
	if !errors.As(err, &e) {
		return newError(Unreadable, "see the journal of trayd", "%w", err)
	}
	code, ok := map[library.Code]Code{
		library.NoSuchImage: NoSuchMedium, library.NoSuchPool: NoSuchPool, library.BadName: BadRequest,
		library.Ambiguous: BadRequest, library.Exists: ImageExists, library.InUse: ImageInUse,
		library.Invalid: NotADisc, library.NoSpace: NoSpace,
	}[e.Code]
	if !ok {
		code = PoolFailed
	}
	return newError(code, e.Next, "%w", err)
}
