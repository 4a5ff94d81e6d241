package main

import (
	"os"
	"runtime"
	"runtime/debug"
)

// gcPercent is how much the heap may grow between two collections, in percent of what lives
// (and of the goroutines' stacks, which are most of it). trayd is idle nearly always and its heap
// small, so it is collected earlier than by default: a mebibyte less with a hundred machines, of
// 20 MiB, 12 of them the program itself. $GOGC overrules.
//
// There is no limit of memory: near a fixed one the collector never rests. One of 32 MiB took
// three times the processor from 600 machines on.
const gcPercent = 30

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
}
