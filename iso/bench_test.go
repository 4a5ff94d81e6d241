package iso

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/diskfs/go-diskfs"
	"github.com/stretchr/testify/require"
)

func BenchmarkProbe(b *testing.B) {
	for _, s := range samples(b) {
		if s.name != "xorriso" && s.name != "genisoimage-udf" && s.name != "mkudffs-2048" {
			continue
		}
		b.Run(s.name, func(b *testing.B) {
			f, err := os.Open(s.path)
			require.NoError(b, err)
			defer f.Close()
			info, err := f.Stat()
			require.NoError(b, err)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Probe(f, info.Size()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkInspect(b *testing.B) {
	for _, s := range samples(b) {
		if s.name != "xorriso" && s.name != "genisoimage-udf" && s.name != "mkudffs-2048" {
			continue
		}
		b.Run(s.name, func(b *testing.B) {
			f, err := os.Open(s.path)
			require.NoError(b, err)
			defer f.Close()
			info, err := f.Stat()
			require.NoError(b, err)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Inspect(f, info.Size()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkGoDiskfsLabel is what reading the label by go-diskfs takes, with no check of anything.
func BenchmarkGoDiskfsLabel(b *testing.B) {
	path := filepath.Join(b.TempDir(), "x.iso")
	run(b, "xorriso", "xorriso", "-as", "mkisofs", "-V", "X", "-o", path, tree(b, b.TempDir()))
	b.ReportAllocs()
	for b.Loop() {
		d, err := diskfs.Open(path, diskfs.WithOpenMode(diskfs.ReadOnly))
		if err != nil {
			b.Fatal(err)
		}
		fs, err := d.GetFilesystem(0)
		if err != nil {
			b.Fatal(err)
		}
		if fs.Label() == "" {
			b.Fatal("no label")
		}
		if err := d.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
