package main

import (
	"os"
	"runtime"
	"runtime/debug"
)

// trayd's heap is small (2 to 3 MiB with a hundred machines), so its size is what the
// collector lets pile up: by default it doesn't begin before 4 MiB, and then lets the
// heap double. Collecting so little takes a fraction of a millisecond and trayd is idle
// nearly always, so it is done earlier: 14.5 MiB resident with a hundred machines in
// place of 15.4, half of it the program itself. $GOGC and $GOMEMLIMIT overrule both.
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
