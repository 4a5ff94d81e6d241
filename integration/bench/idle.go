package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// idle adds machines up to the crowd, and looks at a trayd that nobody asks for
// anything.
func (b *bench) idle(ctx context.Context, dir string) error {
	fmt.Printf("%d machines, idle for %s ...\n", crowd, idleFor)
	if err := b.machines(dir, "more", crowd-many); err != nil {
		return err
	}
	d, err := b.startTrayd(dir)
	if err != nil {
		return err
	}
	defer d.stop()
	select {
	case <-time.After(5 * time.Second): // let it ask the QEMUs for their features
	case <-ctx.Done():
		return ctx.Err()
	}
	pid := d.cmd.Process.Pid
	before, err := usageOf(pid)
	if err != nil {
		return err
	}
	select {
	case <-time.After(idleFor):
	case <-ctx.Done():
		return ctx.Err()
	}
	after, err := usageOf(pid)
	if err != nil {
		return err
	}
	b.add(fmt.Sprintf("resident memory, %d machines", crowd), fmt.Sprintf("%.1f MiB", after.resident), "libvirtd with 50: 50 MiB (FACTS 8)", "-", "at most 16 MiB")
	share := (after.cpu - before.cpu).Seconds() / idleFor.Seconds() * 100
	b.add(fmt.Sprintf("idle CPU, %d machines", crowd), fmt.Sprintf("%.3f %%", share), "-", "-", "below 0.1 %")
	b.add(fmt.Sprintf("wake-ups, %d machines", crowd), fmt.Sprintf("%.1f/s", float64(after.switches-before.switches)/idleFor.Seconds()), "-", "-", "reported")
	return nil
}

// usage is what a process has used.
type usage struct {
	cpu      time.Duration
	resident float64 // MiB
	switches int64   // voluntary context switches of all threads: each is a wake-up
}

func usageOf(pid int) (usage, error) {
	var u usage
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return u, err
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	for _, f := range fields[11:13] { // utime, stime in clock ticks of 10 ms
		ticks, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return u, err
		}
		u.cpu += time.Duration(ticks) * 10 * time.Millisecond
	}
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil {
		return u, err
	}
	// schedstat is exact where stat counts in ticks.
	var exact time.Duration
	for _, t := range tasks {
		if b, err := os.ReadFile(t + "/schedstat"); err == nil {
			if ns, err := strconv.ParseInt(strings.Fields(string(b))[0], 10, 64); err == nil {
				exact += time.Duration(ns)
			}
		}
		b, err := os.ReadFile(t + "/status")
		if err != nil {
			return u, err
		}
		u.switches += field(b, "voluntary_ctxt_switches:")
		if strings.HasSuffix(t, "/"+strconv.Itoa(pid)) {
			u.resident = float64(field(b, "VmRSS:")) / 1024
		}
	}
	if exact > 0 {
		u.cpu = exact
	}
	return u, nil
}

func field(status []byte, name string) int64 {
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err == nil {
				return n
			}
		}
	}
	return 0
}
