package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"time"

	"github.com/trayd/trayd/iso"
)

// The disc of the figures: about what a large installation disc has.
const (
	discFiles  = 50_000
	discPerDir = 100
	discSize   = 5 << 30 // bytes
)

// iso compares inspecting a large disc with what other programs take to say less of it,
// and says which of them notice that it is cut.
func (b *bench) iso(ctx context.Context) error {
	fmt.Printf("a disc of %d GB with %d files ...\n", discSize>>30, discFiles)
	whole, cut := filepath.Join(b.dir, "large.iso"), filepath.Join(b.dir, "cut.iso")
	if err := b.largeDisc(ctx, whole, cut); err != nil {
		return err
	}
	inProcess := func(f func(io.ReaderAt, int64) error) func(int) error {
		return func(int) error { return withFile(whole, f) }
	}
	probe := func(r io.ReaderAt, size int64) error { _, err := iso.Probe(r, size); return err }
	inspect := func(r io.ReaderAt, size int64) error {
		report, err := iso.Inspect(r, size)
		return errors.Join(err, report.Err())
	}
	inspected, probed, err := interleave(b.rounds, inProcess(inspect), inProcess(probe))
	if err != nil {
		return err
	}
	b.add("Inspect, 5 GB and 50,000 files", spread(inspected)+", cut: "+seen(withFile(cut, inspect)),
		"Probe "+spread(probed)+", cut: "+seen(withFile(cut, probe)), ratio(inspected, probed), "at most 5 ms; Probe 100 µs")
	trayctl := about(filepath.Join(b.bin, "trayctl"), "image", "inspect")
	for _, tool := range [][]string{{"isoinfo", "-d", "-i"}, {"xorriso", "-indev"}, {"7z", "l"}, {"blkid", "-p"}} {
		other := about(tool...)
		rounds := b.rounds / 4
		if tool[0] == "7z" || tool[0] == "xorriso" { // these read the whole tree
			rounds = 10
		}
		ours, theirs, err := interleave(rounds,
			func(int) error { _, err := trayctl(whole); return err },
			func(int) error { _, err := other(whole); return err })
		if err != nil {
			return err
		}
		b.add("trayctl image inspect, whole process", spread(ours)+", cut: "+noticed(trayctl(cut)),
			fmt.Sprintf("%s %s, cut: %s", tool[0], spread(theirs), noticed(other(cut))), ratio(ours, theirs), "reported")
	}
	return ctx.Err()
}

func withFile(path string, f func(io.ReaderAt, int64) error) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return err
	}
	return f(file, st.Size())
}

func about(args ...string) func(path string) ([]byte, error) {
	return func(path string) ([]byte, error) {
		return exec.Command(args[0], append(args[1:len(args):len(args)], path)...).CombinedOutput()
	}
}

// seen says what a call makes of the disc that is cut.
func seen(err error) string {
	if short := new(iso.TruncatedError); errors.As(err, &short) {
		return "noticed"
	}
	return "not noticed"
}

// complaint is how programs speak of a disc that is cut.
var complaint = regexp.MustCompile(`(?i)truncat|unexpected end|exceeds|short read|larger than number of readable`)

// noticed says the same of a program.
func noticed(output []byte, err error) string {
	switch {
	case err != nil:
		return fmt.Sprintf("noticed (%v)", err)
	case complaint.Match(output):
		return "a warning"
	}
	return "not noticed"
}

// largeDisc makes the disc, sparse, and a copy of its first 60 %.
func (b *bench) largeDisc(ctx context.Context, whole, cut string) error {
	tree := filepath.Join(b.dir, "tree")
	for i := range discFiles {
		dir := filepath.Join(tree, fmt.Sprintf("dir %d", i/discPerDir))
		if i%discPerDir == 0 {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("file %d.txt", i)), []byte("content\n"), 0o644); err != nil {
			return err
		}
	}
	large, err := os.Create(filepath.Join(tree, "large.bin"))
	if err != nil {
		return err
	}
	if err := errors.Join(large.Truncate(discSize), large.Close()); err != nil {
		return err
	}
	out, err := os.Create(whole)
	if err != nil {
		return err
	}
	defer out.Close()
	sparse := &sparseFile{f: out}
	var said bytes.Buffer
	xorriso := exec.CommandContext(ctx, "xorriso", "-as", "mkisofs", "-quiet", "-V", "LARGE", "-R", "-J", "-iso-level", "3", "-o", "-", tree)
	xorriso.Stdout, xorriso.Stderr = sparse, &said
	if err := xorriso.Run(); err != nil {
		return fmt.Errorf("xorriso: %w: %s", err, said.Bytes())
	}
	if err := out.Truncate(sparse.at); err != nil {
		return err
	}
	if said, err := exec.CommandContext(ctx, "cp", "--sparse=always", whole, cut).CombinedOutput(); err != nil {
		return fmt.Errorf("cp: %w: %s", err, said)
	}
	time.Sleep(time.Second) // what was written is on its way to the disk
	return os.Truncate(cut, sparse.at*60/100)
}

// A sparseFile leaves holes where zeroes are written: the disc is 5 GB of next to nothing.
type sparseFile struct {
	f  *os.File
	at int64
}

func (s *sparseFile) Write(b []byte) (int, error) {
	if len(bytes.Trim(b, "\x00")) > 0 {
		if _, err := s.f.WriteAt(b, s.at); err != nil {
			return 0, err
		}
	}
	s.at += int64(len(b))
	return len(b), nil
}
