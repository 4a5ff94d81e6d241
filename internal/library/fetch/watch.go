package fetch

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"time"
)

// watched is the body of an answer. It counts what comes and the time that was spent
// waiting for it; the time that the disk takes is not the server's.
type watched struct {
	body    io.Reader
	cause   func() error // of the context that the body ends with
	bytes   atomic.Int64
	waited  atomic.Int64 // nanoseconds in Reads that have ended
	waiting atomic.Int64 // when the Read began that is waiting now (Unix, nanoseconds), or 0
}

func (w *watched) Read(p []byte) (int, error) {
	began := time.Now()
	w.waiting.Store(began.UnixNano())
	n, err := w.body.Read(p)
	w.waiting.Store(0)
	w.waited.Add(int64(time.Since(began)))
	w.bytes.Add(int64(n))
	if err != nil && !errors.Is(err, io.EOF) {
		if why := w.cause(); why != nil { // says more than what the connection makes of it
			err = why
		}
	}
	return n, err
}

// pace is what there was of a body at the beginning of a window.
type pace struct{ bytes, waited int64 }

// watch ends an attempt whose body comes too slowly or not at all. The function that it
// returns ends the watch, and the body's context.
func (c *Client) watch(ctx context.Context, cancel context.CancelCauseFunc, w *watched) (stop func()) {
	w.cause = func() error { return context.Cause(ctx) }
	done := make(chan struct{})
	go func() {
		defer close(done)
		t := time.NewTicker(max(time.Millisecond, min(c.o.Stall, c.o.RateWindow)/10))
		defer t.Stop()
		var from pace
		for {
			select {
			case <-ctx.Done():
				return
			case now := <-t.C:
				if since := w.waiting.Load(); since != 0 && now.UnixNano()-since > int64(c.o.Stall) {
					cancel(errStalled)
				}
				is := pace{w.bytes.Load(), w.waited.Load()}
				if time.Duration(is.waited-from.waited) < c.o.RateWindow {
					continue
				}
				if float64(is.bytes-from.bytes) < float64(c.o.MinRate)*c.o.RateWindow.Seconds() {
					cancel(errSlow)
				}
				from = is
			}
		}
	}()
	return func() {
		cancel(nil)
		<-done
	}
}

// small reads a short body whole.
func (a *answer) small(limit int64) ([]byte, *Error) {
	text, err := io.ReadAll(io.LimitReader(a.body, limit+1))
	switch {
	case int64(len(text)) > limit:
		return nil, fail(TooLarge, "is it what you meant?", "it is larger than the %d bytes that are taken", limit)
	case err != nil:
		return nil, broken(err, a.host, time.Now())
	}
	return text, nil
}
