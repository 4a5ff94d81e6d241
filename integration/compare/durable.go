package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/trayd/trayd/integration/peer"
	"github.com/trayd/trayd/internal/wire"
)

// durableCalls are what a program makes something durable or atomic with.
const durableCalls = "fsync,fdatasync,sync_file_range,syncfs,sync,msync,rename,renameat,renameat2"

// durable counts the durable writes of a change, in a pass of its own: strace slows them
// down. Of those without a daemon, whole commands are traced.
func (c *comparison) durable(ctx context.Context, k contenders) error {
	const changes = 20
	fmt.Println("durable writes of a change, by strace ...")
	for _, one := range k.daemons() {
		ask := one.Persistent()
		err := c.tracedChanges(ctx, one.Name(), ask, changes, func(log string, f func() error) error { return traced(log, one.PID(), f) })
		if err != nil {
			return err
		}
	}
	for _, one := range []struct {
		name   string
		who    peer.Contender
		before *[]string
	}{{script, k.script, &k.script.Before}, {floorAPI, k.floor, &k.floor.Before}} {
		err := c.tracedChanges(ctx, one.name, one.who.Command(), changes, func(log string, f func() error) error {
			*one.before = append(strace(log), "-A", "--") // each command adds to what is there
			defer func() { *one.before = nil }()
			return f()
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// tracedChanges has so many changes traced into a file, and counts the calls.
func (c *comparison) tracedChanges(ctx context.Context, name string, ask peer.Ask, changes int, trace func(log string, f func() error) error) error {
	if err := ask(ctx, wire.Insert, "vm0", c.discs[0]); err != nil {
		return err
	}
	log := filepath.Join(c.dir, strings.ReplaceAll(name, " ", "-")+".strace")
	if err := trace(log, func() error {
		for i := range changes {
			if err := ask(ctx, wire.Replace, "vm0", c.discs[(i+1)%2]); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return fmt.Errorf("%s, traced: %w", name, err)
	}
	if err := ask(ctx, wire.Eject, "vm0", ""); err != nil {
		return err
	}
	counts, err := calls(log)
	if err != nil {
		return err
	}
	d := durable{Name: name}
	for call, n := range counts {
		if strings.HasPrefix(call, "rename") {
			d.Renames += float64(n) / float64(changes)
		} else {
			d.Syncs += float64(n) / float64(changes)
		}
	}
	fmt.Printf("  %s: %.1f syncs, %.1f renames a change\n", d.Name, d.Syncs, d.Renames)
	c.Durable = append(c.Durable, d)
	return nil
}

// strace is the command that writes into log what a process makes durable, with its threads
// and children.
func strace(log string) []string {
	return []string{"strace", "-f", "-q", "-e", "trace=" + durableCalls, "-e", "signal=none", "-o", log}
}

// traced traces a process while f runs.
func traced(log string, pid int, f func() error) error {
	words := append(strace(log), "-p", strconv.Itoa(pid))
	tracer := exec.Command(words[0], words[1:]...)
	tracer.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := tracer.Start(); err != nil {
		return fmt.Errorf("%w (Debian: strace)", err)
	}
	if err := attached(pid, tracer.Process.Pid); err != nil {
		return err
	}
	err := f()
	_ = tracer.Process.Signal(os.Interrupt) // it detaches
	_ = tracer.Wait()                       // it ends by the signal
	return err
}

// calls counts the calls in what strace has written.
func calls(log string) (map[string]int, error) {
	text, err := os.Open(log)
	if err != nil {
		return nil, err
	}
	defer text.Close()
	counts := make(map[string]int)
	lines := bufio.NewScanner(text)
	for lines.Scan() {
		// "1234 fsync(5) = 0"; what another thread cut in two ends in "<... fsync resumed>".
		_, call, _ := strings.Cut(lines.Text(), " ")
		if name, _, ok := strings.Cut(strings.TrimSpace(call), "("); ok && !strings.HasPrefix(name, "<") {
			counts[name]++
		}
	}
	return counts, lines.Err()
}

// attached waits until all threads of a process are traced.
func attached(pid, tracer int) error {
	const attachLimit = 10 * time.Second
	want := "TracerPid:\t" + strconv.Itoa(tracer)
	for end := time.Now().Add(attachLimit); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
		if err != nil {
			return err
		}
		left := len(threads)
		for _, t := range threads {
			if b, err := os.ReadFile(t); err == nil && strings.Contains(string(b), want) {
				left--
			}
		}
		if left == 0 && len(threads) > 0 {
			return nil
		}
	}
	return errors.New("strace does not attach: is ptrace forbidden here?")
}
