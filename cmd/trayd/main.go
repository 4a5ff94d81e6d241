// Command trayd is the agent: it attaches to the QEMU machines of this host, changes
// the discs in their CD drives on request, and after any crash puts in order what it
// owns. It runs the same with systemd and without.
//
// main only wires: the configuration, the journal, the agent, the API on a socket, and
// the service manager's signals. What an operator needs when trayd doesn't start is
// here too, since it must work without a running agent: --check-config and the state
// commands.
//
// Output goes to stdout, errors and the log to stderr (or to the journal). The exit
// code says how it ended:
//
//	0  ended on request, or the command succeeded
//	1  refused or failed; the state file is damaged
//	2  wrong usage
package main

import (
	"errors"
	"fmt"
	"io"
)

// version is set by the linker.
var version = "dev"

// The exit codes.
const (
	exitDone = iota
	exitFailed
	exitUsage
)

func run(args []string, stdout, stderr io.Writer) int {
	c := &cli{stdout: stdout, stderr: stderr}
	root := c.command()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.Execute()
	var ran ranError
	switch {
	case err == nil:
		return exitDone
	case !errors.As(err, &ran):
		fmt.Fprintf(stderr, "trayd: %v\nnext: see `trayd --help`\n", err)
		return exitUsage
	case !errors.Is(err, errFindings):
		fmt.Fprintf(stderr, "trayd: %v\n", err)
	}
	return exitFailed
}

// ranError marks an error of a command that ran; all others are wrong usage.
type ranError struct{ error }

func (e ranError) Unwrap() error { return e.error }

// errFindings ends a command whose output has said what is wrong already.
var errFindings = errors.New("something was found")
