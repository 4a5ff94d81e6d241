package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/trayd/trayd/internal/library/ingest"
)

// unopened is the size before Open was called.
const unopened = -2

// maxAnew is how often a mirror may make us begin at zero before that is its fault.
const maxAnew = 3

// download is a job under way. It belongs to the goroutine of Run.
type download struct {
	c       *Client
	job     Job
	file    *os.File
	size    int64 // that Open was called with
	have    int64 // bytes of the file that are right; onto has seen them
	hashed  bool  // onto has
	onto    []io.Writer
	state   State
	resumed int64
	meter   *meter

	// Of the mirror whose turn it is:
	best    int64 // the bytes that there were when the attempts were last counted anew
	anew    int   // how often it began at zero
	changed int   // how often it had another content
}

// anew is of an answer that makes a beginning at zero necessary.
func anew(why string) *Error { return fail(Changed, "use another mirror", "%s", why).because(errAnew) }

var errAnew = errors.New("begin anew")

// from fetches from one mirror.
func (d *download) from(ctx context.Context, i int, raw string) *Error {
	d.best, d.anew, d.changed = 0, 0, 0
	d.meter.note(func(p *Progress) { p.Mirror, p.URL, p.Attempt = i, Redacted(raw), 0 })
	u, err := d.c.parse(raw)
	if err != nil {
		return err
	}
	if d.state.URL != redact(u) {
		d.forget() // the bytes are another mirror's: its content may be another
	}
	if err := d.reopen(ctx); err != nil {
		return err.at(redact(u))
	}
	return d.c.again(ctx, redact(u), func(n int) *Error {
		d.meter.change(func(p *Progress) { p.Attempt, p.Phase, p.Err = n, Connecting, nil })
		err := d.attempt(ctx, u)
		for err != nil && err.Err == errAnew {
			if d.anew++; d.anew > maxAnew {
				return err
			}
			d.forget()
			err = d.attempt(ctx, u)
		}
		return err
	}, func() bool {
		if d.have < d.best+d.c.o.Advance {
			return false
		}
		d.best = d.have
		return true
	}, func(err *Error) {
		d.meter.change(func(p *Progress) { p.Phase, p.Err, p.Rate, p.ETA = Waiting, err, 0, -1 })
	})
}

// forget makes the next attempt begin at zero.
func (d *download) forget() {
	d.have, d.hashed, d.resumed = 0, false, 0
	d.state.Bytes, d.state.Validator = 0, ""
}

// reopen takes up what an earlier job left, if there is something that can be gone on with.
func (d *download) reopen(ctx context.Context) *Error {
	s := d.state
	if d.hashed || s.Validator == "" || s.Size <= 0 || s.Bytes <= 0 || s.Bytes > s.Size || d.job.Limit > 0 && s.Size > d.job.Limit {
		if !d.hashed {
			d.forget()
		}
		return nil
	}
	if err := d.open(s.Size); err != nil {
		return err
	}
	bytes := s.Bytes
	st, err := d.file.Stat()
	if err != nil {
		return local(err)
	}
	if st.Mode().IsRegular() && st.Size() < bytes {
		bytes = st.Size()
	}
	if err := d.hashes(); err != nil {
		return err
	}
	seen := &counted{}
	d.meter.note(func(p *Progress) { p.Total, p.State = s.Size, s })
	stop := d.meter.run(ctx, Hashing, 0, seen.bytes.Load)
	err = ingest.HashFile(ctx, d.file, bytes, append([]io.Writer{seen}, d.onto...)...)
	stop()
	switch {
	case ctx.Err() != nil:
		return canceled(ctx)
	case err != nil:
		return local(err)
	}
	d.have, d.best, d.resumed, d.hashed = bytes, bytes, bytes, bytes > 0
	return nil
}

// attempt asks once, for what is missing.
func (d *download) attempt(ctx context.Context, u *url.URL) *Error {
	header := http.Header{}
	if d.have > 0 && d.state.Validator == "" {
		d.forget()
	}
	if d.have > 0 && d.have == d.size {
		return nil // only the end of the last job was missing
	}
	if d.have > 0 {
		header.Set("Range", fmt.Sprintf("bytes=%d-", d.have))
		header.Set("If-Range", d.state.Validator)
	}
	a, err := d.c.get(ctx, u, header, d.job.AllowHTML)
	if err != nil {
		return err
	}
	defer a.close()
	if a.StatusCode == http.StatusPartialContent {
		err = d.goOn(a)
	} else {
		err = d.begin(u, a)
	}
	if err != nil {
		return err.at(redact(u))
	}
	return d.copy(ctx, a)
}

