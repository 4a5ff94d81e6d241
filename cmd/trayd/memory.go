package main

import (
	"os"
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

func limitMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
}
