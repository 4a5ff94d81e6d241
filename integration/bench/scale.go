package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/trayd/trayd/integration/peer"
)

const (
	scaleClients = 100 // at once
	slowAnswer   = 400 * time.Millisecond
)

// scale measures one trayd with ever more machines, of which there are only the monitors. What
// grows faster than their number is where the limit lies.
func (b *bench) scale(ctx context.Context) error {
	for _, n := range []int{100, 300, 1000, 3000} {
		if n > b.most {
			break
		}
		if err := b.scaleTo(ctx, n); err != nil {
			return fmt.Errorf("%d machines: %w", n, err)
		}
	}
	return nil
}

func (b *bench) scaleTo(ctx context.Context, n int) (err error) {
	fmt.Printf("%d simulated machines ...\n", n)
	dir := filepath.Join(b.dir, fmt.Sprintf("scale%d", n))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	before := len(b.ends)
	defer func() { b.endFrom(before) }()
	fleet, err := b.simulate(dir, n)
	if err != nil {
		return err
	}
	began := time.Now()
	d, err := b.startTrayd(dir)
	if err != nil {
		return err
	}
	ready := time.Since(began)
	if err := d.attached(ctx, n); err != nil {
		return err
	}
	all := time.Since(began)
	up, err := peer.UsageOf(d.PID())
	if err != nil {
		return err
	}
	add := func(what, ours, target string) {
		b.add(fmt.Sprintf("%d machines: %s", n, what), ours, "-", "-", target)
	}
	add("start", fmt.Sprintf("ready %s, all attached %s, CPU %s", short(ready), short(all), short(up.CPU)), "reported")
	if err := d.settle(ctx); err != nil {
		return err
	}
	if err := b.scaleIdle(ctx, d, add); err != nil {
		return err
	}
	took, whole, err := b.scaleChanges(d, n, 0, func(int) bool { return true })
	if err != nil {
		return err
	}
	add("one change each", fmt.Sprintf("%s in all, p50 %s, p99 %s", short(whole), short(median(took)), short(took[len(took)*99/100])), "reported")
	list, err := d.lists()
	if err != nil {
		return err
	}
	add("list of all", spread(list), "below 1 s, where a machine counts as silent")

	for i := 0; i < n; i += 100 {
		fleet[i].Slower(slowAnswer)
	}
	beside, _, err := b.scaleChanges(d, n, 1, func(i int) bool { return i%100 != 0 })
	if err != nil {
		return err
	}
	list, err = d.lists()
	if err != nil {
		return err
	}
	add(fmt.Sprintf("one in a hundred takes %s to answer", slowAnswer),
		fmt.Sprintf("changes of the others p50 %s, p99 %s; list %s", short(median(beside)), short(beside[len(beside)*99/100]), spread(list)),
		fmt.Sprintf("the others as before; p50 was %s", short(median(took))))
	return nil
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

func (b *bench) scaleIdle(ctx context.Context, d *daemon, add func(what, ours, target string)) error {
	before, after, err := d.rests(ctx)
	if err != nil {
		return err
	}
	add("at rest", fmt.Sprintf("%.1f MiB, %d open files, %d threads, CPU %.3f %%", after.Resident, after.Files, after.Threads, (after.CPU-before.CPU).Seconds()/idleFor.Seconds()*100), "reported")
	return nil
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
