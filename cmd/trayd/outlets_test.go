package main

import (
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/state"
)

func TestWhyNotReady(t *testing.T) {
	j, err := state.Open(filepath.Join(t.TempDir(), "state.journal"), nil)
	require.NoError(t, err)
	d, ready := &daemon{journal: j}, make(chan struct{})
	require.ErrorContains(t, d.whyNotReady(ready), "attaching to the machines")
	close(ready)
	require.NoError(t, d.whyNotReady(ready))
	require.NoError(t, j.Close()) // it takes no changes, as after a failed write
	require.ErrorContains(t, d.whyNotReady(ready), "the state file takes no more changes")
}

// TestFreeBytes: a file system that doesn't answer holds nobody up, and is asked once.
func TestFreeBytes(t *testing.T) {
	var b freeBytes
	dir := t.TempDir()
	free := make(map[string]int64)
	b.ask(map[string]string{"local": dir, "gone": filepath.Join(dir, "nowhere")}, free)
	require.Positive(t, free["local"])
	require.NotContains(t, free, "gone")

	hang, asked := make(chan struct{}), 0
	var mu sync.Mutex
	stuck := func() {
		mu.Lock()
		asked++
		mu.Unlock()
		<-hang
	}
	require.True(t, b.begin("nfs", stuck))
	began := time.Now()
	for range 3 {
		require.False(t, b.begin("nfs", stuck))
	}
	require.Less(t, time.Since(began), freeLimit)
	close(hang)
	require.Eventually(t, func() bool { return b.begin("nfs", func() {}) }, 5*time.Second, time.Millisecond)
	mu.Lock()
	defer mu.Unlock()
	require.Equal(t, 1, asked)
}
