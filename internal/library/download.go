package library

import (
	"context"
	"errors"
	"io"
	"os"
	"time"

	"github.com/trayd/trayd/internal/library/fetch"
	"github.com/trayd/trayd/internal/library/ingest"
	"github.com/trayd/trayd/internal/library/verify"
	"github.com/trayd/trayd/internal/wire"
)

// run downloads an image, to whatever end.
func (j *job) run(ctx context.Context, r *Request) {
	err := j.fetch(ctx, r)
	clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanLimit)
	defer cancel()
	switch {
	case err == nil:
	case errors.Is(context.Cause(ctx), errCancelled):
		err = problem(Cancelled, "", "it was cancelled")
		j.failed(clean, err)
	case ctx.Err() != nil: // the next start goes on
		if e := j.store.park(clean, j.copy().unfinished()); e != nil {
			j.l.log.Warn("an unfinished image stays active", "image", j.image().String(), "error", e)
		}
		j.end(err)
		return
	default:
		j.failed(clean, err)
	}
	i := j.image()
	j.end(err)
	j.l.tell(Event{Image: i, Err: err})
}

// cleanLimit is how long the removal of what a failure left may take.
const cleanLimit = 30 * time.Second

func (j *job) fetch(ctx context.Context, r *Request) error {
	l := j.l
	if err := l.takeTurn(ctx); err != nil {
		return err
	}
	has := true
	defer func() {
		if has {
			<-l.turns
		}
	}()
	x, err := l.expect(ctx, r)
	if err != nil {
		return err
	}
	if e := j.copy(); e.Request != nil && e.Request.Sums != "" {
		found := x.found(*e.Request)
		j.change(func(e *entry) { e.Request = &found })
		if err := j.save(); err != nil {
			return err
		}
	}
	if first := l.earlier(j); first != nil {
		<-l.turns // it isn't a download as long as it waits for another
		has = false
		select {
		case <-first.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		if err := l.takeTurn(ctx); err != nil {
			return err
		}
		has = true
		if first.err == nil {
			if done, err := j.adopt(ctx, x, first.copy().SHA256); done {
				return err
			}
		}
	}
	if x.sum.Algorithm == verify.SHA256 {
		if done, err := j.adopt(ctx, x, x.sum.Hex); done {
			return err
		}
	}
	o, client := l.configured()
	limit := largest(o, j.pool)
	err = j.acquire(ctx, x, j.download(r, client, limit))
	var wrong *verify.Error
	if j.resumed && errors.As(err, &wrong) {
		// What lay here since the last time may be what is wrong with it.
		j.l.log.Warn("an image that was gone on with isn't what it should be: it is fetched anew", "image", j.image().String(), "error", err)
		j.change(func(e *entry) { e.Fetched, e.State = fetch.State{}, wire.ImageDownloading })
		j.resumed = false
		err = j.acquire(ctx, x, j.download(r, client, limit))
	}
	return err
}

// largest is the largest image that a pool takes, in bytes; 0: any.
func largest(o Options, p Pool) int64 {
	if p.Quota > 0 && (o.MaxSize == 0 || p.Quota < o.MaxSize) {
		return p.Quota
	}
	return o.MaxSize
}

// takeTurn waits until one download less than may be is under way.
func (l *Library) takeTurn(ctx context.Context) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	select {
	case l.turns <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// earlier is a job that is fetching the same file into the same pool and began before.
func (l *Library) earlier(j *job) *job {
	l.mu.Lock()
	defer l.mu.Unlock()
	var first *job
	mine := j.copy()
	for _, other := range l.jobs {
		e := other.copy()
		if other != j && e.Pool == mine.Pool && sameFile(other.request, j.request) && e.Added.Before(mine.Added) {
			if first == nil || e.Added.Before(first.copy().Added) {
				first = other
			}
		}
	}
	return first
}

// adopt makes the image another name of a content that the pool has, once that was
// compared with what is expected of this one. It is not done where the content has gone,
// or is on a volume that would have to be activated to be read.
func (j *job) adopt(ctx context.Context, x *expectation, sha256 string) (done bool, err error) {
	i := j.image()
	letGo, err := j.l.hold(ctx, i.Pool, sha256)
	if err != nil {
		return true, err
	}
	defer letGo()
	same, ok := j.l.withContent(j.pool, sha256, i)
	if !ok {
		return false, nil
	}
	if err := fitsFormat(j.format, same.Image); err != nil {
		return true, err
	}
	unchanged := j.store.has(ctx, same)
	bySum := x.sum.Hex == "" || x.sum.Algorithm == verify.SHA256 && x.sum.Hex == same.SHA256
	switch {
	case unchanged && bySum && x.signature == nil:
		i.Signer = x.signer
		if x.sum.Hex != "" {
			i.Checksum = x.sum.String()
		}
	case j.pool.Type == Dir:
		j.change(func(e *entry) { e.State = wire.ImageVerifying })
		gone := false
		err := j.l.reading(ctx, j.pool, same, func(f contentFile) error {
			w, onto, err := x.witness()
			if err != nil {
				return err
			}
			if err := ingest.HashFile(ctx, f, same.Size, onto...); err != nil {
				return problem(Failed, "see the disk that holds it", "it can't be read: %w", err)
			}
			if gone = w.content.hex() != same.SHA256; gone {
				return nil
			}
			return w.verdict(&i)
		})
		var known *Error
		if gone = gone || errors.As(err, &known) && known.Code == Changed; gone && ctx.Err() == nil {
			j.change(func(e *entry) { e.State = wire.ImageAllocated })
			return false, nil
		}
		if err != nil {
			return true, err
		}
	default:
		return false, nil
	}
	i.SHA256, i.Size, i.Format, i.VolumeID, i.Boot = same.SHA256, same.Size, same.Format, same.VolumeID, same.Boot
	i.RootHash, i.Kind, i.VirtualSize = same.RootHash, same.Kind, same.VirtualSize
	if err := j.store.discard(ctx, j.copy().unfinished()); err != nil { // of an earlier attempt
		return true, err
	}
	j.change(func(e *entry) { e.Image = i })
	return true, j.ready(same.Place, same.Seen)
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
	if more := p.State.Bytes - e.Fetched.Bytes; more > 0 {
		j.l.fetched.Add(uint64(more))
	}
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
