package fetch

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"
)

// again makes attempts until one succeeds, one fails for good, or too many failed in a
// row. attempt is told its number, from 1 on; advanced (which may be nil) reports whether
// the last one got far enough for the count to begin anew; waiting is told of a pause.
func (c *Client) again(ctx context.Context, url string, attempt func(n int) *Error, advanced func() bool, waiting func(*Error)) *Error {
	row := 0 // failures in a row
	for n := 1; ; n++ {
		err := attempt(n)
		if err == nil {
			return nil
		}
		if err.URL == "" {
			err.URL = url
		}
		if ctx.Err() != nil && !err.Kind.local() {
			return canceled(ctx).at(url)
		}
		if !err.retry {
			return err
		}
		if row++; advanced != nil && advanced() {
			row = 1
		}
		if row >= c.o.Attempts {
			err.Detail += fmt.Sprintf(" (%d attempts)", n)
			return err
		}
		if waiting != nil {
			waiting(err)
		}
		t := time.NewTimer(c.pause(row, err.after, rand.Float64()))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return canceled(ctx).at(url)
		}
	}
}

// pause is how long to wait after so many failures in a row (at least 1), when the server
// asked for after. random is from 0 to 1: a hundred hosts that lost the same server don't
// all come back at the same time.
func (c *Client) pause(row int, after time.Duration, random float64) time.Duration {
	d := c.o.BackoffMax
	if shift := row - 1; shift < 32 && c.o.BackoffMin<<shift > 0 {
		d = min(d, c.o.BackoffMin<<shift)
	}
	d -= time.Duration(random * float64(d) / 2)
	return max(d, min(after, c.o.MaxRetryAfter))
}
