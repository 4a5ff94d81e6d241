package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/trayd/trayd/internal/wire"
)

func (c *cli) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Show this host on one screen: machines, drives, images, and what needs attention",
		Long: `Shows this host on one screen: each machine with what is in its drives and whether that can be
changed while it runs, images on their way, what is under way, and what needs attention: a
download that is stuck, a machine that has nothing to boot, a guest that is waited for.`,
		Example: "  trayctl status\n  trayctl status -o json", Args: cobra.NoArgs,
		RunE: ran(func(cmd *cobra.Command, _ []string) error {
			if c.output == "json" {
				var s wire.Summary
				if err := c.client.do(cmd.Context(), "GET", "/v1/status", nil, &s); err != nil {
					return err
				}
				return c.print(s, nil)
			}
			h, err := c.lookAround(cmd.Context())
			if err != nil {
				return err
			}
			return c.print(nil, h.table)
		}),
	}
}

// hostStatus is what the one screen shows.
type hostStatus struct {
	summary wire.Summary
	vms     []wire.VMStatus
	images  []wire.Image
}

func (c *cli) lookAround(ctx context.Context) (*hostStatus, error) {
	h := new(hostStatus)
	var (
		work sync.WaitGroup
		errs [3]error
	)
	for i, ask := range []struct {
		path string
		into any
	}{{"/v1/status", &h.summary}, {"/v1/vms", &h.vms}, {"/v1/images", &h.images}} {
		work.Go(func() { errs[i] = c.client.do(ctx, "GET", ask.path, nil, ask.into) })
	}
	work.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return h, nil
}

// maxShown is how many machines one screen shows.
const maxShown = 12

func (h *hostStatus) table(w io.Writer) {
	s := h.summary
	fmt.Fprintf(w, "trayd %s (pid %d), attached to %d of %d machines\n\n", s.Version, s.PID, s.VMs.Attached, s.VMs.All)
	if len(h.vms) > 0 {
		row(w, "MACHINE", "STATE", "DRIVE", "DISC", "CHANGE")
	}
	for i, v := range h.vms {
		if i == maxShown {
			fmt.Fprintf(w, "... and %d more: `trayctl drives`\n", len(h.vms)-i)
			break
		}
		machineRows(w, v)
	}
	if len(h.vms) > 0 {
		fmt.Fprintln(w)
	}
	h.counts(w)
	h.underWay(w)
	h.attention(w)
}

// machineRows show a machine, and what may be done to the discs in its drives now.
func machineRows(w io.Writer, v wire.VMStatus) {
	name, state := v.Name, v.State
	for _, d := range v.Drives {
		disc := d.State
		if d.Medium != nil {
			disc = d.Medium.Name
		}
		row(w, name, state, d.Name, disc, changeable(v, d))
		name, state = " ", " "
	}
	if len(v.Drives) == 0 {
		row(w, name, state, "", "", "")
	}
}

// changeable says whether the disc in a drive can be changed now.
func changeable(v wire.VMStatus, d wire.DriveStatus) string {
	switch {
	case d.Operation != nil && d.Operation.Deadline != nil:
		return fmt.Sprintf("%s waits for the guest, %s left", d.Operation.Verb, max(0, time.Until(*d.Operation.Deadline)).Round(time.Second))
	case d.Operation != nil:
		return d.Operation.Verb + " is under way"
	case v.Own && v.PID == 0:
		return "in its definition"
	case !v.Answered:
		return "not known"
	case !d.Changeable:
		return "no: " + d.Reason
	case d.Locked:
		return "the guest holds the door"
	}
	return "yes"
}

// counts are one line each.
func (h *hostStatus) counts(w io.Writer) {
	s := h.summary
	active, waiting := 0, 0
	for _, v := range s.Volumes {
		if v.Active {
			active++
		}
		if v.Waiting != "" {
			waiting++
		}
	}
	row(w, "drives", byState(s.Drives))
	row(w, "images", byState(s.Images))
	row(w, "volumes", fmt.Sprintf("%d active, %d waiting for release", active, waiting))
}

// underWay is what is on its way.
func (h *hostStatus) underWay(w io.Writer) {
	for _, o := range h.summary.Operations {
		fmt.Fprintf(w, "\n%s/%s: %s, %s since %s\n", o.VM, o.Drive, strings.TrimSpace(o.Verb+" "+o.Medium), o.Phase, o.Since.Local().Format("15:04:05"))
	}
	for _, i := range h.images {
		switch i.State {
		case wire.ImageAllocated:
			fmt.Fprintf(w, "\n%s: allocated, waits for its turn since %s\n", i, i.Added.Local().Format("15:04:05"))
		case wire.ImageDownloading, wire.ImageVerifying, wire.ImageRemoving:
			fmt.Fprintf(w, "\n%s: %s\n", i, imageProgress(i))
		}
	}
}

// imageProgress is how far an image is, in words.
func imageProgress(i wire.Image) string {
	text := string(i.State)
	p := i.Progress
	if p == nil {
		return text
	}
	if p.Total > 0 {
		text += fmt.Sprintf(" %d%% of %s", 100*p.Bytes/p.Total, humanBytes(p.Total))
	} else {
		text += " " + humanBytes(p.Bytes)
	}
	if p.Rate > 0 {
		text += fmt.Sprintf(", %s/s", humanBytes(p.Rate))
	}
	if p.Left > 0 {
		text += fmt.Sprintf(", %s left", time.Duration(p.Left)*time.Second)
	}
	if p.Waiting != "" {
		text += ", waits: " + p.Waiting
	}
	return text
}

// attention is what needs somebody's.
func (h *hostStatus) attention(w io.Writer) {
	for _, f := range h.summary.Problems {
		fmt.Fprintf(w, "\n%s\nnext: %s\n", finding(f), f.Next)
	}
	for _, k := range h.summary.Attention {
		fmt.Fprintf(w, "\n%s: %s\nnext: %s\n", k.Name, k.Detail, k.Next)
	}
	if len(h.summary.Problems)+len(h.summary.Attention) == 0 {
		fmt.Fprintln(w, "\nnothing needs attention")
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
