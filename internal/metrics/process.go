package metrics

import (
	"os"
	"runtime"
	"runtime/debug"
	rt "runtime/metrics"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// clockTicks is USER_HZ, which Linux has at 100 on all architectures that trayd runs on.
const clockTicks = 100

// writeProcess writes what every program has, by the names that Prometheus' own libraries use.
func writeProcess(t *text) {
	var used unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &used) == nil {
		cpu := unix.TimevalToNsec(used.Utime) + unix.TimevalToNsec(used.Stime)
		t.one("process_cpu_seconds_total", counter, "CPU time that trayd has used.", float64(cpu)/1e9)
	}
	if fds, err := os.ReadDir("/proc/self/fd"); err == nil {
		t.one("process_open_fds", gauge, "Open descriptors.", float64(len(fds)-1)) // but for the folder's own
	}
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) == nil {
		t.one("process_max_fds", gauge, "Descriptors that trayd may have open.", float64(limit.Cur))
	}
	if f := statFields(); len(f) > 22 {
		t.one("process_resident_memory_bytes", gauge, "Resident memory.", number(f[21])*float64(os.Getpagesize()))
		t.one("process_start_time_seconds", gauge, "When trayd was started, in seconds since 1970.", bootTime()+number(f[19])/clockTicks)
	}
	t.one("go_goroutines", gauge, "Goroutines.", float64(runtime.NumGoroutine()))
	t.one("go_threads", gauge, "Threads of the system.", float64(threads()))
	heap := []rt.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	rt.Read(heap)
	t.one("go_memstats_heap_alloc_bytes", gauge, "Bytes of objects in the heap.", float64(heap[0].Value.Uint64()))
	if b, ok := debug.ReadBuildInfo(); ok {
		t.family("go_info", gauge, "1, with the version of Go.")
		t.sample("go_info", 1, "version", b.GoVersion)
	}
}

// statFields are those of /proc/self/stat after the program's name: the state is the first
// (proc(5) counts it as the third).
func statFields() []string {
	b, _ := os.ReadFile("/proc/self/stat")
	_, after, _ := strings.Cut(string(b), ") ")
	return strings.Fields(after)
}

// bootTime is when the host was started, in seconds since 1970.
func bootTime() float64 {
	b, _ := os.ReadFile("/proc/stat")
	_, after, _ := strings.Cut(string(b), "\nbtime ")
	text, _, _ := strings.Cut(after, "\n")
	return number(text)
}

func threads() int {
	all, _ := os.ReadDir("/proc/self/task")
	return len(all)
}

func number(text string) float64 {
	n, _ := strconv.ParseFloat(text, 64)
	return n
}
