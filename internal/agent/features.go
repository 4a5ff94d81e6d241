package agent

import (
	"context"
	"fmt"
	"os"
	"sync"
	"syscall"

	"github.com/trayd/trayd/blockdev"
	"github.com/trayd/trayd/qmp"
)

// featureCache remembers what a QEMU binary offers. The schema is compiled into the
// binary, and asking for it takes QEMU 20 ms and 200 KB: fifty machines of one
// binary are asked once. The key is the file that the process executes, by device,
// inode, size and time, never a version; a process whose file can't be looked at is
// asked itself.
type featureCache struct {
	mu    sync.Mutex // guards known
	known map[binary]blockdev.Features
	// probing holds a token while somebody asks: the answers are large, and one at
	// a time keeps the agent small.
	probing chan struct{}
}

type binary struct {
	dev, inode uint64
	size, time int64
}

func newFeatureCache() *featureCache {
	return &featureCache{known: make(map[binary]blockdev.Features), probing: make(chan struct{}, 1)}
}

// get returns the features of the QEMU behind conn.
func (f *featureCache) get(ctx context.Context, conn *qmp.Conn) (blockdev.Features, error) {
	key, keyed := binaryOf(conn.Peer().PID)
	if known, ok := f.lookUp(key); keyed && ok {
		return known, nil
	}
	select {
	case f.probing <- struct{}{}:
		defer func() { <-f.probing }()
	case <-ctx.Done():
		return blockdev.Features{}, ctx.Err()
	}
	if known, ok := f.lookUp(key); keyed && ok { // somebody asked meanwhile
		return known, nil
	}
	probed, err := blockdev.Probe(ctx, conn)
	if err == nil && keyed {
		f.mu.Lock()
		f.known[key] = probed
		f.mu.Unlock()
	}
	return probed, err
}

func (f *featureCache) lookUp(key binary) (blockdev.Features, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	known, ok := f.known[key]
	return known, ok
}

func binaryOf(pid int) (binary, bool) {
	if pid <= 0 {
		return binary{}, false
	}
	st, err := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return binary{}, false
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok {
		return binary{}, false
	}
	return binary{dev: sys.Dev, inode: sys.Ino, size: st.Size(), time: st.ModTime().UnixNano()}, true
}
