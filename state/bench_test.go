package state

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

type benchRecord struct {
	Loaded, Change, Note string
}

// BenchmarkPut writes records of 300 bytes, and beside each the same number of bytes by a bare append and fdatasync:
// alternating, so that both meet the same disk.
func BenchmarkPut(b *testing.B) {
	dir := b.TempDir()
	j := open(b, filepath.Join(dir, "state"), &Options{CompactSize: 1 << 40})
	value := benchRecord{"image:debian-12", "loading", strings.Repeat("n", 170)}
	bare, err := os.Create(filepath.Join(dir, "bare"))
	if err != nil {
		b.Fatal(err)
	}
	defer bare.Close()
	var put, append time.Duration
	b.ReportAllocs()
	for b.Loop() {
		before := j.Stats().Bytes
		start := time.Now()
		if err := j.Put("drive/vm1/cd0", value); err != nil {
			b.Fatal(err)
		}
		put += time.Since(start)
		b.StopTimer()
		line := make([]byte, j.Stats().Bytes-before)
		start = time.Now()
		if _, err := bare.Write(line); err != nil {
			b.Fatal(err)
		}
		if err := unix.Fdatasync(int(bare.Fd())); err != nil {
			b.Fatal(err)
		}
		append += time.Since(start)
		b.StartTimer()
	}
	b.ReportMetric(float64(append.Nanoseconds())/float64(b.N), "bare-ns/op")
	b.ReportMetric(float64(put)/float64(append), "put/bare")
}

func BenchmarkPutParallel(b *testing.B) {
	j := open(b, filepath.Join(b.TempDir(), "state"), nil)
	var id atomic.Int64
	b.SetParallelism(25)
	b.RunParallel(func(pb *testing.PB) {
		key := fmt.Sprint("drive/vm", id.Add(1))
		for pb.Next() {
			if err := j.Put(key, benchRecord{Note: "x"}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.ReportMetric(float64(j.Stats().Syncs)/float64(b.N), "syncs/op")
}

func BenchmarkOpen(b *testing.B) {
	j := open(b, filepath.Join(b.TempDir(), "state"), nil)
	for i := range 100 {
		if err := j.Put(fmt.Sprint("drive/vm", i), benchRecord{Note: strings.Repeat("n", 200)}); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		if err := j.Close(); err != nil {
			b.Fatal(err)
		}
		var err error
		if j, err = Open(j.path, nil); err != nil {
			b.Fatal(err)
		}
	}
	_ = j.Close()
}
