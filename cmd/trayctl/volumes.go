package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/trayd/trayd/internal/wire"
)

func (c *cli) volumesCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "volumes", Short: "List the volumes that discs are on: active for whom, or waiting for release",
		Long:    "Lists the volumes that trayd has activated or uses: for which drives, and which wait\nfor their release and why. A volume is active as long as a drive uses it.",
		Example: "  trayctl volumes\n  trayctl volumes gc --dry-run",
		Args:    cobra.NoArgs,
		RunE: ran(func(cmd *cobra.Command, _ []string) error {
			var volumes []wire.VolumeStatus
			if err := c.client.do(cmd.Context(), "GET", "/v1/volumes", nil, &volumes); err != nil {
				return err
			}
			return c.print(volumes, func(w io.Writer) { volumeTable(w, volumes) })
		}),
	}
	var dry bool
	gc := &cobra.Command{
		Use: "gc", Short: "Release the volumes that carry trayd's mark and belong to nobody",
		Long:    "Releases the volumes that carry trayd's mark and that no record speaks of. Volumes of\nothers are never touched.",
		Example: "  trayctl volumes gc --dry-run\n  trayctl volumes gc", Args: cobra.NoArgs,
		RunE: ran(func(cmd *cobra.Command, _ []string) error { return c.collect(cmd, dry) }),
	}
	gc.Flags().BoolVar(&dry, "dry-run", false, "say which, and release none")
	cmd.AddCommand(gc)
	return cmd
}

func volumeTable(w io.Writer, volumes []wire.VolumeStatus) {
	row(w, "VOLUME", "ACTIVE", "USED BY", "WAITING FOR RELEASE")
	for _, v := range volumes {
		active := "no"
		if v.Active {
			active = "yes"
		}
		if v.Foreign {
			active += " (not by trayd)"
		}
		if v.Error != "" {
			active = "unknown"
		}
		waiting := v.Waiting
		if v.Since != nil {
			waiting += fmt.Sprintf(" (for %s, %d tries)", time.Since(*v.Since).Round(time.Second), v.Tries)
		}
		row(w, v.Volume, active, users(v), waiting)
	}
	for _, v := range volumes {
		if v.Error != "" {
			fmt.Fprintf(w, "\n%s: %s\n", v.Volume, v.Error)
		}
	}
}

// users are the drives that use a volume, for a table.
func users(v wire.VolumeStatus) string {
	var names []string
	for _, u := range v.Users {
		name := u.String()
		if u.State != wire.StateLoaded {
			name += " (" + u.State + ")"
		}
		names = append(names, name)
	}
	if len(names) == 0 {
		return "nobody"
	}
	return strings.Join(names, ", ")
}

// errKept ends a collection that could not release everything; it has been printed.
var errKept = errors.New("a volume could not be released")

func (c *cli) collect(cmd *cobra.Command, dry bool) error {
	path := "/v1/volumes/gc"
	if dry {
		path += "?dry_run=true"
	}
	var done []wire.Collected
	if err := c.client.do(cmd.Context(), "POST", path, nil, &done); err != nil {
		return err
	}
	kept := false
	err := c.print(done, func(w io.Writer) {
		if len(done) == 0 {
			fmt.Fprintln(w, "no volume of nobody")
		}
		for _, v := range done {
			switch {
			case dry:
				fmt.Fprintf(w, "%s would be released\n", v.Volume)
			case v.Error != "":
				fmt.Fprintf(w, "%s could not be released: %s\n", v.Volume, v.Error)
			default:
				fmt.Fprintf(w, "%s released\n", v.Volume)
			}
		}
	})
	for _, v := range done {
		kept = kept || v.Error != ""
	}
	if err == nil && kept {
		return errKept
	}
	return err
}

func (c *cli) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show this host on one screen: machines, drives, volumes, and what needs attention",
		Example: "  trayctl status\n  trayctl status -o json", Args: cobra.NoArgs,
		RunE: ran(func(cmd *cobra.Command, _ []string) error {
			var s wire.Summary
			if err := c.client.do(cmd.Context(), "GET", "/v1/status", nil, &s); err != nil {
				return err
			}
			return c.print(s, func(w io.Writer) { summaryTable(w, s) })
		}),
	}
}

// byState is how many there are in each state, in words.
func byState(counts map[string]int) string {
	var words []string
	for _, state := range slices.Sorted(maps.Keys(counts)) {
		words = append(words, fmt.Sprintf("%d %s", counts[state], state))
	}
	if len(words) == 0 {
		return "none"
	}
	return strings.Join(words, ", ")
}

func summaryTable(w io.Writer, s wire.Summary) {
	row(w, "trayd", fmt.Sprintf("%s (pid %d)", s.Version, s.PID))
	row(w, "machines", fmt.Sprintf("%d, %d attached", s.VMs.All, s.VMs.Attached))
	row(w, "drives", byState(s.Drives))
	row(w, "images", byState(s.Images))
	row(w, "operations", fmt.Sprint(len(s.Operations)))
	active, waiting := 0, 0
	for _, v := range s.Volumes {
		if v.Active {
			active++
		}
		if v.Waiting != "" {
			waiting++
		}
	}
	row(w, "volumes", fmt.Sprintf("%d active, %d waiting for release", active, waiting))
	for _, o := range s.Operations {
		fmt.Fprintf(w, "\n%s/%s: %s, %s since %s\n", o.VM, o.Drive, strings.TrimSpace(o.Verb+" "+o.Medium), o.Phase, o.Since.Local().Format("15:04:05"))
	}
	for _, f := range s.Problems {
		fmt.Fprintf(w, "\n%s\nnext: %s\n", finding(f), f.Next)
	}
	if len(s.Problems) == 0 {
		fmt.Fprintln(w, "\nnothing needs attention")
	}
}
