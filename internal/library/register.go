package library

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/trayd/trayd/internal/library/fetch"
	"github.com/trayd/trayd/internal/library/ingest"
	"github.com/trayd/trayd/internal/library/verify"
	"github.com/trayd/trayd/internal/wire"
)

// uploaded is the source of an image whose bytes came from a client.
const uploaded = "upload"

// Register begins to download an image, and returns it as it is then. The same request for
// one that is under way or ready is a success that begins nothing.
func (l *Library) Register(r Request) (Image, error) {
	o, client := l.configured()
	if len(r.URLs) == 0 {
		return Image{}, problem(BadRequest, "give at least one", "there is no URL to download image %s from", r.Name)
	}
	for _, u := range r.URLs {
		if err := client.Check(u); err != nil {
			return Image{}, refused("", err)
		}
	}
	p, e, err := l.fresh(&r, fetch.Redacted(r.URLs[0]))
	if err != nil {
		return Image{}, err
	}
	done, err := l.occupy(p.Name, r.Name)
	if err != nil {
		if i, ok := l.sameUnderWay(p, &r); ok {
			return i, nil
		}
		return Image{}, err
	}
	defer done()
	if old, ok := l.entry(p.Name, r.Name); ok {
		switch {
		case old.State == wire.ImageReady && old.Source == e.Source && asWanted(old, &r, e.Integrity):
			return l.shown(old), nil
		case old.Place != "": // ready or damaged: it has a content
			return Image{}, exists(p, r.Name)
		case old.Source == e.Source: // it goes on where it was
			e.Fetched, e.Unfinished = old.Fetched, old.Unfinished
		}
	}
	if r.Checksum != "" { // the rest needs the network
		if _, err := verify.ParseChecksum(r.Checksum, strengthOf(&r)); err != nil {
			return Image{}, refused("", err)
		}
	}
	if o.MaxSize > 0 && e.Fetched.Size > o.MaxSize {
		e.Fetched = fetch.State{}
	}
	return l.begin(p, e, &r)
}

func strengthOf(r *Request) verify.Strength {
	if r.AllowWeak {
		return verify.AllowWeak
	}
	return verify.Strong
}

// sameUnderWay is the image of a download that is under way, if that is the one that is
// asked for again.
func (l *Library) sameUnderWay(p Pool, r *Request) (Image, bool) {
	l.mu.Lock()
	j := l.jobs[key(p.Name, r.Name)]
	l.mu.Unlock()
	if j == nil || !sameFile(j.request, r) {
		return Image{}, false
	}
	was := j.request
	same := was.Checksum == r.Checksum && was.Sums == r.Sums && was.Signature == r.Signature && was.SignatureOf == r.SignatureOf &&
		bytes.Equal(was.SignatureData, r.SignatureData) && was.Integrity == r.Integrity
	return j.image(), same
}

// sameFile reports whether two requests are of the same URL, with its query. A request of
// an upload is nil.
func sameFile(a, b *Request) bool {
	return a != nil && b != nil && len(a.URLs) > 0 && len(b.URLs) > 0 && a.URLs[0] == b.URLs[0]
}

// underWay reports whether a job has the image.
func (l *Library) underWay(i Image) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.jobs[key(i.Pool, i.Name)] != nil
}

// asWanted reports whether what a request wants is what there is, as far as that can be
// told without reading it. Where the query of its URL isn't written down only a checksum
// tells.
func asWanted(e *entry, r *Request, integrity string) bool {
	switch {
	case e.Integrity != integrity, (r.Signature != "" || r.SignatureData != nil) && e.Signer == "":
		return false
	case r.Checksum == "":
		return !strings.HasSuffix(redacted(r.URLs[0]), withoutQuery)
	}
	c, err := verify.ParseChecksum(r.Checksum, verify.AllowWeak)
	switch {
	case err != nil:
		return false
	case c.File != "":
		return e.Asked == r.Checksum && !strings.HasSuffix(redacted(r.URLs[0]), withoutQuery)
	}
	return c.String() == e.Checksum || c.Algorithm == verify.SHA256 && c.Hex == e.SHA256
}

func exists(p Pool, name string) error {
	return problem(Exists, "`trayctl image rm` removes it; or choose another name", "pool %s has an image %s already", p.Name, name)
}

