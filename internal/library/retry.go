package library

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/trayd/trayd/internal/library/fetch"
	"github.com/trayd/trayd/internal/wire"
)

// failed makes the failure durable, and removes what can't be gone on with.
func (j *job) failed(ctx context.Context, err error) {
	e := j.copy()
	f := &wire.ImageFailure{Code: Failed, Cause: err.Error(), Remedy: "try again: `trayctl image retry " + e.Name + "`", At: time.Now().UTC()}
	if e.Captured {
		f.Remedy = captureAgain(e)
	}
	var known *Error
	if errors.As(err, &known) {
		f.Code = known.Code
		f.Remedy = or(known.Next, f.Remedy)
	}
	if e.Fetched.Bytes > 0 && e.Fetched.Validator != "" && passes(f.Code) && e.State != wire.ImageVerifying {
		f.Kept = e.Fetched.Bytes
		if err := j.store.park(ctx, e.unfinished()); err != nil {
			j.l.log.Warn("an unfinished image stays active", "image", e.String(), "error", err)
		}
		goesOn := "`trayctl image retry " + e.Name + "` goes on where it was"
		switch {
		case f.Code == Cancelled:
			f.Remedy = goesOn + ", `trayctl image rm " + e.Name + "` lets it go"
		case known != nil && known.Next != "":
			f.Remedy = known.Next + "; " + goesOn
		default:
			f.Remedy = goesOn
		}
	} else {
		err := j.unplace(ctx)
		if err == nil {
			e.Place = ""
		}
		if err := errors.Join(err, j.store.discard(ctx, e.unfinished())); err != nil {
			j.l.log.Warn("what is left of an image can't be removed yet", "image", e.String(), "error", err)
		}
	}
	place := e.Place // of what can't be removed yet
	j.change(func(e *entry) {
		e.State, e.Failure, e.Progress, e.Place = wire.ImageFailed, f, nil, place
		if place == "" {
			e.SHA256 = ""
		}
		if f.Kept == 0 {
			e.Fetched = fetch.State{}
		}
	})
	if err := j.save(); err != nil {
		j.l.log.Warn("the failure of an image can't be written down", "image", e.String(), "error", err)
	}
}

// passes reports whether a failure is one that a later try can go on after, with the bytes
// that there are.
func passes(code wire.Code) bool {
	kind, ok := strings.CutPrefix(string(code), wire.SourceCode)
	if !ok {
		return code == Cancelled
	}
	switch fetch.Kind(kind) {
	case fetch.Refused, fetch.Unreachable, fetch.Truncated, fetch.Stalled, fetch.DNS, fetch.Proxy, fetch.ServerError, fetch.Unauthorized, fetch.Forbidden, fetch.TLSExpired:
		return true
	}
	return false
}

// Cancel ends a download. What is there of it is kept for a retry.
func (l *Library) Cancel(pool, name string) (Image, error) {
	i, err := l.Image(pool, name)
	if err != nil {
		return i, err
	}
	l.mu.Lock()
	j := l.jobs[key(i.Pool, i.Name)]
	l.mu.Unlock()
	switch {
	case j == nil && (i.State == wire.ImageAllocated || i.State == wire.ImageDownloading):
		return i, problem(NotReady, "`journalctl -u trayd` says what is the matter with the pool; it goes on by itself when that is over", "image %s waits for its pool %s", name, i.Pool)
	case j == nil:
		return i, problem(NotReady, "see `trayctl image show "+name+"`", "image %s is not on its way: it is %s", name, i.State)
	}
	j.cancel(errCancelled)
	<-j.done
	e, ok := l.entry(i.Pool, i.Name)
	switch {
	case !ok: // of an upload nothing is left
		return i, nil
	case e.State == wire.ImageReady:
		return e.Image, problem(NotReady, "`trayctl image rm "+name+"` removes it", "image %s can't be cancelled: it was ready before", name)
	}
	return l.shown(e), nil
}

// Retry begins a failed download again, where it was if that can be.
func (l *Library) Retry(pool, name string) (Image, error) {
	i, err := l.Image(pool, name)
	if err != nil {
		return i, err
	}
	p, err := l.pool(i.Pool)
	if err != nil {
		return i, err
	}
	if l.underWay(i) {
		return i, nil
	}
	done, err := l.occupy(p.Name, i.Name)
	if err != nil {
		return i, err
	}
	defer done()
	e, ok := l.entry(i.Pool, i.Name)
	switch {
	case !ok || e.State != wire.ImageFailed:
		return i, problem(NotReady, "see `trayctl image show "+name+"`", "image %s has not failed: it is %s", name, i.State)
	case e.Captured:
		return i, problem(BadRequest, captureAgain(e), "image %s is a capture of %s, and not downloaded", name, e.Source)
	case e.Request == nil || len(e.Request.URLs) == 0:
		return i, problem(BadRequest, "remove it, then add it again", "image %s came from a client, and not from a URL", name)
	case incomplete(e.Request):
		return i, problem(BadRequest, "`trayctl image add "+name+" URL` with the whole URL goes on where it was", "the URL of image %s has a query, which is not written down", name)
	}
	if err := l.strayed(p, e); err != nil {
		return i, err
	}
	if e.Place != "" { // damaged, or of a failure
		if by := l.usersOf(e); len(by) > 0 {
			return i, inUse(e, by)
		}
		if err := l.letGo(l.context(), p, e); err != nil {
			return i, err
		}
	}
	again := *e
	again.State, again.Failure, again.SHA256, again.Place = wire.ImageAllocated, nil, "", ""
	return l.begin(p, &again, e.Request)
}

// letGo removes the content of an image that stays, unless it has another name.
func (l *Library) letGo(ctx context.Context, p Pool, e *entry) error {
	done, err := l.hold(ctx, e.Pool, e.SHA256)
	if err != nil {
		return err
	}
	defer done()
	return l.removeUnshared(ctx, p, e)
}

// Wait returns an image once nothing of it is under way, or ctx ends.
func (l *Library) Wait(ctx context.Context, pool, name string) (Image, error) {
	l.mu.Lock()
	j := l.jobs[key(pool, name)]
	l.mu.Unlock()
	if j != nil {
		select {
		case <-j.done:
		case <-ctx.Done():
		}
	}
	return l.Image(pool, name)
}

// UnderWay reports whether an image is on its way into a pool.
func (l *Library) UnderWay(pool, name string) bool {
	l.mu.Lock()
	j := l.jobs[key(pool, name)]
	l.mu.Unlock()
	if j == nil {
		return false
	}
	select {
	case <-j.done:
		return false
	default:
		return true
	}
}
