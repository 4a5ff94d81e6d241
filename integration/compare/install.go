package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// install is what a host gets, beyond a Debian with systemd and QEMU.
type install struct {
	Name     string
	Packages int
	Size     int64 // bytes, installed
	Failed   string
}

// What the others are installed as, without recommended packages.
var (
	libvirtPackages = []string{"libvirt-daemon-system", "libvirt-clients"}
	pythonPackages  = []string{"libvirt-daemon-system", "libvirt-clients", "python3-libvirt"}
	scriptPackages  = []string{"socat"}
	basePackages    = []string{"qemu-system-x86", "systemd-sysv", "dbus"}
)

// newTree is what `make install` puts onto a host, beneath dir.
func newTree(ctx context.Context, dir string) (string, error) {
	tree := filepath.Join(dir, "installed")
	out, err := exec.CommandContext(ctx, "make", "--no-print-directory", "-s", "install", "DESTDIR="+tree).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("make install: %w: %s", err, out)
	}
	return tree, nil
}

// size is what the files beneath a directory hold, in bytes.
func size(dir string) (n int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		info, err := e.Info()
		if err == nil {
			n += info.Size()
		}
		return err
	})
	return n, err
}

// installed computes what each contender adds to a host; tree is what trayd's installation
// makes.
func installed(ctx context.Context, tree string) ([]install, error) {
	own := install{Name: "trayd, by `make install`"}
	var err error
	if own.Size, err = size(tree); err != nil {
		return nil, err
	}
	all := []install{own}
	suite, err := openSuite(ctx)
	if err != nil {
		return append(all, install{Name: "libvirt", Failed: err.Error()}), nil
	}
	defer suite.close()
	for _, one := range []struct {
		name     string
		packages []string
	}{{"libvirt", libvirtPackages}, {"libvirt with python3-libvirt", pythonPackages}, {"script (socat; bash is there)", scriptPackages}} {
		i, err := suite.adds(ctx, one.name, one.packages)
		if err != nil {
			i.Failed = err.Error()
		}
		all = append(all, i)
	}
	for _, i := range all {
		fmt.Printf("  %s: %d packages, %.1f MB %s\n", i.Name, i.Packages, float64(i.Size)/1e6, i.Failed)
	}
	return all, nil
}

// suite is the packages that this machine's apt knows, seen from a machine with none.
type suite struct {
	dir  string
	base []string         // the packages of a small Debian with QEMU
	size map[string]int64 // bytes, by package
}

func openSuite(ctx context.Context) (*suite, error) {
	dir, err := os.MkdirTemp("", "trayd-apt-")
	if err != nil {
		return nil, err
	}
	s := &suite{dir: dir, size: make(map[string]int64)}
	if err := os.WriteFile(s.status(), nil, 0o644); err != nil {
		s.close()
		return nil, err
	}
	if err := s.read(ctx); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *suite) status() string { return filepath.Join(s.dir, "status") }
func (s *suite) close()         { _ = os.RemoveAll(s.dir) }

// read lists the packages: the base is those of priority required and important, and
// basePackages.
func (s *suite) read(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, "apt-cache", "-o", "Dir::State::status="+s.status(), "dumpavail").Output()
	if err != nil {
		return fmt.Errorf("apt-cache dumpavail: %w", err)
	}
	lines := bufio.NewScanner(bytes.NewReader(out))
	lines.Buffer(nil, 1<<20) // a package's dependencies stand in one line
	name := ""
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), ": ")
		switch key {
		case "Package":
			name = value
		case "Priority":
			if value == "required" || value == "important" {
				s.base = append(s.base, name)
			}
		case "Installed-Size":
			if kib, err := strconv.ParseInt(value, 10, 64); err == nil {
				s.size[name] = kib << 10
			}
		}
	}
	if s.size["libvirt-daemon-system"] == 0 {
		return fmt.Errorf("apt knows no libvirt-daemon-system here: apt-get update")
	}
	slices.Sort(s.base)
	s.base = append(slices.Compact(s.base), basePackages...)
	return lines.Err()
}

// adds counts what some packages bring onto the base.
func (s *suite) adds(ctx context.Context, name string, packages []string) (install, error) {
	i := install{Name: name}
	before, err := s.closure(ctx, s.base)
	if err != nil {
		return i, err
	}
	after, err := s.closure(ctx, append(slices.Clone(s.base), packages...))
	if err != nil {
		return i, err
	}
	for p := range after {
		if !before[p] {
			i.Packages++
			i.Size += s.size[p]
		}
	}
	return i, nil
}

// closure are the packages that apt would install on a machine with none.
func (s *suite) closure(ctx context.Context, packages []string) (map[string]bool, error) {
	args := append([]string{"-s", "-o", "Dir::State::status=" + s.status(), "-o", "Debug::NoLocking=1", "--no-install-recommends", "install"}, packages...)
	cmd := exec.CommandContext(ctx, "apt-get", args...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("apt-get -s install: %w: %s", err, out[max(0, len(out)-500):])
	}
	all := make(map[string]bool)
	for line := range strings.Lines(string(out)) {
		if words := strings.Fields(line); len(words) > 1 && words[0] == "Inst" {
			all[words[1]] = true
		}
	}
	return all, nil
}