// fresh checks what is common to all requests, and makes the entry of a new image.
func (l *Library) fresh(r *Request, source string) (Pool, *entry, error) {
	if err := checkName(r.Name); err != nil {
		return Pool{}, nil, err
	}
	p, err := l.poolFor(r.Pool)
	if err != nil {
		return Pool{}, nil, err
	}
	if old, ok := l.entry(p.Name, r.Name); ok {
		if err := l.strayed(p, old); err != nil {
			return Pool{}, nil, err
		}
	}
	if r.Integrity != "" && r.Integrity != integrityVerity {
		return Pool{}, nil, problem(BadRequest, "leave it out, or say verity", "integrity can't be %q", r.Integrity)
	}
	e := &entry{Image: Image{
		Name: r.Name, Pool: p.Name, State: wire.ImageAllocated, Source: source, Added: time.Now().UTC(),
		OSType: r.OSType, Site: r.Site, Bootable: r.Bootable, Integrity: r.Integrity,
	}}
	if p.Verity {
		e.Integrity = integrityVerity
	}
	return p, e, nil
}

// begin makes a registration durable and starts its download. The caller has the name.
func (l *Library) begin(p Pool, e *entry, r *Request) (Image, error) {
	ctx, err := l.enter()
	if err != nil {
		return Image{}, err
	}
	begun := false
	defer func() {
		if !begun {
			l.work.Done()
		}
	}()
	j, ctx := l.newJob(ctx, p, e, r)
	kept := *r
	kept.URLs = nil
	for _, u := range r.URLs {
		kept.URLs = append(kept.URLs, redacted(u))
	}
	kept.Signature, kept.Checksum = redacted(r.Signature), redactedSum(r.Checksum)
	e.Request, e.Asked = &kept, kept.Checksum
	if err := j.save(); err != nil {
		j.end(err)
		return Image{}, err
	}
	l.failPoint("image-registered")
	begun = true
	go func() {
		defer l.work.Done()
		j.run(ctx, r)
	}()
	return j.image(), nil
}

// enter returns the context of what is about to begin, which Drain waits for: the caller
// calls work.Done at its end.
func (l *Library) enter() (context.Context, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.ctx == nil:
		return nil, problem(wire.Stopping, "try again in a moment", "trayd is still starting")
	case l.ctx.Err() != nil:
		return nil, problem(wire.Stopping, "try again when it runs", "trayd is stopping")
	}
	l.work.Add(1)
	return l.ctx, nil
}

// withoutQuery stands in the state file for the query of a URL, which may be a secret:
// such a download can't go on after a restart by itself.
const withoutQuery = "?..."

func redacted(raw string) string {
	u, err := url.Parse(raw)
	if err != nil || raw == "" {
		return ""
	}
	if u.RawQuery != "" || u.ForceQuery {
		return fetch.Redacted(raw) + withoutQuery
	}
	return fetch.Redacted(raw)
}

func redactedSum(sum string) string {
	if file, ok := strings.CutPrefix(sum, "file:"); ok && strings.Contains(file, "://") {
		return "file:" + redacted(file)
	}
	return sum
}

// incomplete reports whether something of a kept request was not written down.
func incomplete(r *Request) bool {
	return strings.HasSuffix(r.Signature, withoutQuery) || strings.HasSuffix(r.Checksum, withoutQuery) ||
		slices.ContainsFunc(r.URLs, func(u string) bool { return strings.HasSuffix(u, withoutQuery) })
}

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
	i.RootHash = same.RootHash
	if err := j.store.discard(ctx, j.copy().unfinished()); err != nil { // of an earlier attempt
		return true, err
	}
	j.change(func(e *entry) { e.Image = i })
	return true, j.ready(same.Place, same.Seen)
}

// failed makes the failure durable, and removes what can't be gone on with.
func (j *job) failed(ctx context.Context, err error) {
	e := j.copy()
	f := &wire.ImageFailure{Code: Failed, Cause: err.Error(), Remedy: "try again: `trayctl image retry " + e.Name + "`", At: time.Now().UTC()}
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
		return Image{}, problem(Invalid, "give a file that is a disc image", "image %s is empty", r.Name)
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
			return i, problem(InUse, "eject it first", "image %s of pool %s is in use by %s", name, p.Name, strings.Join(by, ", "))
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

// context is that of Start.
func (l *Library) context() context.Context {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ctx == nil {
		return context.Background()
	}
	return l.ctx
}

// tell tells who runs the library.
func (l *Library) tell(e Event) {
	l.mu.Lock()
	told := l.told
	l.mu.Unlock()
	if told != nil {
		told(e)
	}
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
		return r, false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if a, ok := l.announced[key(p.Name, name)]; ok {
		delete(l.announced, key(p.Name, name))
		return a.request, true
	}
	return r, false
}