// goOn checks that a part is the one that is missing, of the same content.
func (d *download) goOn(a *answer) *Error {
	first, last, size, ok := contentRange(a.Header.Get("Content-Range"))
	switch {
	case !ok, first != d.have, last != size-1:
		return anew("the server sent another part than was asked for")
	case size != d.size:
		return anew("the file has another size now")
	}
	if v := validator(a.Header); v != "" && v != d.state.Validator {
		return anew("the file is another one now")
	}
	return nil
}

// begin begins at zero with what a whole answer says.
func (d *download) begin(u *url.URL, a *answer) *Error {
	size, v := a.ContentLength, validator(a.Header)
	if d.job.Limit > 0 && size > d.job.Limit {
		e := tooLarge(d.job.Limit)
		e.Detail = fmt.Sprintf("it has %d bytes, and at most %d are taken", size, d.job.Limit)
		return e
	}
	if d.have > 0 && (size != d.size || v != d.state.Validator) {
		if d.changed++; d.changed > maxAnew {
			return fail(Changed, "wait until it is complete there, or use another mirror", "the file there changed %d times while it was fetched", d.changed)
		}
	}
	d.forget()
	if err := d.open(size); err != nil {
		return err
	}
	// What was there goes before anything says that it isn't there any more.
	if st, err := d.file.Stat(); err != nil {
		return local(err)
	} else if st.Mode().IsRegular() {
		if err := d.file.Truncate(0); err != nil {
			return local(err)
		}
	}
	if err := d.hashes(); err != nil {
		return err
	}
	if size < 0 {
		v = "" // without a size there is no knowing that the rest is of the same file
	}
	d.state = State{URL: redact(u), Size: size, Validator: v}
	d.meter.change(func(p *Progress) { p.Bytes, p.Total, p.State = 0, size, d.state })
	d.hashed = true
	return nil
}

// copy copies the answer's body to the file.
func (d *download) copy(ctx context.Context, a *answer) *Error {
	limit := int64(ingest.NoLimit)
	switch {
	case d.size >= 0:
		limit = d.size - d.have
	case d.job.Limit > 0:
		limit = d.job.Limit
	}
	stop := d.meter.run(ctx, Receiving, d.have, a.body.bytes.Load)
	n, err := ingest.Copy(a.ctx, d.file, a.body, ingest.Options{Offset: d.have, Limit: limit, Durable: d.durable}, d.onto...)
	a.Body.Close() // a reader that is left behind ends
	stop()
	d.have += n
	d.meter.note(func(p *Progress) { p.Bytes = d.have })
	switch {
	case err != nil && ctx.Err() == nil && a.ctx.Err() != nil:
		return broken(context.Cause(a.ctx), a.host, time.Now())
	case err != nil:
		return copied(ctx, err, a.host, d.job.Limit, time.Now())
	case d.size >= 0 && d.have < d.size:
		return broken(io.ErrUnexpectedEOF, a.host, time.Now())
	}
	return nil
}

// durable is called by the goroutine that writes, while that of Run waits for it.
func (d *download) durable(end int64) {
	d.state.Bytes = end
	d.meter.note(func(p *Progress) { p.State = d.state })
}

func (d *download) open(size int64) *Error {
	if d.file != nil && d.size == size {
		return nil
	}
	f, err := d.job.Open(size)
	if err != nil {
		e := local(err)
		e.Next = "" // err is the caller's own, and says it
		return e
	}
	d.file, d.size = f, size
	return nil
}

func (d *download) hashes() *Error {
	d.onto = nil
	if d.job.Onto == nil {
		return nil
	}
	var err error
	if d.onto, err = d.job.Onto(); err != nil {
		return fail(LocalIO, "", "what came can't be checked: %v", err).because(err)
	}
	return nil
}

// local is of the file on this host.
func local(err error) *Error {
	if ingest.IsFull(err) {
		return fail(NoSpace, "free space, or use another pool", "the disk is full: %v", err).because(err)
	}
	return fail(LocalIO, "see the disk that holds it", "the file here can't be used: %v", err).because(err)
}
