package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/trayd/trayd/state"
)

// stateCommand is what can be done with a state file without a running agent.
func (c *cli) stateCommand() *cobra.Command {
	state := &cobra.Command{
		Use:   "state",
		Short: "Show, check or repair the state file, without a running agent",
		Long: `Shows, checks or repairs the state file, without a running agent. FILE is by default
state.journal in the state_dir of the configuration. A running agent is asked with
"trayctl state" instead.`,
		Example: "  trayd state show\n  trayd state check /var/lib/trayd/state.journal\n  trayd state repair",
		Args:    cobra.NoArgs,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if c.output != "table" && c.output != "json" {
				return fmt.Errorf("no output format %q: use table or json", c.output)
			}
			return nil
		},
		RunE: func(*cobra.Command, []string) error { return errors.New("use show, check or repair") },
	}
	state.PersistentFlags().StringVarP(&c.output, "output", "o", "table", "output format: table or json")
	add := func(use, short, long, example string, f func(path string) error) {
		state.AddCommand(&cobra.Command{
			Use: use + " [FILE]", Short: short, Long: long, Example: example,
			Args: cobra.MaximumNArgs(1),
			RunE: ran(func(args []string) error {
				if len(args) == 1 {
					return f(args[0])
				}
				path, err := stateFileOf(c.config)
				if err != nil {
					return err
				}
				return f(path)
			}),
		})
	}
	add("show", "Print what the state file says", `Prints every key of the state file with its value. Of a damaged file it prints what is
intact, and exits with 1.`, "  trayd state show\n  trayd state show -o json | jq .values", c.showState)
	add("check", "Say whether the state file is intact", `Says whether the state file is intact, changing nothing. It exits with 1 when trayd
would refuse the file. A last line that a crash tore is no damage: trayd drops it.`, "  trayd state check\n  trayd state check -o json", c.checkState)
	add("repair", "Save what is intact in a damaged state file", `Saves what is intact in a damaged state file: every key gets its last intact value.
The damaged file is kept beside it. trayd must not run.`, "  systemctl stop trayd.socket trayd\n  trayd state repair\n  systemctl start trayd.socket trayd", c.repairState)
	return state
}

func (c *cli) showState(path string) error {
	values, report, err := state.Read(path)
	var damage *state.DamageError
	if err != nil && !errors.As(err, &damage) {
		return err
	}
	out := struct {
		Values map[string]json.RawMessage `json:"values"`
		Report *state.Report              `json:"report"`
	}{values, report}
	if e := c.print(out, func(w io.Writer) {
		fmt.Fprintln(w, "KEY\tVALUE")
		for _, key := range slices.Sorted(maps.Keys(values)) {
			fmt.Fprintf(w, "%s\t%s\n", key, values[key])
		}
	}); e != nil {
		return e
	}
	return err
}

func (c *cli) checkState(path string) error {
	report, err := state.Check(path)
	if err != nil {
		return err
	}
	if err := c.print(report, func(w io.Writer) { describe(w, report) }); err != nil {
		return err
	}
	if report.Damage != nil {
		return errFindings
	}
	return nil
}

func (c *cli) repairState(path string) error {
	report, err := state.Repair(path)
	if report == nil {
		if errors.Is(err, state.ErrLocked) {
			return fmt.Errorf("trayd runs, and its state file is not repaired beneath it: %w", err)
		}
		return err
	}
	if e := c.print(report, func(w io.Writer) {
		describe(w, report)
		switch {
		case err != nil:
		case report.Copy == "":
			fmt.Fprintln(w, "repaired:\tnothing, since nothing was wrong")
		default:
			fmt.Fprintf(w, "repaired:\t%d keys were saved\n", report.Keys)
			fmt.Fprintf(w, "copy:\t%s is the file as it was\n", report.Copy)
		}
	}); e != nil {
		return errors.Join(err, e)
	}
	return err
}

// describe says in words what a report holds.
func describe(w io.Writer, r *state.Report) {
	fmt.Fprintf(w, "file:\t%s, %d bytes\n", r.Path, r.Bytes)
	fmt.Fprintf(w, "holds:\t%d keys in %d records, sequence %d to %d\n", r.Keys, r.Records, r.FirstSequence, r.LastSequence)
	switch {
	case r.Damage != nil:
		fmt.Fprintf(w, "damaged:\tline %d: %s\n", r.Damage.Line, r.Damage.Reason)
	case r.Torn:
		fmt.Fprintf(w, "torn:\tthe last %d bytes, which a crash left (or trayd is writing now); nothing acknowledged is in them\n", r.TornBytes)
	default:
		fmt.Fprintln(w, "intact:\tyes")
	}
	for _, l := range r.Lost {
		key := l.Key
		if key == "" {
			key = "an unknown key"
		}
		what := "its value"
		if l.OlderValue {
			what = "its newest value; an older one is there"
		}
		fmt.Fprintf(w, "lost:\tline %d, %s: %s (%s)\n", l.Line, key, what, l.Reason)
	}
	if r.Damage != nil && r.Copy == "" {
		fmt.Fprintf(w, "next:\t`trayd state repair %s` saves what is intact\n", r.Path)
	}
}

// print prints v as JSON, or as the table that human writes.
func (c *cli) print(v any, human func(w io.Writer)) error {
	if c.output == "json" {
		e := json.NewEncoder(c.stdout)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		return e.Encode(v)
	}
	w := tabwriter.NewWriter(c.stdout, 0, 8, 2, ' ', 0)
	human(w)
	return w.Flush()
}
