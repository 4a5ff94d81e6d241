package peer

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Usage is what a process uses, or has used since it was started.
type Usage struct {
	CPU      time.Duration
	Resident float64 // RSS, MiB
	// Proportional is PSS, MiB: pages that several processes share count for each by its part.
	Proportional float64
	// Anonymous is what is in no file, MiB: the heap, stacks, and data that was written to.
	Anonymous float64
	Threads   int
	Files     int   // open descriptors
	Switches  int64 // voluntary context switches of all threads: each is a wake-up
}

// UsageOf looks at a process.
func UsageOf(pid int) (Usage, error) {
	var u Usage
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
		u.CPU += time.Duration(ticks) * 10 * time.Millisecond
	}
	if err := u.ofThreads(pid); err != nil {
		return u, err
	}
	rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return u, err
	}
	mebibytes := func(name string) float64 { return float64(field(rollup, name)) / 1024 }
	u.Resident, u.Proportional, u.Anonymous = mebibytes("Rss:"), mebibytes("Pss:"), mebibytes("Anonymous:")
	files, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	u.Files = len(files)
	return u, err
}

func (u *Usage) ofThreads(pid int) error {
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil {
		return err
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
			return err
		}
		u.Switches += field(b, "voluntary_ctxt_switches:")
	}
	u.Threads = len(tasks)
	if exact > 0 {
		u.CPU = exact
	}
	return nil
}

// field is a number in one of the kernel's files of names and numbers.
func field(text []byte, name string) int64 {
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			n, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err == nil {
				return n
			}
		}
	}
	return 0
}
