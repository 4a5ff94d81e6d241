package fault

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/trayd/trayd/integration/peer"
	"github.com/trayd/trayd/internal/qemutest"
	"github.com/trayd/trayd/internal/wire"
	"github.com/trayd/trayd/qmp"
)

// vm is the machine that faults happen to.
const vm = "fault"

// answerLimit is how long a contender may take to answer: libvirt waits five seconds for a
// guest.
const answerLimit = 30 * time.Second

// Rig is a contender with one machine, which has the disc OLD in its drive when a fault
// begins. It is used by one goroutine.
type Rig struct {
	contender peer.Contender
	ask       peer.Ask
	discs     media
	duration  time.Duration // of a change that goes well

	tb    *tb
	guest *qemutest.Guest
	side  *qmp.Conn
	empty holdings // what QEMU has with an empty drive
	full  holdings // and with a disc in

	// What a fault finds besides, anew for each.
	answered error // what the change was answered
	untrue   string
}

// New makes discs beneath dir, which has to be one that the contender takes discs from, and
// starts its machine. It asks over a persistent connection where there is one.
func New(ctx context.Context, c peer.Contender, dir string) (*Rig, error) {
	f, err := newFiles(ctx, dir)
	if err != nil {
		return nil, err
	}
	return start(ctx, c, f)
}

// NewOnVolumes is New with discs on logical volumes, which takes two empty disks, and dir for
// what is written onto them. Beyond what New's looks at, it looks at which volumes are active.
func NewOnVolumes(ctx context.Context, c peer.Contender, dir string, disks [2]string) (*Rig, error) {
	v, err := newVolumes(ctx, dir, disks)
	if err != nil {
		return nil, err
	}
	return start(ctx, c, v)
}

