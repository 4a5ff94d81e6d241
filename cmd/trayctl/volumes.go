package main

import (
	"errors"
	"fmt"
	"io"
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
