// Command trayctl is the operator's command: it puts discs into the CD drives of
// running QEMU machines and takes them out, through trayd's API on a unix socket.
//
// Output goes to stdout, everything about errors and progress to stderr. The exit
// code says how it ended:
//
//	0  done
//	1  refused or failed; the drive is as it was
//	2  wrong usage
//	3  outcome unknown: QEMU has not said what became of it, or trayd ended before it did
//	4  the agent can't be reached
//	5  done in the machine, but something is still to be cleaned up
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/trayd/trayd/internal/wire"
)

// version is set by the linker.
var version = "dev"

// The exit codes.
const (
	exitDone = iota
	exitFailed
	exitUsage
	exitUnknown
	exitUnreachable
	exitIncomplete
)

// run is main for tests too.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	c := &cli{stdout: stdout, stderr: stderr}
	root := c.command()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitDone
	}
	c.report(err)
	return exitCode(err)
}

// ranError marks an error of a command that ran; all others are wrong usage.
type ranError struct{ error }

func (e ranError) Unwrap() error { return e.error }

// errFindings ends a check that found something; it has been printed already.
var errFindings = errors.New("the check found something")

func exitCode(err error) int {
	var (
		ran         ranError
		unreachable *unreachableError
		problem     *wire.Problem
	)
	switch {
	case !errors.As(err, &ran):
		return exitUsage
	case errors.As(err, &unreachable):
		return exitUnreachable
	case errors.As(err, &problem):
		switch wire.Code(problem.Code) {
		case wire.Unknown:
			return exitUnknown
		case wire.Incomplete:
			return exitIncomplete
		case wire.BadRequest, wire.AmbiguousDrive:
			return exitUsage
		}
	}
	return exitFailed
}

// report prints an error: what it is, then what to do next.
func (c *cli) report(err error) {
	var (
		ran         ranError
		unreachable *unreachableError
		problem     *wire.Problem
	)
	switch {
	case errors.Is(err, errFindings), errors.Is(err, errKept), errors.Is(err, errUnwell):
	case !errors.As(err, &ran):
		fmt.Fprintf(c.stderr, "trayctl: %v\nnext: see `trayctl --help`\n", err)
	case errors.As(err, &problem) && c.output == "json":
		_ = json.NewEncoder(c.stderr).Encode(problem)
	case errors.As(err, &problem):
		w := &visible{c.stderr}
		fmt.Fprintf(w, "trayctl: %s\n", problem.Detail)
		if problem.Next != "" {
			fmt.Fprintf(w, "next: %s\n", problem.Next)
		}
	case errors.As(err, &unreachable):
		fmt.Fprintf(c.stderr, "trayctl: %v\nnext: %s\n", unreachable, unreachable.next())
	default:
		fmt.Fprintf(c.stderr, "trayctl: %v\n", err)
	}
}
