package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/integration/peer"
	"github.com/trayd/trayd/internal/simulated"
)

const (
	scaleClients = 100 // at once
	slowAnswer   = 400 * time.Millisecond
)

// scaleSizes are the numbers of machines.
var scaleSizes = []int{100, 300, 1000, 3000}

// The limits of systemd/trayd.service. trayd is measured under that of its files.
const (
	unitFiles   = 16384 // LimitNOFILE
	unitThreads = 256   // TasksMax
)

// scaled is what was measured with one number of machines.
type scaled struct {
	Machines      int
	Ready, All    time.Duration // from the start
	StartCPU      time.Duration
	Rest          peer.Usage
	RestCPU       time.Duration // in idleFor
	Whole         time.Duration // one change in each
	Changes, List []time.Duration
	ChangesCPU    time.Duration
	Threads       int // in the end: Go ends none
	// With one machine in a hundred that is slow: the changes of the others and of those
	// machines, and the list.
	Others, Slow, SlowList []time.Duration
	OthersCPU              time.Duration
}

// scale measures one trayd with ever more machines, of which there are only the monitors. What
// grows faster than their number is where the limit lies.
func (b *bench) scale(ctx context.Context) error {
	var all []scaled
	for _, n := range scaleSizes {
		if n > b.most {
			break
		}
		s, err := b.scaleTo(ctx, n)
		if err != nil {
			return fmt.Errorf("%d machines: %w", n, err)
		}
		all = append(all, *s)
	}
	if b.out == "" {
		return nil
	}
	return b.writeScale(ctx, all)
}

func (b *bench) scaleTo(ctx context.Context, n int) (*scaled, error) {
	fmt.Printf("%d simulated machines ...\n", n)
	dir := filepath.Join(b.dir, fmt.Sprintf("scale%d", n))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	before := len(b.ends)
	defer func() { b.endFrom(before) }()
	fleet, err := b.simulate(dir, n)
	if err != nil {
		return nil, err
	}
	s := &scaled{Machines: n}
	d, err := b.scaleStart(ctx, dir, s)
	if err != nil {
		return nil, err
	}
	add := func(what, ours, target string) {
		b.add(fmt.Sprintf("%d machines: %s", n, what), ours, "-", "-", target)
	}
	add("start", fmt.Sprintf("ready %s, all attached %s, CPU %s", short(s.Ready), short(s.All), short(s.StartCPU)), "reported")
	if err := d.settle(ctx); err != nil {
		return nil, err
	}
	rested, rest, err := d.rests(ctx)
	if err != nil {
		return nil, err
	}
	s.Rest, s.RestCPU = rest, rest.CPU-rested.CPU
	add("at rest", fmt.Sprintf("%.1f MiB, %d open files, %d threads, CPU %.3f %%", rest.Resident, rest.Files, rest.Threads, s.RestCPU.Seconds()/idleFor.Seconds()*100), "reported")
	// The first discs go into empty drives, which isn't compared with what changes others.
	if _, _, err := b.scaleChanges(d, n, 0, func(int) bool { return true }); err != nil {
		return nil, err
	}
	if s.ChangesCPU, err = d.uses(func() (err error) {
		s.Changes, s.Whole, err = b.scaleChanges(d, n, 1, func(int) bool { return true })
		return err
	}); err != nil {
		return nil, err
	}
	add("one change each", fmt.Sprintf("%s in all, p50 %s, p99 %s, CPU %s", short(s.Whole), short(median(s.Changes)), short(p99(s.Changes)), short(s.ChangesCPU)), "reported")
	if s.List, err = d.lists(); err != nil {
		return nil, err
	}
	add("list of all", spread(s.List), "below 1 s, where a machine counts as silent")
	if err := b.scaleSlow(d, fleet, s); err != nil {
		return nil, err
	}
	add(fmt.Sprintf("one in a hundred takes %s to answer, and is changed at the same time", slowAnswer),
		fmt.Sprintf("changes of the others p50 %s, p99 %s, CPU %s; of the slow ones p50 %s; list %s", short(median(s.Others)), short(p99(s.Others)), short(s.OthersCPU), short(median(s.Slow)), spread(s.SlowList)),
		fmt.Sprintf("the others as before: p50 %s, p99 %s", short(median(s.Changes)), short(p99(s.Changes))))
	last, err := peer.UsageOf(d.PID())
	s.Threads = last.Threads
	return s, err
}

// scaleStart starts trayd under its unit's limit of files.
func (b *bench) scaleStart(ctx context.Context, dir string, s *scaled) (*daemon, error) {
	began := time.Now()
	d, err := b.startTrayd(dir)
	if err != nil {
		return nil, err
	}
	s.Ready = time.Since(began)
	if err := unix.Prlimit(d.PID(), unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: unitFiles, Max: unitFiles}, nil); err != nil {
		return nil, fmt.Errorf("limit trayd's files: %w", err)
	}
	if err := d.attached(ctx, s.Machines); err != nil {
		return nil, err
	}
	s.All = time.Since(began)
	up, err := peer.UsageOf(d.PID())
	s.StartCPU = up.CPU
	return d, err
}

