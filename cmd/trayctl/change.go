package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/trayd/trayd/internal/agent"
	"github.com/trayd/trayd/internal/api"
)

// changeCommand is insert, change and eject: one request, three verbs.
func (c *cli) changeCommand(verb, short, long, example string) *cobra.Command {
	var (
		body api.ChangeRequest
		wait time.Duration
	)
	use, args := verb+" VM[/DRIVE] MEDIUM", 2
	if verb == agent.Eject {
		use, args = verb+" VM[/DRIVE]", 1
	} else {
		long += "\n\nMEDIUM is an ISO file beneath one of trayd's media_roots: its path, or its name\nbeneath a root."
	}
	long += "\n\nA guest that has the disc mounted holds the door. It is asked to let go, and waited\nfor; Ctrl-C stops the waiting, and the drive stays as it was."
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
			if verb != agent.Eject {
				body.Medium = localPath(args[1])
			}
			return c.change(cmd.Context(), t, verb, body)
		}),
	}
	f := cmd.Flags()
	f.DurationVar(&wait, "wait", 10*time.Second, "how long the guest may hold the door (default as trayd is configured)")
	f.Lookup("wait").DefValue = "" // the agent's configuration decides
	f.BoolVar(&body.Force, "force", false, "take the old disc out at once, whatever the guest does with it")
	f.BoolVar(&body.ThenForce, "then-force", false, "take it out when the waiting is over")
	if verb != agent.Eject {
		f.BoolVar(&body.NoValidate, "no-validate", false, "insert it even if it is no ISO 9660 or UDF image (root only)")
	}
	cmd.MarkFlagsMutuallyExclusive("force", "then-force")
	return cmd
}

// localPath makes the path of a file that is here absolute; any other name is left
// for trayd to find beneath its media roots.
func localPath(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	if _, err := os.Stat(name); err != nil {
		return name
	}
	if abs, err := filepath.Abs(name); err == nil {
		return abs
	}
	return name
}

// change sends the request and waits for its end. The first interrupt stops the
// waiting for the guest; the second leaves the operation to trayd.
func (c *cli) change(ctx context.Context, t target, verb string, body api.ChangeRequest) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	interrupts := make(chan os.Signal, 2)
	signal.Notify(interrupts, os.Interrupt)
	defer signal.Stop(interrupts)

	var op agent.OperationStatus
	ended := make(chan error, 1)
	go func() { ended <- c.client.do(ctx, "POST", drivePath(t)+"/"+verb, body, &op) }()

	show := newProgress(c, t)
	defer show.clear()
	for {
		select {
		case err := <-ended:
			show.clear()
			if err != nil {
				return err
			}
			return c.print(op, func(w io.Writer) { fmt.Fprintln(w, summary(op)) })
		case <-interrupts:
			err := c.client.do(ctx, "POST", drivePath(t)+"/cancel", nil, nil)
			var refused *api.Problem
			if errors.As(err, &refused) { // it doesn't wait: it is being done
				show.say("it can't be cancelled any more; interrupt again to leave it to trayd")
			}
			go func() {
				if _, ok := <-interrupts; ok {
					stop()
				}
			}()
		case <-show.tick():
			show.update(ctx)
		}
	}
}

func summary(op agent.OperationStatus) string {
	where := op.VM + "/" + op.Drive
	switch {
	case op.Reason != "":
		return fmt.Sprintf("%s: %s, nothing was moved", where, op.Reason)
	case op.Verb == agent.Eject:
		return where + ": the disc is out"
	}
	return fmt.Sprintf("%s: %s is in", where, op.Medium)
}

// progress shows on a terminal that an operation waits for its guest.
type progress struct {
	c      *cli
	target target
	ticker *time.Ticker // nil when nobody looks
	shown  bool
}

func newProgress(c *cli, t target) *progress {
	p := &progress{c: c, target: t}
	if f, ok := c.stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.ticker = time.NewTicker(500 * time.Millisecond)
	}
	return p
}

func (p *progress) tick() <-chan time.Time {
	if p.ticker == nil {
		return nil
	}
	return p.ticker.C
}

func (p *progress) update(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	var d agent.DriveStatus
	if p.c.client.do(ctx, "GET", drivePath(p.target), nil, &d) != nil || d.Operation == nil {
		return
	}
	switch op := d.Operation; op.Phase {
	case agent.Waiting:
		left := max(0, time.Until(*op.Deadline).Round(time.Second))
		p.line(fmt.Sprintf("waiting for the guest to let go of the disc in %s/%s: %s left (Ctrl-C stops waiting)", op.VM, op.Drive, left))
	case agent.Changing:
		p.line(fmt.Sprintf("waiting for QEMU of %s", op.VM))
	}
}

func (p *progress) line(s string) {
	fmt.Fprintf(p.c.stderr, "\r\x1b[K%s", s)
	p.shown = true
}

func (p *progress) say(s string) {
	p.clear()
	fmt.Fprintln(p.c.stderr, s)
}

func (p *progress) clear() {
	if p.shown {
		fmt.Fprint(p.c.stderr, "\r\x1b[K")
		p.shown = false
	}
}
