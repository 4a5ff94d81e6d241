package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/term"

	"github.com/trayd/trayd/internal/wire"
)

// lookEvery is between looks at an operation that somebody watches on a terminal.
const lookEvery = 500 * time.Millisecond

// progress shows on a terminal that an operation waits for its guest. Its methods are
// for one goroutine; only the look itself is done by another.
type progress struct {
	c         *cli
	target    target
	ticker    *time.Ticker               // nil when nobody looks
	seen      chan *wire.OperationStatus // what a look has found; nil for nothing under way
	looking   bool                       // a look is under way
	operation string                     // the id, once it was seen
	shown     bool                       // there is a line to be cleared
}

func newProgress(c *cli, t target) *progress {
	p := &progress{c: c, target: t, seen: make(chan *wire.OperationStatus, 1)}
	if f, ok := c.stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.ticker = time.NewTicker(lookEvery)
	}
	return p
}

func (p *progress) tick() <-chan time.Time {
	if p.ticker == nil {
		return nil
	}
	return p.ticker.C
}

// look asks for the operation; update is told of it through seen. A look that takes
// long, because QEMU does, holds nothing up.
func (p *progress) look(ctx context.Context) {
	if p.looking {
		return
	}
	p.looking = true
	go func() {
		ctx, cancel := context.WithTimeout(ctx, lookTimeout)
		defer cancel()
		var d wire.DriveStatus
		_ = p.c.client.do(ctx, "GET", drivePath(p.target), nil, &d) // the request itself says what is wrong
		p.seen <- d.Operation
	}()
}

func (p *progress) update(op *wire.OperationStatus) {
	p.looking = false
	if op == nil {
		return
	}
	p.operation = op.ID
	switch {
	case op.Phase == wire.Waiting && op.Deadline != nil:
		left := max(0, time.Until(*op.Deadline).Round(time.Second))
		p.line(fmt.Sprintf("waiting for the guest to let go of the disc in %s/%s: %s left (Ctrl-C stops waiting)", op.VM, op.Drive, left))
	case op.Phase == wire.Activating:
		p.line(fmt.Sprintf("turning on the volume of %s", op.Medium))
	case op.Phase == wire.Changing:
		p.line(fmt.Sprintf("waiting for QEMU of %s", op.VM))
	}
}

func (p *progress) line(s string) {
	fmt.Fprintf(p.c.stderr, "\r\x1b[K%s", s)
	p.shown = true
}

func (p *progress) say(s string) {
	p.clear()
	fmt.Fprintln(p.c.stderr, s)
}

func (p *progress) clear() {
	if p.shown {
		fmt.Fprint(p.c.stderr, "\r\x1b[K")
		p.shown = false
	}
}

// end clears the line and shows no other.
func (p *progress) end() {
	p.clear()
	if p.ticker != nil {
		p.ticker.Stop()
	}
}