// scaleSlow makes one machine in a hundred slow. Clients of their own change the slow ones,
// again and again, while the others are changed once; the list is looked at afterwards.
func (b *bench) scaleSlow(d *daemon, fleet []*simulated.Machine, s *scaled) error {
	slow := func(i int) bool { return i%100 == 0 }
	var (
		clients sync.WaitGroup
		mu      sync.Mutex // guards s.Slow and failed
		failed  error
		over    = make(chan struct{})
	)
	for i, m := range fleet {
		if !slow(i) {
			continue
		}
		m.Slower(slowAnswer)
		before := count(m.Commands(), "add-fd")
		clients.Go(func() {
			for round := 2; ; round++ {
				began := time.Now()
				err := d.change(fmt.Sprintf("vm%d", i), b.discs[(i+round)%2])
				mu.Lock()
				s.Slow, failed = append(s.Slow, time.Since(began)), errors.Join(failed, err)
				mu.Unlock()
				select {
				case <-over:
					return
				default:
				}
				if err != nil {
					return
				}
			}
		})
		m.Wait("add-fd", before+1) // it is in the middle of a change
	}
	var err error
	s.OthersCPU, err = d.uses(func() (err error) {
		s.Others, _, err = b.scaleChanges(d, len(fleet), 2, func(i int) bool { return !slow(i) })
		return err
	})
	close(over)
	clients.Wait()
	slices.Sort(s.Slow)
	if err = errors.Join(err, failed); err != nil {
		return err
	}
	s.SlowList, err = d.lists()
	return err
}

func count(all []string, name string) (n int) {
	for _, one := range all {
		if one == name {
			n++
		}
	}
	return n
}

func p99(d []time.Duration) time.Duration { return d[len(d)*99/100] }

// uses is the processor time that trayd takes while f runs.
func (d *daemon) uses(f func() error) (time.Duration, error) {
	before, err := peer.UsageOf(d.PID())
	if err != nil {
		return 0, err
	}
	if err := f(); err != nil {
		return 0, err
	}
	after, err := peer.UsageOf(d.PID())
	return after.CPU - before.CPU, err
}

// endFrom ends what was begun since.
func (b *bench) endFrom(n int) {
	for _, f := range slices.Backward(b.ends[n:]) {
		f()
	}
	b.ends = b.ends[:n]
}

// attached waits until all machines are.
func (d *daemon) attached(ctx context.Context, n int) error {
	want := fmt.Sprintf("\ntrayd_monitors_up %d\n", n)
	for ctx.Err() == nil {
		resp, err := d.Client.Get("http://trayd/metrics")
		if err != nil {
			return err
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || strings.Contains(string(text), want) {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
	return ctx.Err()
}

// settle waits until a second passes in which trayd does nothing: it has asked all QEMUs for
// their features.
func (d *daemon) settle(ctx context.Context) error {
	for ctx.Err() == nil {
		before, err := peer.UsageOf(d.PID())
		if err != nil {
			return err
		}
		time.Sleep(time.Second)
		after, err := peer.UsageOf(d.PID())
		if err != nil || after.CPU-before.CPU < 10*time.Millisecond {
			return err
		}
	}
	return ctx.Err()
}

// scaleChanges changes the disc of each machine that is wanted, by so many clients at once.
func (b *bench) scaleChanges(d *daemon, n, round int, wanted func(int) bool) (took []time.Duration, whole time.Duration, err error) {
	var (
		mu   sync.Mutex // guards took
		next = make(chan int)
	)
	go func() {
		defer close(next)
		for i := range n {
			if wanted(i) {
				next <- i
			}
		}
	}()
	began := time.Now()
	err = peer.Together(scaleClients, func(int) error {
		var failed error
		for i := range next { // to the end, or the sender would wait for ever
			began := time.Now()
			if err := d.change(fmt.Sprintf("vm%d", i), b.discs[(i+round)%2]); err != nil && failed == nil {
				failed = err
			}
			mu.Lock()
			took = append(took, time.Since(began))
			mu.Unlock()
		}
		return failed
	})
	slices.Sort(took)
	return took, time.Since(began), err
}

// lists is how long the list of all machines takes, looked at anew each time.
func (d *daemon) lists() ([]time.Duration, error) {
	var took []time.Duration
	for range 10 {
		time.Sleep(1100 * time.Millisecond) // the last one counts no longer
		began := time.Now()
		if err := d.get("/v1/vms"); err != nil {
			return nil, err
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	return took, nil
}
