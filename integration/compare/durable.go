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

	"github.com/trayd/trayd/internal/wire"
)

// durableCalls are what a program makes something durable or atomic with.
const durableCalls = "fsync,fdatasync,sync_file_range,syncfs,sync,msync,rename,renameat,renameat2"

// durable counts the daemons' durable writes during changes, in a pass of its own: strace
// slows them down.
func (c *comparison) durable(ctx context.Context, k contenders) error {
	const changes = 20
	fmt.Println("durable writes of a change, by strace ...")
	for _, one := range k.daemons() {
		ask := one.Persistent()
		if err := ask(ctx, wire.Insert, "vm0", c.discs[0]); err != nil {
			return err
		}
		counts, err := traced(filepath.Join(c.dir, one.Name()+".strace"), one.PID(), func() error {
			for i := range changes {
				if err := ask(ctx, wire.Replace, "vm0", c.discs[(i+1)%2]); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		if err := ask(ctx, wire.Eject, "vm0", ""); err != nil {
			return err
		}
		d := durable{Name: one.Name()}
		for call, n := range counts {
			if strings.HasPrefix(call, "rename") {
				d.Renames += float64(n) / changes
			} else {
				d.Syncs += float64(n) / changes
			}
		}
		fmt.Printf("  %s: %.1f syncs, %.1f renames a change\n", d.Name, d.Syncs, d.Renames)
		c.Durable = append(c.Durable, d)
	}
	return nil
}

// traced counts a process's calls while f runs, with those of its threads and children.
func traced(log string, pid int, f func() error) (map[string]int, error) {
	strace := exec.Command("strace", "-f", "-q", "-e", "trace="+durableCalls, "-e", "signal=none", "-o", log, "-p", strconv.Itoa(pid))
	strace.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := strace.Start(); err != nil {
		return nil, fmt.Errorf("%w (Debian: strace)", err)
	}
	if err := attached(pid, strace.Process.Pid); err != nil {
		return nil, err
	}
	err := f()
	_ = strace.Process.Signal(os.Interrupt) // it detaches
	_ = strace.Wait()                       // it ends by the signal
	if err != nil {
		return nil, err
	}
	text, err := os.Open(log)
	if err != nil {
		return nil, err
	}
	defer text.Close()
	counts := make(map[string]int)
	for lines := bufio.NewScanner(text); lines.Scan(); {
		// "1234 fsync(5) = 0"; what another thread cut in two ends in "<... fsync resumed>".
		_, call, _ := strings.Cut(lines.Text(), " ")
		if name, _, ok := strings.Cut(strings.TrimSpace(call), "("); ok && !strings.HasPrefix(name, "<") {
			counts[name]++
		}
	}
	return counts, nil
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
