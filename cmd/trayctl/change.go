package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/trayd/trayd/internal/wire"
)

// changeCommand is insert, change and eject: one request, three verbs.
func (c *cli) changeCommand(verb, short, long, example string) *cobra.Command {
	var (
		body wire.ChangeRequest
		wait time.Duration
	)
	use, args := verb+" VM[/DRIVE] MEDIUM", 2
	if verb == wire.Eject {
		use, args = verb+" VM[/DRIVE]", 1
	} else {
		long += "\n\nMEDIUM is an ISO file beneath one of trayd's media_roots: its path, or its name\nbeneath a root. A bare name is looked for beneath the roots first, then here.\nOr it is on block storage, or in a pool: lvm:VG/LV, dm:NAME, block:/dev/NAME,\nloop:FILE, image:NAME, image:POOL/NAME, pdiv:POOL/DOMAIN/IMAGE/VOLUME."
	}
	long += "\n\nA guest that has the disc mounted holds the door. It is asked to let go, and waited\nfor; Ctrl-C stops the waiting, and the drive stays as it was. A second Ctrl-C leaves\nthe operation to trayd (exit code 3)."
	cmd := &cobra.Command{
		Use: use, Short: short, Long: long, Example: example,
		Args:              cobra.ExactArgs(args),
		ValidArgsFunction: c.completeDrive,
		RunE: ran(func(cmd *cobra.Command, args []string) error {
			t, err := parseTarget(args[0])
			if err != nil {
				return usageError{err}
			}
			if wait < 0 {
				return usageError{fmt.Errorf("--wait %s is negative", wait)}
			}
			if cmd.Flags().Changed("wait") {
				body.Wait = wait.String()
			}
			if verb != wire.Eject {
				body.Medium = args[1]
				if c.host.tls == nil {
					body.Medium = localPath(args[1])
				}
			}
			return c.change(cmd.Context(), t, verb, body)
		}),
	}
	f := cmd.Flags()
	f.DurationVar(&wait, "wait", 0, "how long the guest may hold the door (default as trayd is configured)")
	f.BoolVar(&body.Force, "force", false, "take the old disc out at once, whatever the guest does with it")
	f.BoolVar(&body.ThenForce, "then-force", false, "take it out when the waiting is over")
	if verb == wire.Eject {
		f.Bool("no-validate", false, "without effect: an eject validates nothing")
	} else {
		f.BoolVar(&body.NoValidate, "no-validate", false, "insert it even if it is no ISO 9660 or UDF image (root only)")
	}
	cmd.MarkFlagsMutuallyExclusive("force", "then-force")
	return cmd
}

// localPath makes the path of a file that is here absolute. A bare name is left as it
// is: it may be one beneath trayd's media roots, and those come first (see request).
func localPath(name string) string {
	if filepath.IsAbs(name) || !strings.Contains(name, "/") {
		return name
	}
	explicit := strings.HasPrefix(name, "./") || strings.HasPrefix(name, "../")
	if _, err := os.Stat(name); err != nil && !explicit {
		return name // a name beneath a root may have folders
	}
	if abs, err := filepath.Abs(name); err == nil {
		return abs
	}
	return name
}

// request sends the change and waits for its end. A bare name that no media root
// has, and that is a file here, is that file.
func (c *cli) request(ctx context.Context, t target, verb string, body wire.ChangeRequest, op *wire.OperationStatus) error {
	path := drivePath(t) + "/" + verb
	err := c.client.do(ctx, "POST", path, body, op)
	var problem *wire.Problem
	if !errors.As(err, &problem) || wire.Code(problem.Code) != wire.NoSuchMedium || strings.Contains(body.Medium, "/") || c.host.tls != nil {
		return err
	}
	if _, e := os.Stat(body.Medium); e != nil {
		return err
	}
	abs, e := filepath.Abs(body.Medium)
	if e != nil {
		return err
	}
	body.Medium = abs
	return c.client.do(ctx, "POST", path, body, op)
}

// change sends the request and waits for its end. The first interrupt stops the
// waiting for the guest; the second leaves the operation to trayd.
func (c *cli) change(ctx context.Context, t target, verb string, body wire.ChangeRequest) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	interrupts := make(chan os.Signal, 2) // read by the loop below and nobody else
	signal.Notify(interrupts, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(interrupts)

	var op wire.OperationStatus
	ended := make(chan error, 1)
	go func() { ended <- c.request(ctx, t, verb, body, &op) }()
	var cancelled chan error // nil until the first interrupt

	show := newProgress(c, t)
	defer show.end()
	for {
		select {
		case err := <-ended:
			show.end()
			var gone *unreachableError
			if errors.As(err, &gone) && gone.connected() {
				return unknown(t, show.operation, "trayd ended before it said what became of "+what(verb, body, t),
					fmt.Sprintf("its next start puts the drive in order, and `trayctl drives %s` then shows the outcome; `journalctl -u trayd` says why it ended", t))
			}
			if err != nil {
				return err
			}
			return c.print(op, func(w io.Writer) { fmt.Fprintln(w, summary(op)) })
		case <-interrupts:
			if cancelled != nil {
				signal.Stop(interrupts) // a third one ends the process at once
				show.end()
				return c.left(ctx, t, what(verb, body, t), show.operation)
			}
			cancelled = make(chan error, 1)
			go func() { cancelled <- c.client.do(ctx, "POST", drivePath(t)+"/cancel", nil, nil) }()
		case err := <-cancelled:
			if err != nil { // it doesn't wait, or trayd can't be asked
				show.say(fmt.Sprintf("not cancelled: %v; interrupt again to leave it to trayd", err))
			}
		case <-show.tick():
			show.look(ctx)
		case seen := <-show.seen:
			show.update(seen)
		}
	}
}

// lookTimeout is how long a look at the operation's progress may take.
const lookTimeout = 2 * time.Second

// left is the end of a command whose operation goes on without it.
func (c *cli) left(ctx context.Context, t target, what, id string) error {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	var d wire.DriveStatus
	if id == "" && c.client.do(ctx, "GET", drivePath(t), nil, &d) == nil && d.Operation != nil {
		id = d.Operation.ID
	}
	operation := "the operation"
	if id != "" {
		operation = "operation " + id
	}
	return unknown(t, id, fmt.Sprintf("interrupted; %s (%s) is left to trayd", operation, what),
		fmt.Sprintf("`trayctl drives %s` shows what became of it", t))
}

// what is a request in words.
func what(verb string, body wire.ChangeRequest, t target) string {
	return strings.TrimSpace(verb+" "+body.Medium) + " on " + t.String()
}

// gatewayTimeout is the status that the API has for an unknown outcome.
const gatewayTimeout = 504

// unknown is the end of a command that doesn't know what became of its request.
func unknown(t target, operation, why, next string) error {
	return &wire.Problem{
		Type: wire.ProblemPrefix + string(wire.Unknown), Title: "outcome unknown", Code: string(wire.Unknown),
		Status: gatewayTimeout, VM: t.vm, Drive: t.drive, Operation: operation,
		Detail: "outcome unknown: " + why, Next: next,
	}
}

func summary(op wire.OperationStatus) string {
	where := op.VM + "/" + op.Drive
	switch {
	case op.Reason != "":
		return fmt.Sprintf("%s: %s, nothing was moved", where, op.Reason)
	case op.Verb == wire.Eject:
		return where + ": the disc is out"
	}
	return fmt.Sprintf("%s: %s is in", where, op.Medium)
}
