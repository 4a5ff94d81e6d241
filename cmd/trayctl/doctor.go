package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/trayd/trayd/internal/wire"
)

// hereLimit is how long looking at one thing of this host may take.
const hereLimit = 2 * time.Second

// errUnwell ends a doctor's visit that found a failure; it has been printed already.
var errUnwell = errors.New("something has failed")

func (c *cli) doctorCommand() *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use: "doctor", Short: "Check this host, and say what to do", Args: cobra.NoArgs,
		Long: `Checks this host: QEMU, monitors, media roots, block storage, space, clock, sandbox, units,
groups, and what is stuck. It says all that it can when trayd doesn't answer, too.

It ends with 1 when something has failed; warnings are no failure.`,
		Example: "  trayctl doctor\n  trayctl doctor --quiet\n  trayctl doctor -o json",
		RunE: ran(func(cmd *cobra.Command, _ []string) error {
			all := c.examine(cmd.Context())
			if quiet {
				all = slices.DeleteFunc(all, func(k wire.Check) bool { return k.Result == wire.CheckOK || k.Result == wire.CheckSkipped })
			}
			if err := c.print(all, func(w io.Writer) { checkTable(w, all, quiet) }); err != nil {
				return err
			}
			if slices.ContainsFunc(all, func(k wire.Check) bool { return k.Result == wire.CheckFailed }) {
				return errUnwell
			}
			return nil
		}),
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "only what isn't right")
	return cmd
}

// marks are those of the results, for those who see no colour.
var marks = map[wire.CheckResult]string{wire.CheckOK: "ok", wire.CheckWarning: "!", wire.CheckFailed: "FAIL", wire.CheckSkipped: "-"}

func checkTable(w io.Writer, all []wire.Check, quiet bool) {
	if len(all) == 0 {
		fmt.Fprintln(w, "nothing is wrong")
		return
	}
	area := ""
	counts := make(map[wire.CheckResult]int)
	for _, k := range all {
		counts[k.Result]++
		name := k.Area
		if name == area {
			name = " "
		}
		area = k.Area
		row(w, marks[k.Result], name, k.Name, k.Detail)
		if k.Next != "" {
			row(w, " ", " ", " ", "next: "+k.Next)
		}
	}
	if !quiet {
		fmt.Fprintf(w, "\n%d ok, %d to look at, %d failed, %d skipped\n", counts[wire.CheckOK], counts[wire.CheckWarning], counts[wire.CheckFailed], counts[wire.CheckSkipped])
	}
}

// examine looks at what only the caller sees, and asks trayd for the rest.
func (c *cli) examine(ctx context.Context) []wire.Check {
	var (
		work        sync.WaitGroup
		here, there []wire.Check
	)
	if c.host.tls == nil {
		work.Go(func() { here = c.hereChecks(ctx) })
	}
	work.Go(func() { there = c.thereChecks(ctx) })
	work.Wait()
	return append(here, there...)
}

// thereChecks are trayd's own.
func (c *cli) thereChecks(ctx context.Context) []wire.Check {
	var all []wire.Check
	err := c.client.do(ctx, "GET", "/v1/doctor", nil, &all)
	if err == nil {
		return append([]wire.Check{{Area: "trayd", Name: "answer", Result: wire.CheckOK, Detail: "trayd answers at " + c.host.String()}}, all...)
	}
	k := wire.Check{Area: "trayd", Name: "answer", Result: wire.CheckFailed, Detail: err.Error()}
	var unreachable *unreachableError
	var problem *wire.Problem
	switch {
	case errors.As(err, &unreachable):
		k.Next = unreachable.next()
	case errors.As(err, &problem):
		k.Next = problem.Next
	}
	return []wire.Check{k}
}

// hereChecks are of this host, as the caller sees it.
func (c *cli) hereChecks(ctx context.Context) []wire.Check {
	all := []wire.Check{socketCheck(c.host.socket), c.youCheck(ctx)}
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return append(all, wire.Check{Area: "systemd", Name: "units", Result: wire.CheckSkipped, Detail: "this host's init is not systemd"})
	}
	for _, unit := range []string{"trayd.socket", "trayd.service"} {
		all = append(all, unitCheck(unit, showUnit(ctx, unit)))
	}
	all = append(all, brokerCheck(showUnit(ctx, brokerUnit)))
	return append(all, configCheck(ctx))
}

