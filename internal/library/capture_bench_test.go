package library

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/disk"
	"github.com/trayd/trayd/internal/wire"
	"github.com/trayd/trayd/state"
)

// BenchmarkCapture captures a disk with 512 MiB of data, half of which compresses, and does
// the same by hand: qemu-img convert, then sync. They take turns, so that a disk that has
// its moods has them for both.
func BenchmarkCapture(b *testing.B) {
	dir := b.TempDir()
	src := filepath.Join(dir, "src")
	random := rand.NewChaCha8([32]byte{})
	data := make([]byte, 512<<20)
	for at := 0; at < len(data); at += 1 << 20 {
		_, _ = random.Read(data[at : at+1<<19])
		copy(data[at+1<<19:], "something that compresses well")
	}
	require.NoError(b, os.WriteFile(src+".data", data, 0o600))
	tool(b, dir, "", "qemu-img", "create", "-q", "-f", "qcow2", src, "4G")
	tool(b, dir, "", "qemu-io", "-f", "qcow2", "-c", "write -s "+src+".data 100M 512M", src)
	tool(b, dir, "", "sync", "-f", src)

	journal, err := state.Open(filepath.Join(dir, "state"), nil)
	require.NoError(b, err)
	defer journal.Close()
	l, err := New(journal, newVolumes(b), nil, Options{Pools: []Pool{{Name: "local", Type: Dir, Path: filepath.Join(dir, "pool")}}}, slog.New(slog.DiscardHandler), nil)
	require.NoError(b, err)
	ctx, cancel := context.WithCancel(b.Context())
	defer l.Drain()
	defer cancel()
	l.Start(ctx, nil)
	for _, compress := range []bool{false, true} {
		b.Run(map[bool]string{false: "plain", true: "zstd"}[compress], func(b *testing.B) {
			var capture, hand stopwatch
			for b.Loop() {
				capture.run(func() {
					i, err := l.Capture(CaptureRequest{Name: "golden", Source: src, SourceFormat: disk.QCOW2, Compress: compress})
					require.NoError(b, err)
					i, err = l.Wait(ctx, i.Pool, i.Name)
					require.NoError(b, err)
					require.Equal(b, wire.ImageReady, i.State, i.Failure)
				})
				require.NoError(b, l.Remove(ctx, "", "golden"))
				tool(b, dir, "", "sync", "-f", src)
				hand.run(func() {
					args := []string{"convert", "-f", "qcow2", "-O", "qcow2"}
					if compress {
						args = append(args, "-c", "-o", "compression_type=zstd")
					}
					require.NoError(b, exec.Command("qemu-img", append(args, src, src+".out")...).Run())
					require.NoError(b, exec.Command("sync", src+".out").Run())
				})
				require.NoError(b, os.Remove(src+".out"))
				tool(b, dir, "", "sync", "-f", src)
			}
			b.ReportMetric(capture.median(), "s/capture")
			b.ReportMetric(hand.median(), "s/by-hand")
			b.ReportMetric(capture.median()/hand.median(), "ratio")
		})
	}
}

// stopwatch keeps how long each of several runs took, in seconds.
type stopwatch []float64

func (s *stopwatch) run(f func()) {
	began := time.Now()
	f()
	*s = append(*s, time.Since(began).Seconds())
}

func (s *stopwatch) median() float64 {
	all := slices.Sorted(slices.Values(*s))
	return all[len(all)/2]
}
