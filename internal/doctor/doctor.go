// Package doctor looks at a host and says what is wrong with it and what to do.
//
// Each area is looked at by a probe of its own, all of them at once and none for longer than
// a limit: a file system that doesn't answer is a finding, and holds up nothing else. What is
// found out is judged by functions of values, which the tests check by tables.
//
// It looks as trayd's user, within trayd's sandbox: what trayd may is what counts.
package doctor

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/trayd/trayd/internal/wire"
)

// Check is one thing that was looked at.
type Check = wire.Check

// limit is how long one probe may take.
const limit = 2 * time.Second

// probe looks at one area.
type probe struct {
	area string
	look func(context.Context) []Check
}

// Doctor examines this host. It may be used by several goroutines.
type Doctor struct {
	o      Options
	probes []probe

	mu   sync.Mutex // guards busy
	busy map[string]*look
}

// look is a probe under way, for all who ask meanwhile.
type look struct {
	done   chan struct{} // closed when checks is set
	checks []Check
}

// Examine looks at everything, for limit and a little more at the longest.
func (d *Doctor) Examine(ctx context.Context) []Check {
	return d.examine(ctx, d.probes)
}

// Attention is what needs somebody's of what is done here every day: machines, images, and
// what is under way. Images that have failed are among the summary's problems already.
func (d *Doctor) Attention(ctx context.Context) []Check {
	daily := slices.DeleteFunc(slices.Clone(d.probes), func(p probe) bool { return !slices.Contains([]string{"machines", "operations", "images"}, p.area) })
	return slices.DeleteFunc(d.examine(ctx, daily), func(c Check) bool {
		return c.Result == wire.CheckOK || c.Result == wire.CheckSkipped || c.Area == "images" && c.Result == wire.CheckFailed
	})
}

func (d *Doctor) examine(ctx context.Context, probes []probe) []Check {
	results := make([][]Check, len(probes))
	var work sync.WaitGroup
	for i, p := range probes {
		work.Go(func() { results[i] = d.bounded(ctx, p) })
	}
	work.Wait()
	all := []Check{}
	for _, r := range results {
		all = append(all, r...)
	}
	return all
}

// bounded runs a probe, or waits for the one that somebody else has begun, and leaves it
// behind when it takes too long: a read that hangs in the kernel can't be stopped. It isn't
// begun again before it has ended.
func (d *Doctor) bounded(ctx context.Context, p probe) []Check {
	l := d.begin(ctx, p)
	late := time.NewTimer(limit + limit/4) // a program that was ended says so
	defer late.Stop()
	select {
	case <-l.done:
		return l.checks
	case <-late.C:
	case <-ctx.Done():
	}
	return []Check{{Area: p.area, Name: "answer", Result: wire.CheckFailed, Detail: fmt.Sprintf("looking at it took longer than %s", limit),
		Next: "is it on storage, or asked of a program, that doesn't answer? `ps -o pid,stat,wchan:30,args -C trayd` and `dmesg` say more"}}
}

// begin begins a probe that isn't under way. It ends when what it looks at answers, and
// doesn't with who has begun it: others may wait for it.
func (d *Doctor) begin(ctx context.Context, p probe) *look {
	d.mu.Lock()
	defer d.mu.Unlock()
	if l := d.busy[p.area]; l != nil {
		return l
	}
	l := &look{done: make(chan struct{})}
	d.busy[p.area] = l
	go func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
		defer cancel()
		l.checks = p.look(ctx)
		d.mu.Lock()
		delete(d.busy, p.area)
		d.mu.Unlock()
		close(l.done)
	}()
	return l
}

func ok(area, name, format string, args ...any) Check {
	return Check{Area: area, Name: name, Result: wire.CheckOK, Detail: fmt.Sprintf(format, args...)}
}

func skipped(area, name, format string, args ...any) Check {
	return Check{Area: area, Name: name, Result: wire.CheckSkipped, Detail: fmt.Sprintf(format, args...)}
}

func warning(area, name, next, format string, args ...any) Check {
	return Check{Area: area, Name: name, Result: wire.CheckWarning, Detail: fmt.Sprintf(format, args...), Next: next}
}

func failed(area, name, next, format string, args ...any) Check {
	return Check{Area: area, Name: name, Result: wire.CheckFailed, Detail: fmt.Sprintf(format, args...), Next: next}
}
