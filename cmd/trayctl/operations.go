package main

import (
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/trayd/trayd/internal/wire"
)

func (c *cli) operationsCommand() *cobra.Command {
	var running bool
	var wait time.Duration
	cmd := &cobra.Command{
		Use: "operations [ID]", Short: "List what is under way and what was, or wait for one",
		Long: `Lists the operations that trayd knows, the newest first: changes of discs, starts and stops of
machines, images on their way. The last 256 are kept, until trayd is started anew.`,
		Example: "  trayctl operations\n  trayctl operations --running\n  trayctl operations k3jd83nd72 --wait 60s",
		Args:    cobra.MaximumNArgs(1),
		RunE: ran(func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 {
				var op wire.OperationStatus
				path := "/v1/operations/" + url.PathEscape(args[0])
				if wait > 0 {
					path += "?wait=" + wait.String()
				}
				if err := c.client.do(cmd.Context(), "GET", path, nil, &op); err != nil {
					return err
				}
				return c.printOperations(op, []wire.OperationStatus{op})
			}
			path := "/v1/operations"
			if running {
				path += "?running=true"
			}
			var all []wire.OperationStatus
			if err := c.client.do(cmd.Context(), "GET", path, nil, &all); err != nil {
				return err
			}
			return c.printOperations(all, all)
		}),
	}
	cmd.Flags().BoolVar(&running, "running", false, "only what is under way")
	cmd.Flags().DurationVar(&wait, "wait", 0, "with an ID, how long to wait for its end, at most a minute")
	return cmd
}

func (c *cli) printOperations(v any, all []wire.OperationStatus) error {
	return c.print(v, func(w io.Writer) {
		row(w, "ID", "VERB", "ON", "PHASE", "RESULT", "SINCE", "BY")
		for _, op := range all {
			on := strings.Trim(op.VM+"/"+op.Drive, "/")
			if op.Image != "" {
				on = op.Image
			}
			phase := string(op.Phase)
			if p := op.Progress; p != nil && p.Total > 0 {
				phase += fmt.Sprintf(" %d%%", 100*p.Bytes/p.Total)
			}
			row(w, op.ID, op.Verb, on, phase, string(op.Result), op.Since.Local().Format(time.DateTime), op.By)
		}
		for _, op := range all {
			if op.Error != "" {
				fmt.Fprintf(w, "\n%s: %s\n", op.ID, op.Error)
			}
		}
	})
}

func (c *cli) forceCommand() *cobra.Command {
	return &cobra.Command{
		Use: "force VM[/DRIVE]", Short: "Stop waiting for the guest, and take the disc",
		Example: "  trayctl force vm1/cd0", Args: cobra.ExactArgs(1), ValidArgsFunction: c.completeDrive,
		RunE: ran(func(cmd *cobra.Command, args []string) error {
			t, err := parseTarget(args[0])
			if err != nil {
				return usageError{err}
			}
			var op wire.OperationStatus
			if err := c.client.do(cmd.Context(), "POST", drivePath(t)+"/force", nil, &op); err != nil {
				return err
			}
			return c.print(op, func(w io.Writer) { fmt.Fprintln(w, summary(op)) })
		}),
	}
}
