//go:build failpoints

package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// failPoint returns a hook that kills this process at the points that $TRAYD_FAILPOINT
// names, as kill -9 would: "name", or "name#N" for the N-th time; several with commas.
// It is built with -tags failpoints only.
func failPoint() func(string) {
	var mu sync.Mutex // guards left
	left := make(map[string]int)
	for _, point := range strings.Split(os.Getenv("TRAYD_FAILPOINT"), ",") {
		name, times, counted := strings.Cut(strings.TrimSpace(point), "#")
		if name == "" {
			continue
		}
		left[name] = 1
		if counted {
			n, err := strconv.Atoi(times)
			if err != nil || n < 1 {
				panic(fmt.Sprintf("TRAYD_FAILPOINT: %q is neither name nor name#N", point))
			}
			left[name] = n
		}
	}
	return func(name string) {
		mu.Lock()
		defer mu.Unlock()
		if left[name]--; left[name] == 0 {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {} // the signal is on its way: nothing more may happen
		}
	}
}