func socketCheck(socket string) wire.Check {
	k := wire.Check{Area: "trayd", Name: "socket", Result: wire.CheckOK, Detail: socket}
	st, err := os.Stat(socket)
	switch {
	case err != nil:
		k.Result, k.Detail, k.Next = wire.CheckFailed, err.Error(), "`systemctl enable --now trayd.socket trayd`; another place: --socket or $TRAYD_SOCKET"
	case st.Mode()&os.ModeSocket == 0:
		k.Result, k.Detail, k.Next = wire.CheckFailed, socket+" is no socket", "move it away, then `systemctl restart trayd.socket`"
	}
	return k
}

// youCheck says what the caller may. trayd knows, as the groups' names are its configuration's;
// where it doesn't answer the usual ones say something.
func (c *cli) youCheck(ctx context.Context) wire.Check {
	k := groupCheck(os.Getuid(), memberNow, memberLater)
	ctx, cancel := context.WithTimeout(ctx, hereLimit)
	defer cancel()
	var s wire.Session
	var refused *wire.Problem
	err := c.client.do(ctx, "GET", "/v1/session", nil, &s)
	switch {
	case err == nil && (s.Role != "view" || !memberLater(changeGroup)):
		return wire.Check{Area: k.Area, Name: k.Name, Result: wire.CheckOK, Detail: "you are " + s.Name + " to trayd, with the role " + s.Role}
	case errors.As(err, &refused) && refused.Code == string(wire.Forbidden) && !memberLater(changeGroup) && !memberLater(viewGroup):
		return wire.Check{Area: k.Area, Name: k.Name, Result: wire.CheckWarning, Detail: refused.Detail, Next: refused.Next}
	}
	return k
}

const (
	changeGroup = "trayd"
	viewGroup   = "trayd-view"
)

// groupCheck says what the caller may. A membership counts from the next login on, which
// people forget: now is what this process has, later what /etc/group says.
func groupCheck(uid int, now, later func(group string) bool) wire.Check {
	k := wire.Check{Area: "access", Name: "you", Result: wire.CheckOK}
	switch {
	case uid == 0:
		k.Detail = "you are root: you may do everything"
	case now(changeGroup):
		k.Detail = "you are in the group " + changeGroup + ": you may change discs, machines and images"
	case later(changeGroup):
		k.Result, k.Detail, k.Next = wire.CheckWarning, "you were put into the group "+changeGroup+" after you logged in", "log in again, or `newgrp "+changeGroup+"`"
	case now(viewGroup):
		k.Detail = "you are in the group " + viewGroup + ": you may look"
	case later(viewGroup):
		k.Result, k.Detail, k.Next = wire.CheckWarning, "you were put into the group "+viewGroup+" after you logged in", "log in again, or `newgrp "+viewGroup+"`"
	default:
		k.Result, k.Detail, k.Next = wire.CheckWarning, "you are neither root nor in a group that may use trayd", "`sudo usermod -aG "+changeGroup+" $USER`, then log in again"
	}
	return k
}

func memberNow(group string) bool {
	g, err := user.LookupGroup(group)
	if err != nil {
		return false
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		return false
	}
	groups, err := os.Getgroups()
	return err == nil && (slices.Contains(groups, gid) || os.Getgid() == gid)
}

func memberLater(group string) bool {
	g, err := user.LookupGroup(group)
	if err != nil {
		return false
	}
	u, err := user.Current()
	if err != nil {
		return false
	}
	groups, err := u.GroupIds()
	return err == nil && slices.Contains(groups, g.Gid)
}

