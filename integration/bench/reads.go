package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/integration/peer"
	"github.com/trayd/trayd/integration/raw"
)

const (
	readRate = 1000 // a second
	readFor  = 10 * time.Second
)

// reads measures how the API answers many who look, with a hundred machines and trayd on one
// processor. Requests come by the clock, whatever became of those before: what waits in a
// queue is part of its figure.
func (b *bench) reads(ctx context.Context) error {
	fmt.Printf("%d reads a second, %d machines ...\n", readRate, crowd)
	dir := filepath.Join(b.dir, "reads")
	ours, others, all, err := cores()
	if err != nil {
		return err
	}
	if err := pin(os.Getpid(), others); err != nil { // and what is started from here
		return err
	}
	defer pin(os.Getpid(), all) // as it was
	if err := b.machines(dir, "vm", crowd); err != nil {
		return err
	}
	d, err := b.startTrayd(dir)
	if err != nil {
		return err
	}
	defer d.Stop()
	if err := pin(d.PID(), ours); err != nil {
		return err
	}
	time.Sleep(10 * time.Second)                // it has asked the QEMUs for their features
	other := filepath.Join(b.dir, "reads-bare") // trayd has the others' monitors
	if err := b.machines(other, "raw", 1); err != nil {
		return err
	}
	floor, err := raw.Dial(filepath.Join(other, "run/raw0.qmp"), "")
	if err != nil {
		return err
	}
	var bare []time.Duration
	for range b.rounds {
		began := time.Now()
		if _, err := floor.Command(`{"execute":"query-block"}`, nil); err != nil {
			return err
		}
		bare = append(bare, time.Since(began))
	}
	slices.Sort(bare)
	for _, m := range []struct {
		what string
		path func(i int) string
	}{
		{"one drive of 100 machines", func(i int) string { return fmt.Sprintf("/v1/vms/vm%d/drives/cd0", i%crowd) }},
		{"one machine of 100", func(i int) string { return fmt.Sprintf("/v1/vms/vm%d", i%crowd) }},
		{"all 100 machines", func(int) string { return "/v1/vms" }},
		{"of all kinds", func(i int) string {
			return []string{"/v1/vms", "/v1/images", "/v1/operations", "/v1/volumes", "/v1/version", "/v1/vms/vm3", "/v1/vms/vm7/drives/cd0"}[i%7]
		}},
	} {
		before, err := peer.UsageOf(d.PID())
		if err != nil {
			return err
		}
		took, err := d.read(ctx, m.path)
		if err != nil {
			return err
		}
		after, err := peer.UsageOf(d.PID())
		if err != nil {
			return err
		}
		p99, cpu := took[len(took)*99/100], (after.CPU-before.CPU)/time.Duration(len(took))
		b.add(fmt.Sprintf("%d reads a second: %s", readRate, m.what), fmt.Sprintf("p50 %s, p99 %s, CPU %s each", short(median(took)), short(p99), short(cpu)),
			"query-block on a raw monitor "+spread(bare), "-", "p99 below 20 ms on one core")
	}
	return nil
}

// cores are the first processor that this process may use, which trayd gets for itself, and
// the others, which have the machines and those who ask.
func cores() (first, others, all unix.CPUSet, err error) {
	if err := unix.SchedGetaffinity(os.Getpid(), &all); err != nil {
		return first, others, all, err
	}
	others = all
	for cpu := range len(others) * 64 {
		if others.IsSet(cpu) {
			first.Set(cpu)
			if others.Count() > 1 {
				others.Clear(cpu)
			}
			return first, others, all, nil
		}
	}
	return first, others, all, errors.New("no processor may be used")
}

// pin keeps all threads of a process on some processors, and those that they start.
func pin(pid int, to unix.CPUSet) error {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil {
		return err
	}
	for _, t := range threads {
		var tid int
		if _, err := fmt.Sscan(filepath.Base(t), &tid); err != nil {
			return err
		}
		if err := unix.SchedSetaffinity(tid, &to); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}

// read sends requests by the clock and returns how long they took, sorted. Those of the first
// second aren't counted: nobody has looked before them, so that the first look at all machines
// is waited for.
func (d *daemon) read(ctx context.Context, path func(int) string) ([]time.Duration, error) {
	var (
		work   sync.WaitGroup
		mu     sync.Mutex // guards below
		took   []time.Duration
		failed error
	)
	began := time.Now()
	n := readRate * int((readFor+time.Second)/time.Second)
	for i := range n {
		due := began.Add(time.Duration(i) * time.Second / readRate)
		time.Sleep(time.Until(due))
		if ctx.Err() != nil {
			break
		}
		work.Go(func() {
			err := d.get(path(i))
			mu.Lock()
			defer mu.Unlock()
			if i >= readRate {
				took = append(took, time.Since(due))
			}
			if failed == nil {
				failed = err
			}
		})
	}
	work.Wait()
	slices.Sort(took)
	return took, errors.Join(failed, ctx.Err())
}

func (d *daemon) get(path string) error {
	resp, err := d.Client.Get("http://trayd" + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", path, resp.Status)
	}
	return nil
}
