package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/trayd/trayd/internal/wire"
)

// leave is the key that leaves a serial console: Ctrl-], as with telnet and virsh.
const leave = 0x1d

// answerWait is how long the answer is waited for, once the input has ended, without --for.
const answerWait = time.Second

func (c *cli) vmConsoleCommand() *cobra.Command {
	var serial bool
	var listen string
	var stay time.Duration
	cmd := &cobra.Command{
		Use: "console NAME", Short: "Open a machine's screen in a viewer, or its serial console in this terminal", Args: cobra.ExactArgs(1),
		Long: `Opens a machine's screen (VNC) in the viewer that is installed: remote-viewer, vncviewer,
gvncviewer or vinagre. Without one, or with --listen, it prints where a viewer finds the
screen, on loopback and only for processes of the same user, and waits a minute for one.
It ends with the viewer.

With --serial the serial console is in this terminal; Ctrl-] leaves it. What comes through a
pipe is sent, and the answer waited for.`,
		Example:           "  trayctl vm console web1\n  trayctl vm console web1 --listen 127.0.0.1:5901\n  trayctl vm console web1 --serial\n  printf 'root\\n' | trayctl vm console web1 --serial --for 5s",
		ValidArgsFunction: c.completeVM,
		RunE: ran(func(cmd *cobra.Command, args []string) error {
			switch {
			case stay < 0:
				return usageError{fmt.Errorf("--for %s: use a duration such as 5s", stay)}
			case !serial && cmd.Flags().Changed("for"):
				return usageError{errors.New("--for is for --serial")}
			}
			// All that end a command by default: the terminal is put right first, and what
			// was begun is ended.
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE)
			defer stop()
			if serial {
				return c.serialConsole(ctx, args[0], os.Stdin, stay)
			}
			return c.screen(ctx, args[0], listen)
		}),
	}
	cmd.Flags().BoolVar(&serial, "serial", false, "the serial console, in this terminal")
	cmd.Flags().StringVar(&listen, "listen", "", "start no viewer, and listen there: ADDRESS:PORT on loopback; port 0 is a free one")
	cmd.Flags().DurationVar(&stay, "for", answerWait, "with --serial, how long to wait for the answer when input from a pipe has ended")
	cmd.MarkFlagsMutuallyExclusive("serial", "listen")
	return cmd
}

// serialConsole connects in and the standard output to a machine's serial console until either
// side ends it.
func (c *cli) serialConsole(ctx context.Context, name string, in *os.File, stay time.Duration) error {
	w, err := c.client.webSocket(ctx, vmPath(name, "serial"))
	if err != nil {
		return err
	}
	defer w.Close()
	keys := term.IsTerminal(int(in.Fd()))
	if keys {
		fmt.Fprintf(c.stderr, "connected to the serial console of %s; Ctrl-] leaves it\n", name)
		was, err := term.MakeRaw(int(in.Fd()))
		if err != nil {
			return fmt.Errorf("the terminal can't be switched to raw mode: %w", err)
		}
		defer func() {
			_ = term.Restore(int(in.Fd()), was) // it may have been hung up
			fmt.Fprintln(c.stderr)
		}()
	}
	said, typed := make(chan error, 1), make(chan error, 1)
	go func() { // ends with w
		_, err := io.Copy(c.stdout, w)
		said <- err
	}()
	go func() { typed <- pass(w, in, keys) }() // ends with the process at the latest: nothing else stops a read of a terminal
	var over <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case err := <-said:
			return c.ended(ctx, name, err)
		case <-over:
			return nil
		case err := <-typed:
			typed = nil
			var gone *unreachableError
			switch {
			case errors.As(err, &gone): // said says why
			case err != nil:
				return err
			case keys:
				return nil
			default:
				over = time.After(stay)
			}
		}
	}
}

// pass passes on what is typed until the key that leaves, or what is piped until its end.
func pass(w io.Writer, in io.Reader, keys bool) error {
	b := make([]byte, maxOut)
	for {
		n, err := in.Read(b)
		typed := b[:n]
		last := false
		if i := bytes.IndexByte(typed, leave); keys && i >= 0 {
			typed, last = typed[:i], true
		}
		if len(typed) > 0 {
			if _, err := w.Write(typed); err != nil {
				return err
			}
		}
		switch {
		case last, errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("the input can't be read: %w", err)
		}
	}
}

// ended is how a console that trayd ended counts: the end of its machine is no failure.
func (c *cli) ended(ctx context.Context, name string, err error) error {
	var e *endedError
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case !errors.As(err, &e):
		return err
	case e.code == closeNormal:
		fmt.Fprintf(c.stderr, "%s: %s\n", name, e.reason)
		return nil
	case e.code == closeAway:
		return &unreachableError{socket: c.client.String(), err: errors.New(e.reason)}
	}
	return &wire.Problem{Code: "console-ended", VM: name, Detail: fmt.Sprintf("the console of VM %s was ended: %s", name, e.reason), Next: "open it again; what a serial console has said meanwhile is in `trayctl vm log " + name + "`"}
}
