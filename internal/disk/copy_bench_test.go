package disk

import (
	"os"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// BenchmarkCopy copies a sparse file with 512 MiB of data, and has cp and sync do it, in turns.
func BenchmarkCopy(b *testing.B) {
	w := newWorkshop(b)
	src, err := os.Create(w.path("src"))
	require.NoError(b, err)
	defer src.Close()
	data := make([]byte, 64<<20)
	for i := range data {
		data[i] = byte(i*7 + i>>9)
	}
	for k := range int64(8) {
		_, err := src.WriteAt(data, k*500*mib)
		require.NoError(b, err)
	}
	require.NoError(b, src.Sync())
	var ours, theirs []float64
	for b.Loop() {
		dst, err := os.Create(w.path("dst"))
		require.NoError(b, err)
		began := time.Now()
		require.NoError(b, Copy(b.Context(), dst, src, nil))
		ours = append(ours, time.Since(began).Seconds())
		require.NoError(b, dst.Close())
		require.NoError(b, os.Remove(dst.Name()))
		unix.Sync()
		began = time.Now()
		w.run("", "cp", "--sparse=always", "src", "dst")
		w.run("", "sync", "dst")
		theirs = append(theirs, time.Since(began).Seconds())
		require.NoError(b, os.Remove(w.path("dst")))
		unix.Sync()
	}
	slices.Sort(ours)
	slices.Sort(theirs)
	b.ReportMetric(ours[len(ours)/2], "s/copy")
	b.ReportMetric(theirs[len(theirs)/2], "s/cp+sync")
	b.ReportMetric(ours[len(ours)/2]/theirs[len(theirs)/2], "ratio")
}
