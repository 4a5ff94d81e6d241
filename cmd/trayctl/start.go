//go:build !man

package main

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
)

// memoryLimit is when the collector begins all the same: `trayctl events` runs for days.
const memoryLimit = 16 << 20 // bytes

func main() {
	// A command lives for milliseconds: more threads and a garbage collector cost it
	// more than they give (measured: a third of its time).
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(memoryLimit)
	os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}
