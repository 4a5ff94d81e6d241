// Command edge uses the edge host (internal/edge) from a shell:
//
//	edge shell             a shell in a fresh host; what it did is gone at its end
//	edge shell COMMAND...  one command
//	edge exec TEST ARGS... a test binary; `go test -exec` calls it so
//
// -install DIR first copies the files beneath DIR into the host, as a package's. If a
// QEMU is among them that is to be tested (qemu-of --into), tests find it as they do here:
// first in PATH, and its path in $QEMU.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/build/constraint"
	"go/parser"
	"go/token"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/trayd/trayd/internal/edge"
	"github.com/trayd/trayd/internal/edge/remote"
)

func main() {
	install := flag.String("install", "", "`folder` whose files are copied into the host first")
	flag.Parse()
	// go test ends a test that is late by SIGQUIT.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT)
	code, err := run(ctx, *install, flag.Args())
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "edge:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func run(ctx context.Context, install string, args []string) (int, error) {
	if len(args) == 0 || args[0] == "exec" && len(args) < 2 {
		return 2, errors.New("usage: edge [-install DIR] shell [COMMAND...] | exec TEST ARGS")
	}
	cache, err := edge.Cache()
	if err != nil {
		return 1, err
	}
	kit, err := edge.Prepare(ctx, cache, os.Stderr)
	if err != nil {
		return 1, err
	}
	dir, err := os.MkdirTemp("", "edge-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	m, err := kit.Start(ctx, dir)
	if err != nil {
		return 1, err
	}
	defer m.Close()
	if install != "" {
		if err := m.PutTree(ctx, install, "/"); err != nil {
			return 1, err
		}
		const triggers = "systemd-sysusers && systemd-tmpfiles --create && systemctl daemon-reload"
		if _, err := m.Output(ctx, "sh", "-c", triggers); err != nil {
			return 1, err
		}
	}
	switch args[0] {
	case "exec":
		return test(ctx, m, args[1], args[2:])
	case "shell":
		return shell(ctx, m, args[1:])
	}
	return 2, fmt.Errorf("no command %q", args[0])
}

// test runs a test binary of the package in whose folder this runs. Unless the caller
// says which, those tests are run that stand in files with the build tag edge: the
// package's others have no need of the host.
func test(ctx context.Context, m *edge.Machine, binary string, args []string) (int, error) {
	if !slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "-test.run=") }) {
		names, err := edgeTests(".")
		if err != nil {
			return 1, err
		}
		args = append(args, "-test.run=^("+strings.Join(names, "|")+")$")
	}
	const dir = "/root/test"
	if _, err := os.Stat("testdata"); err == nil {
		if err := m.PutTree(ctx, "testdata", dir+"/testdata"); err != nil {
			return 1, err
		}
	}
	program, err := os.Open(binary)
	if err != nil {
		return 1, err
	}
	defer program.Close()
	env, err := underTest(ctx, m)
	if err != nil {
		return 1, err
	}
	there := dir + "/" + filepath.Base(binary)
	if err := m.Put(ctx, there, program, 0o755); err != nil {
		return 1, err
	}
	code, err := m.Run(ctx, &remote.Command{Args: append([]string{there}, args...), Dir: dir, Env: env, Stdout: os.Stdout, Stderr: os.Stderr})
	if err != nil {
		return code, fmt.Errorf("%w\nthe host's console: %s", err, m.Console())
	}
	return code, nil
}

// underTest is the environment that names the QEMU under test, where it isn't the host's own.
func underTest(ctx context.Context, m *edge.Machine) ([]string, error) {
	const say = `if [ -d "$1" ]; then echo "QEMU=$1/qemu-system-x86_64"; echo "PATH=$1:$PATH"; fi`
	out, err := m.Output(ctx, "sh", "-c", say, "sh", edge.UnderTest)
	return strings.Fields(out), err
}

// edgeTests are the names of the tests in dir's files that the build tag edge brings in.
func edgeTests(dir string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	if err != nil {
		return nil, err
	}
	var names []string
	for _, path := range files {
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		if !tagged(f) {
			continue
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Test") && fn.Name.Name != "TestMain" {
				names = append(names, fn.Name.Name)
			}
		}
	}
	if len(names) == 0 {
		return nil, errors.New("no test here stands in a file with the build tag edge")
	}
	return names, nil
}

// tagged reports whether a file is built with the tag edge and not without it.
func tagged(f *ast.File) bool {
	for _, group := range f.Comments {
		for _, c := range group.List {
			if group.Pos() > f.Package || !constraint.IsGoBuild(c.Text) {
				continue
			}
			expr, err := constraint.Parse(c.Text)
			with := func(tag string) bool { return tag == "edge" || tag == "linux" }
			without := func(tag string) bool { return tag == "linux" }
			return err == nil && expr.Eval(with) && !expr.Eval(without)
		}
	}
	return false
}

// shell runs a command, or a login shell, on a terminal of the host's if there is one
// here.
func shell(ctx context.Context, m *edge.Machine, args []string) (int, error) {
	cmd := &remote.Command{Args: args, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
	if len(args) == 0 {
		cmd.Args = []string{"bash", "--login"}
	}
	in := int(os.Stdin.Fd())
	if !term.IsTerminal(in) || !term.IsTerminal(int(os.Stdout.Fd())) {
		return m.Run(ctx, cmd)
	}
	size := func() remote.Size {
		columns, rows, _ := term.GetSize(in) // a terminal of no known size does as well
		return remote.Size{Rows: uint16(rows), Columns: uint16(columns)}
	}
	now := size()
	resized := make(chan remote.Size, 1)
	cmd.Terminal, cmd.Resized = &now, resized
	cmd.Env = []string{"TERM=" + os.Getenv("TERM")}
	changes := make(chan os.Signal, 1)
	signal.Notify(changes, syscall.SIGWINCH)
	go func() {
		for range changes {
			select {
			case resized <- size():
			case <-time.After(time.Second): // the shell has ended
			}
		}
	}()
	if len(args) == 0 {
		fmt.Printf("an edge host: %s are empty disks; exit throws it away\n", strings.Join(edge.Disks, " and "))
	}
	old, err := term.MakeRaw(in)
	if err != nil {
		return 1, err
	}
	defer term.Restore(in, old)
	code, err := m.Run(ctx, cmd)
	if len(args) == 0 {
		code = 0 // of whatever was typed last
	}
	return code, err
}
