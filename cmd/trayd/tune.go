package main

import (
	"os"
	"runtime"
	"runtime/debug"
)

// The heap of an agent with a hundred machines is 2 to 3 MiB, so trayd's size is what
// the collector lets pile up: by default it doesn't begin before 4 MiB and lets the heap
// double. Collecting such a heap takes a fraction of a millisecond and trayd is idle
// nearly always, so it is done earlier. $GOGC and $GOMEMLIMIT overrule both.
const (
	gcPercent = 30
	// memoryLimit is soft: near it the collector works harder, and nothing fails.
	memoryLimit = 32 << 20 // bytes
)

// oneProcessor is how many threads run Go code at once. trayd waits: for QEMU, for the
// disk, for clients. With a thread for each core, every answer of QEMU wakes a second
// thread to hand it over: measured on two cores, a change takes a third more time and
// half as much CPU again. Threads in system calls are not counted. $GOMAXPROCS overrules.
const oneProcessor = 1

// tune fits the Go runtime to a small service.
func tune() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(oneProcessor)
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
}