func start(ctx context.Context, c peer.Contender, discs media) (*Rig, error) {
	r := &Rig{contender: c, ask: c.Persistent(), discs: discs, tb: &tb{}}
	if r.ask == nil {
		r.ask = c.Command()
	}
	if err := r.boot(ctx); err != nil {
		r.Close()
		return nil, err
	}
	if err := r.calibrate(ctx); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// Close ends what New has begun; the contender is closed before, since its machines may
// have the failing disc.
func (r *Rig) Close() {
	r.retire()
	r.discs.close()
}

func (r *Rig) old() string            { return r.discs.disc(old) }
func (r *Rig) fresh() string          { return r.discs.disc(fresh) }
func (r *Rig) machine() *peer.Machine { return r.contender.Machine(vm) }

// change asks for a change of the disc.
func (r *Rig) change(ctx context.Context, disc string) error {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	return r.ask(ctx, wire.Replace, vm, disc)
}

// boot starts the machine anew, with OLD in it.
func (r *Rig) boot(ctx context.Context) error {
	r.retire()
	if m := r.machine(); m != nil {
		m.Kill()
	}
	if err := r.contender.Boot(ctx, vm); err != nil {
		return err
	}
	if err := r.meet(ctx); err != nil {
		return err
	}
	var err error
	if r.empty, err = r.holds(ctx); err != nil {
		return err
	}
	if err := r.ask(ctx, wire.Insert, vm, r.old()); err != nil {
		return fmt.Errorf("insert the first disc: %w", err)
	}
	r.full, err = r.holds(ctx)
	return err
}

// meet connects to the machine as the one who looks and as its guest.
func (r *Rig) meet(ctx context.Context) (err error) {
	if r.side, err = qmp.Dial(ctx, r.machine().Side, nil); err != nil {
		return err
	}
	return r.tb.run(func() { r.guest = (&qemutest.VM{QTest: r.machine().QTest}).Guest(r.tb) })
}

// retire lets the machine go.
func (r *Rig) retire() {
	r.tb.end()
	if r.side != nil {
		_ = r.side.Close() // nothing is on its way
		r.side = nil
	}
}

// calibrate measures how long a change takes, warm.
func (r *Rig) calibrate(ctx context.Context) error {
	const times = 10
	var took []time.Duration
	for i := range times {
		began := time.Now()
		if err := r.change(ctx, []string{r.fresh(), r.old()}[i%2]); err != nil {
			return err
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	r.duration = took[times/2]
	return nil
}

// Count is what came of a fault's runs.
type Count struct {
	Runs int
	// Kept runs ended with the right disc in, True ones with a status that was so, Clean ones
	// with nothing left.
	Kept, True, Clean int
	// Silent is set when the contender has no status.
	Silent bool
	// Notes are what was wrong, with how often.
	Notes map[string]int
	// Ended is what a guest read in the end, "" for no disc, with how often.
	Ended map[string]int
}

// Good is set when no run went wrong.
func (c Count) Good() bool {
	return c.Kept == c.Runs && (c.Silent || c.True == c.Runs) && c.Clean == c.Runs
}

// Plus is what came of both, of one contender.
func (c Count) Plus(o Count) Count {
	sum := Count{Runs: c.Runs + o.Runs, Kept: c.Kept + o.Kept, True: c.True + o.True, Clean: c.Clean + o.Clean, Silent: c.Silent || o.Silent,
		Notes: make(map[string]int), Ended: make(map[string]int)}
	for _, one := range []Count{c, o} {
		for what, n := range one.Notes {
			sum.Notes[what] += n
		}
		for volume, n := range one.Ended {
			sum.Ended[volume] += n
		}
	}
	return sum
}

// Run does a fault n times. An error is the rig's; what the contender does wrong is counted.
func (r *Rig) Run(ctx context.Context, f Fault, n int) (Count, error) {
	count := Count{Notes: make(map[string]int), Ended: make(map[string]int)}
	for range n {
		if err := ctx.Err(); err != nil {
			return count, err
		}
		if err := r.prepare(ctx); err != nil {
			return count, fmt.Errorf("before %q: %w", f.Name, err)
		}
		found, err := r.once(ctx, f)
		if err != nil {
			return count, fmt.Errorf("%s: %w", f.Name, err)
		}
		count.add(found)
	}
	return count, nil
}

func (c *Count) add(f finding) {
	c.Runs++
	c.Ended[f.volume]++
	for _, one := range []struct {
		wrong string
		good  *int
	}{{f.lost, &c.Kept}, {f.untrue, &c.True}, {f.left, &c.Clean}} {
		if one.wrong == "" {
			*one.good++
		} else {
			c.Notes[one.wrong]++
		}
	}
	if f.silent {
		c.Silent, c.True = true, 0
	}
}

// once does the fault and looks until all is well, or nothing changes any more.
func (r *Rig) once(ctx context.Context, f Fault) (found finding, err error) {
	r.answered, r.untrue = nil, ""
	var may []string
	failed := r.tb.run(func() { may, err = f.do(ctx, r) })
	if err = errors.Join(err, failed); err != nil {
		return found, err
	}
	err = r.tb.run(func() { found = r.settle(ctx, may) })
	return found, err
}

// How long is looked at what doesn't become good: until it hasn't changed for still, and no
// longer than limit.
const (
	still = time.Second
	limit = 10 * time.Second
)

func (r *Rig) settle(ctx context.Context, may []string) finding {
	began := time.Now()
	last, since := finding{}, began
	for {
		found := r.look(ctx, may)
		now := time.Now()
		if found.good() {
			return found
		}
		if found != last {
			last, since = found, now
		}
		if now.Sub(since) > still && !found.busy || now.Sub(began) > limit {
			return found
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// prepare has OLD in a closed, unlocked drive, with nothing left of the last fault: by
// changes that go well where they do, with a new machine otherwise. Two changes end
// whatever the contender still expects of the guest.
func (r *Rig) prepare(ctx context.Context) error {
	r.untrue = ""
	var found finding
	look := func() { found = r.look(ctx, []string{old}) }
	if r.side != nil && r.tb.run(r.guest.Unlock) == nil && r.change(ctx, r.fresh()) == nil && r.change(ctx, r.old()) == nil &&
		r.tb.run(look) == nil && found.good() {
		return nil
	}
	if err := r.boot(ctx); err != nil {
		return err
	}
	if err := r.tb.run(func() { found = r.settle(ctx, []string{old}) }); err != nil {
		return err
	}
	if !found.good() {
		return fmt.Errorf("a new machine isn't as it should be: %+v", found)
	}
	return nil
}