// showUnit asks systemd about a unit; nil where it doesn't answer.
func showUnit(ctx context.Context, unit string) map[string]string {
	ctx, cancel := context.WithTimeout(ctx, hereLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "systemctl", "show", "--property=LoadState,ActiveState,SubState,UnitFileState,NRestarts,Result", unit)
	cmd.WaitDelay = hereLimit
	out, err := cmd.Output()
	if err != nil {
		return nil
	}
	all := make(map[string]string)
	for line := range strings.Lines(string(out)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		all[name] = value
	}
	return all
}

// unitCheck judges a unit's state.
func unitCheck(unit string, is map[string]string) wire.Check {
	k := wire.Check{Area: "systemd", Name: unit, Result: wire.CheckOK, Detail: is["ActiveState"] + " (" + is["SubState"] + "), " + is["UnitFileState"]}
	switch {
	case is == nil:
		k.Result, k.Detail, k.Next = wire.CheckSkipped, "systemctl doesn't say", ""
	case is["LoadState"] == "not-found":
		k.Result, k.Detail, k.Next = wire.CheckWarning, "there is no such unit: trayd was not installed as a service", "`sudo make install`, then `sudo systemctl enable --now trayd.socket trayd`"
	case is["ActiveState"] == "failed":
		k.Result, k.Detail, k.Next = wire.CheckFailed, "it has failed ("+is["Result"]+")", "`journalctl -u "+unit+" -n 50` says why; then `systemctl restart "+unit+"`"
	case is["ActiveState"] != "active":
		k.Result, k.Next = wire.CheckFailed, "`sudo systemctl enable --now trayd.socket trayd`"
	case is["UnitFileState"] != "enabled":
		k.Result, k.Next = wire.CheckWarning, "`sudo systemctl enable "+unit+"`: else it isn't there after the next boot"
	case is["NRestarts"] != "" && is["NRestarts"] != "0":
		k.Result, k.Detail, k.Next = wire.CheckWarning, k.Detail+", started anew "+is["NRestarts"]+" times since the boot", "`journalctl -u "+unit+"` says why it ended"
	}
	return k
}

// brokerUnit is the way to the network that trayd has as a unit.
const brokerUnit = "trayd-network.socket"

// brokerCheck judges its state: trayd.service starts it, so that nobody enables it.
func brokerCheck(is map[string]string) wire.Check {
	k := wire.Check{Area: "systemd", Name: brokerUnit, Result: wire.CheckOK, Detail: is["ActiveState"] + " (" + is["SubState"] + ")"}
	switch {
	case is == nil:
		k.Result, k.Detail = wire.CheckSkipped, "systemctl doesn't say"
	case is["LoadState"] == "masked":
		k.Result, k.Detail = wire.CheckSkipped, "it is masked: trayd has no network, and downloads nothing"
	case is["LoadState"] == "not-found":
		k.Result, k.Detail, k.Next = wire.CheckWarning, "there is no such unit: as a service trayd has no other way to the network", "`sudo make install`, then `sudo systemctl restart trayd.socket trayd`"
	case is["ActiveState"] != "active":
		k.Result, k.Next = wire.CheckFailed, "`sudo systemctl restart trayd`; `journalctl -u "+brokerUnit+" -u trayd-network` says why it ended"
	}
	return k
}

// configCheck has trayd say whether its configuration is right.
func configCheck(ctx context.Context) wire.Check {
	k := wire.Check{Area: "trayd", Name: "configuration", Result: wire.CheckOK}
	ctx, cancel := context.WithTimeout(ctx, hereLimit)
	defer cancel()
	path, err := exec.LookPath("trayd")
	if err != nil {
		k.Result, k.Detail, k.Next = wire.CheckWarning, "trayd is not in PATH", "is it installed (`sudo make install`)?"
		return k
	}
	cmd := exec.CommandContext(ctx, path, "--check-config")
	cmd.WaitDelay = hereLimit
	out, err := cmd.CombinedOutput()
	k.Detail = strings.TrimSpace(string(out))
	switch {
	case strings.Contains(k.Detail, "permission denied"):
		k.Result = wire.CheckSkipped
	case err != nil:
		k.Result, k.Next = wire.CheckFailed, "mend it; `trayd --print-config` shows every key, `systemctl reload trayd` takes it over"
	}
	return k
}
