package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/trayd/trayd/internal/wire"
)

// print prints v as JSON, or lets table print it for people.
func (c *cli) print(v any, table func(io.Writer)) error {
	if c.output == "json" {
		e := json.NewEncoder(c.stdout)
		e.SetIndent("", "  ")
		return e.Encode(v)
	}
	w := tabwriter.NewWriter(&visible{c.stdout}, 0, 8, 2, ' ', 0)
	table(w)
	return w.Flush()
}

// row prints a table's row; an empty cell is a hyphen, so that columns can be cut.
func row(w io.Writer, cells ...string) {
	for i, cell := range cells {
		if cell == "" {
			cells[i] = "-"
		}
	}
	fmt.Fprintln(w, strings.Join(cells, "\t"))
}

func (c *cli) vmsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "vms", Short: "List the machines", Example: "  trayctl vms\n  trayctl vms -o json",
		Args: cobra.NoArgs,
		RunE: ran(func(cmd *cobra.Command, _ []string) error {
			var vms []wire.VMStatus
			if err := c.client.do(cmd.Context(), "GET", "/v1/vms", nil, &vms); err != nil {
				return err
			}
			return c.print(vms, func(w io.Writer) {
				row(w, "NAME", "STATE", "QEMU", "PID", "DRIVES")
				for _, v := range vms {
					var drives []string
					for _, d := range v.Drives {
						drives = append(drives, d.Name)
					}
					pid := ""
					if v.PID > 0 {
						pid = fmt.Sprint(v.PID)
					}
					row(w, v.Name, v.State, v.QEMU, pid, strings.Join(drives, ","))
				}
				reasons(w, vms)
			})
		}),
	}
}

// reasons says below a table why machines can't be reached.
func reasons(w io.Writer, vms []wire.VMStatus) {
	for _, v := range vms {
		if v.Reason != "" {
			fmt.Fprintf(w, "\n%s\nnext: %s\n", v.Reason, v.Next)
		}
	}
}

func (c *cli) drivesCommand() *cobra.Command {
	return &cobra.Command{
		Use: "drives [VM[/DRIVE]]", Short: "List the CD drives, or show one",
		Long: "Lists the CD drives as QEMU shows them now: tray, lock and medium, what is under\nway, and how the last operation ended.",
		Example: `  trayctl drives
  trayctl drives vm1
  trayctl drives vm1/cd0 -o json`,
		Args: cobra.MaximumNArgs(1), ValidArgsFunction: c.completeDrive,
		RunE: ran(func(cmd *cobra.Command, args []string) error {
			vms, err := c.vms(cmd.Context(), args)
			if err != nil {
				return err
			}
			drives := []wire.DriveStatus{}
			for _, v := range vms {
				drives = append(drives, v.Drives...)
			}
			if len(args) == 1 && strings.Contains(args[0], "/") && c.output == "json" {
				return c.print(drives[0], nil)
			}
			return c.print(drives, func(w io.Writer) {
				row(w, "DRIVE", "BUS", "STATE", "TRAY", "LOCK", "MEDIUM", "OPERATION", "LAST")
				for _, d := range drives {
					driveRow(w, d)
				}
				said := make(map[string]bool) // with the machine, below
				for _, v := range vms {
					said[v.Reason] = true
				}
				for _, d := range drives {
					if d.Reason != "" && !said[d.Reason] {
						fmt.Fprintf(w, "\n%s/%s: %s\n", d.VM, d.Name, d.Reason)
					}
					for _, left := range d.Releasing {
						fmt.Fprintf(w, "\n%s/%s: still to be released: %s\n", d.VM, d.Name, left)
					}
				}
				reasons(w, vms)
			})
		}),
	}
}

// vms fetches all machines, one machine, or one machine with one drive.
func (c *cli) vms(ctx context.Context, args []string) ([]wire.VMStatus, error) {
	if len(args) == 0 {
		var vms []wire.VMStatus
		return vms, c.client.do(ctx, "GET", "/v1/vms", nil, &vms)
	}
	t, err := parseTarget(args[0])
	if err != nil {
		return nil, usageError{err}
	}
	if t.drive == "" {
		var v wire.VMStatus
		err := c.client.do(ctx, "GET", "/v1/vms/"+url.PathEscape(t.vm), nil, &v)
		return []wire.VMStatus{v}, err
	}
	var d wire.DriveStatus
	if err := c.client.do(ctx, "GET", drivePath(t), nil, &d); err != nil {
		return nil, err
	}
	var v wire.VMStatus
	if d.Tray == "" { // QEMU didn't answer: the machine's status says why
		err = c.client.do(ctx, "GET", "/v1/vms/"+url.PathEscape(t.vm), nil, &v)
	}
	v.Drives = []wire.DriveStatus{d}
	return []wire.VMStatus{v}, err
}

