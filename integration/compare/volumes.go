package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/trayd/trayd/integration/fault"
	"github.com/trayd/trayd/integration/peer"
	"github.com/trayd/trayd/internal/edge"
)

// inside is the argument by which this program is what runs in the edge host:
//
//	compare inside BIN RUNS
const inside = "inside"

// counted is what the program in the edge host says of one fault, a line of JSON.
type counted struct {
	Name  string
	Count fault.Count
}

// edgeHosts is how many edge hosts share the runs: one keeps a processor busy, and this takes
// longest of all.
const edgeHosts = 2

// onVolumes does every fault to trayd with discs on logical volumes. That takes device-mapper
// and empty disks, so this program runs once more, in edge hosts.
func (c *comparison) onVolumes(ctx context.Context) error {
	fmt.Printf("faults with logical volumes, trayd in %d edge hosts: %d runs of each ...\n", min(edgeHosts, c.VolumeRuns), c.VolumeRuns)
	own, err := os.Executable()
	if err != nil {
		return err
	}
	tree := filepath.Join(c.dir, "edge")
	if out, err := exec.CommandContext(ctx, "cp", "-a", c.tree, tree).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	if out, err := exec.CommandContext(ctx, "cp", own, tree+there).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var said [edgeHosts]bytes.Buffer
	failed := make(chan error, edgeHosts)
	hosts := 0
	for i := range said {
		if runs := (c.VolumeRuns + i) / edgeHosts; runs > 0 {
			hosts++
			go func() { failed <- c.inHost(ctx, tree, runs, &said[i]) }()
		}
	}
	for range hosts {
		if one := <-failed; one != nil {
			cancel() // half of the runs are none
			err = errors.Join(err, one)
		}
	}
	if err != nil {
		return err
	}
	c.Volumes, err = volumeRows(io.MultiReader(&said[0], &said[1]))
	return err
}

// there is where this program is in an edge host.
const there = "/usr/bin/trayd-compare"

// inHost does the faults so many times in an edge host that has tree installed.
func (c *comparison) inHost(ctx context.Context, tree string, runs int, said io.Writer) error {
	cmd := exec.CommandContext(ctx, c.edge, "-install", tree, "shell", there, inside, "/usr/bin", strconv.Itoa(runs))
	cmd.Stdout, cmd.Stderr = said, os.Stderr
	cmd.Env = withoutQEMU(os.Environ())
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it ends its machine
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("in the edge host: %w", err)
	}
	return nil
}

// withoutQEMU is an environment without the QEMU under test (integration/qemu-of), which is
// first in PATH: the edge host is run by this machine's own.
func withoutQEMU(env []string) (without []string) {
	under := ""
	for _, v := range env {
		if path, ok := strings.CutPrefix(v, "QEMU="); ok {
			under = filepath.Dir(path)
		}
	}
	for _, v := range env {
		if path, ok := strings.CutPrefix(v, "PATH="); ok && under != "" {
			v = "PATH=" + strings.TrimPrefix(path, under+":")
		}
		if !strings.HasPrefix(v, "QEMU=") {
			without = append(without, v)
		}
	}
	return without
}

// volumeRows reads what the programs in the edge hosts have said.
func volumeRows(said io.Reader) ([]faultRow, error) {
	counts := make(map[string]fault.Count)
	for lines := json.NewDecoder(said); ; {
		var one counted
		if err := lines.Decode(&one); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("what the edge host says: %w", err)
		}
		counts[one.Name] = counts[one.Name].Plus(one.Count)
	}
	var rows []faultRow
	for _, f := range fault.All() {
		count, ok := counts[f.Name]
		if !ok {
			return nil, fmt.Errorf("the edge host says nothing of %q", f.Name)
		}
		rows = append(rows, faultRow{"trayd", f, count})
	}
	return rows, nil
}

// inEdgeHost does the faults, and says on stdout what came of them.
func inEdgeHost(bin, runs string) error {
	n, err := strconv.Atoi(runs)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	dir, err := os.MkdirTemp("/var/tmp", "trayd-cmp-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	discs := filepath.Join(dir, "discs")
	if err := os.Mkdir(discs, 0o755); err != nil {
		return err
	}
	trayd := peer.NewTrayd(bin, filepath.Join(dir, "t"), discs)
	trayd.Tray = fmt.Sprintf("wait = %q", guestWait)
	r, err := fault.NewOnVolumes(ctx, trayd, discs, [2]string(edge.Disks))
	if err != nil {
		trayd.Close()
		return err
	}
	defer r.Close()
	defer trayd.Close()
	for _, f := range fault.All() {
		count, err := r.Run(ctx, f, n)
		if err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "  %s: disc %d, status %d, nothing left %d of %d; in the end %v; wrong %v\n", f.Name, count.Kept, count.True, count.Clean, count.Runs, count.Ended, count.Notes)
		if err := json.NewEncoder(os.Stdout).Encode(counted{f.Name, count}); err != nil {
			return err
		}
	}
	return nil
}
