package library

import (
	"bytes"
	"context"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/trayd/trayd/internal/library/fetch"
	"github.com/trayd/trayd/internal/library/verify"
	"github.com/trayd/trayd/internal/wire"
)

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
		bytes.Equal(was.SignatureData, r.SignatureData) && was.Integrity == r.Integrity && was.Format == r.Format
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
	case e.Integrity != integrity, fitsFormat(r.Format, e.Image) != nil, (r.Signature != "" || r.SignatureData != nil) && e.Signer == "":
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
	return p, e, askable(p, r.Format, e.Integrity)
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
	j.format = r.Format
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