func driveRow(w io.Writer, d wire.DriveStatus) {
	lock, medium, op, last := "", "", "", ""
	if d.Tray != "" {
		lock = "free"
	}
	if d.Locked {
		lock = "locked"
	}
	if m := d.Medium; m != nil {
		medium = m.Name
		if m.VolumeID != "" {
			medium += " (" + m.VolumeID + ")"
		}
	}
	if o := d.Operation; o != nil {
		op = o.Verb + " " + string(o.Phase)
	}
	if o := d.Last; o != nil {
		last = fmt.Sprintf("%s %s %s", o.Verb, o.Result, o.At.Local().Format("15:04:05"))
		if o.Recovered {
			last += " (recovered)"
		}
	}
	row(w, d.VM+"/"+d.Name, string(d.Bus), d.State, d.Tray, lock, medium, op, last)
}

func (c *cli) eventsCommand() *cobra.Command {
	return &cobra.Command{
		Use: "events", Short: "Follow what happens, until interrupted",
		Long:    "Follows what happens, one line each; with -o json one object a line.",
		Example: "  trayctl events\n  trayctl events -o json | jq 'select(.type == \"guest-ejected\")'",
		Args:    cobra.NoArgs,
		RunE: ran(func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			stream, err := c.client.send(ctx, "GET", "/v1/events", nil, 0)
			if err != nil {
				return err
			}
			defer stream.Close()
			lines := bufio.NewScanner(stream)
			for lines.Scan() {
				if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
					c.printEvent(data)
				}
			}
			if ctx.Err() != nil {
				return nil
			}
			return &unreachableError{socket: c.client.String(), err: fmt.Errorf("the stream of events ended: %w", io.ErrUnexpectedEOF)}
		}),
	}
}

func (c *cli) printEvent(data string) {
	var e wire.Event
	if c.output == "json" || json.Unmarshal([]byte(data), &e) != nil {
		fmt.Fprintln(c.stdout, data)
		return
	}
	where := e.VM
	if e.Drive != "" {
		where += "/" + e.Drive
	}
	fmt.Fprintf(&visible{c.stdout}, "%s  %-14s %-16s %s\n", e.Time.Local().Format("15:04:05.000"), e.Type, where, e.Detail)
}

func (c *cli) stateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "state show|check", DisableFlagsInUseLine: true, Short: "Show or check what trayd has recorded",
		Long:    "Shows what trayd has recorded, or checks it against QEMU and the kernel. For the\nstate file itself, without a running agent, see `trayd state`.",
		Example: "  trayctl state show\n  trayctl state check",
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("unknown command %q for \"trayctl state\": use show or check", args[0])
			}
			return errors.New("trayctl state: use show or check")
		},
	}
	cmd.AddCommand(
		&cobra.Command{
			Use: "show", Short: "Show the records", Example: "  trayctl state show", Args: cobra.NoArgs,
			RunE: ran(func(cmd *cobra.Command, _ []string) error {
				var whole json.RawMessage // for programs every word of it
				if err := c.client.do(cmd.Context(), "GET", "/v1/state", nil, &whole); err != nil {
					return err
				}
				var records []record
				if err := json.Unmarshal(whole, &records); err != nil {
					return err
				}
				return c.print(whole, func(w io.Writer) { recordTable(w, records) })
			}),
		},
		&cobra.Command{
			Use: "check", Short: "Check the records against QEMU and the kernel; exit code 1 when they don't agree",
			Example: "  trayctl state check", Args: cobra.NoArgs,
			RunE: ran(func(cmd *cobra.Command, _ []string) error {
				var findings []wire.Finding
				if err := c.client.do(cmd.Context(), "GET", "/v1/state/check", nil, &findings); err != nil {
					return err
				}
				err := c.print(findings, func(w io.Writer) {
					if len(findings) == 0 {
						fmt.Fprintln(w, "ok: the records, QEMU and the kernel agree")
					}
					for _, f := range findings {
						fmt.Fprintf(w, "%s\nnext: %s\n", finding(f), f.Next)
					}
				})
				if err == nil && len(findings) > 0 {
					return errFindings
				}
				return err
			}),
		})
	return cmd
}

// finding is one with its place, if it has one.
func finding(f wire.Finding) string {
	return strings.TrimPrefix(strings.Trim(f.VM+"/"+f.Drive, "/")+": "+f.Problem, ": ")
}

// record is what the table shows of one.
type record struct {
	VM, Drive string
	Loaded    *struct {
		Medium struct{ Name string }
		Since  time.Time
	}
	Change    *struct{ Kind, ID string }
	Releasing []struct {
		Volume struct{ Kind, Name string }
	}
	Last *wire.Outcome
}

func recordTable(w io.Writer, records []record) {
	row(w, "DRIVE", "LOADED", "SINCE", "UNDER WAY", "LAST")
	for _, r := range records {
		loaded, since, change, last := "", "", "", ""
		if r.Loaded != nil {
			loaded, since = r.Loaded.Medium.Name, r.Loaded.Since.Local().Format("2006-01-02 15:04:05")
		}
		if r.Change != nil {
			change = fmt.Sprintf("%s (%s)", r.Change.Kind, r.Change.ID)
		}
		for _, q := range r.Releasing {
			change += fmt.Sprintf(" releasing %s:%s", q.Volume.Kind, q.Volume.Name)
		}
		if r.Last != nil {
			last = fmt.Sprintf("%s %s", r.Last.Verb, r.Last.Result)
		}
		row(w, r.VM+"/"+r.Drive, loaded, since, change, last)
	}
}
