package doctor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/trayd/trayd/internal/wire"
)

// monitors looks at the sockets of machines: those that answer, and those that don't.
func (d *Doctor) monitors(ctx context.Context) []Check {
	var all []Check
	vms := d.o.Agent.VMs(ctx)
	for _, glob := range d.o.Config().Monitors {
		found, _ := filepath.Glob(glob) // checked with the configuration
		if _, err := os.ReadDir(filepath.Dir(glob)); err != nil && !strings.ContainsAny(filepath.Dir(glob), "*?[") {
			all = append(all, warning("monitors", glob, "make the directory, let the user trayd read it, and give machines -qmp unix:"+strings.Replace(glob, "*", "NAME", 1)+",server=on,wait=off",
				"trayd can't look there: %v", err))
			continue
		}
		all = append(all, judgeSockets(glob, found, vms)...)
	}
	for _, v := range vms {
		if c, ok := judgeMonitor(v); ok {
			all = append(all, c)
		}
	}
	return all
}

// judgeSockets finds sockets that no machine listens on.
func judgeSockets(glob string, found []string, vms []wire.VMStatus) []Check {
	attached := 0
	var all []Check
	for _, path := range found {
		i := slices.IndexFunc(vms, func(v wire.VMStatus) bool { return v.Socket == path })
		switch {
		case i < 0:
			all = append(all, warning("monitors", path, "remove it, if no QEMU is about to listen there", "nobody listens on this socket"))
		case vms[i].Answered:
			attached++
		}
	}
	return append([]Check{ok("monitors", glob, "%d sockets, %d machines answer", len(found), attached)}, all...)
}

// judgeMonitor says why a machine that should answer doesn't.
func judgeMonitor(v wire.VMStatus) (Check, bool) {
	if v.Answered || v.State != "unreachable" {
		return Check{}, false
	}
	return failed("monitors", v.Name, v.Next, "%s", v.Reason), true
}

// machines looks at those of trayd's own: how they ended, and what they show.
func (d *Doctor) machines(ctx context.Context) []Check {
	var all []Check
	own := 0
	for _, v := range d.o.Agent.VMs(ctx) {
		if !v.Own {
			continue
		}
		own++
		one, err := d.o.Agent.VM(ctx, v.Name)
		if err != nil {
			continue // it was removed meanwhile
		}
		all = append(all, judgeMachine(one)...)
	}
	if own == 0 {
		return []Check{skipped("machines", "own machines", "there are none")}
	}
	if len(all) == 0 {
		all = append(all, ok("machines", "own machines", "%d, none of which says anything", own))
	}
	return all
}

func judgeMachine(v wire.VMStatus) []Check {
	var all []Check
	show := "`trayctl vm show " + v.Name + "`"
	if v.State == wire.VMFailed {
		all = append(all, failed("machines", v.Name, "`trayctl vm start "+v.Name+"` starts it again; "+show+" says more", "it has failed: %s", v.Reason))
	}
	m := v.Machine
	if m == nil {
		return all
	}
	if v.State != wire.VMStopped && len(m.Notes) > 0 { // one that is stopped may be in the making
		all = append(all, warning("machines", v.Name, show+", `trayctl vm screenshot "+v.Name+"`", "%s", strings.Join(m.Notes, "; ")))
	}
	return all
}

// stuckAfter is how long past its deadline an operation counts as stuck, and how long one
// without a deadline may be unsettled.
const stuckAfter = 30 * time.Second

// operations looks for what is under way for too long.
func (d *Doctor) operations(context.Context) []Check {
	running := d.o.Agent.Operations(true)
	all := judgeOperations(running, time.Now())
	if len(all) == 0 {
		all = []Check{ok("operations", "under way", "%d, none of which is stuck", len(running))}
	}
	return all
}

func judgeOperations(running []*wire.OperationStatus, now time.Time) []Check {
	var all []Check
	for _, o := range running {
		on := o.VM + "/" + o.Drive
		switch {
		case o.Drive == "":
		case o.Phase == wire.Unsettled && now.Sub(o.Since) > stuckAfter:
			all = append(all, failed("operations", o.ID, "is QEMU stopped, or its storage stalled? The drive settles by itself as soon as QEMU answers", "%s on %s has not been settled since %s: QEMU doesn't answer", o.Verb, on, clock(o.Since)))
		case o.Deadline != nil && now.Sub(*o.Deadline) > stuckAfter:
			all = append(all, failed("operations", o.ID, "`trayctl cancel "+on+"`", "%s on %s should have ended at %s", o.Verb, on, clock(*o.Deadline)))
		case o.Phase == wire.Waiting:
			all = append(all, warning("operations", o.ID, "unmount the disc in the guest, or `trayctl cancel "+on+"`, or `trayctl force "+on+"`", "%s on %s waits for the guest since %s", o.Verb, on, clock(o.Since)))
		}
	}
	return all
}

func clock(t time.Time) string { return t.Local().Format("15:04:05") }

// stuckImage is how long nothing of an image may have come.
const stuckImage = time.Minute

// images looks for those that will not be ready by themselves.
func (d *Doctor) images(context.Context) []Check {
	images := d.o.Agent.Images()
	all := judgeImages(images, time.Now())
	if len(all) == 0 {
		all = []Check{ok("images", "library", "%d, none of which has failed or is stuck", len(images))}
	}
	return all
}

func judgeImages(images []wire.Image, now time.Time) []Check {
	var all []Check
	for _, i := range images {
		switch {
		case i.State == wire.ImageFailed && i.Failure != nil:
			all = append(all, failed("images", i.Name, i.Failure.Remedy+"; then `trayctl image retry "+i.Name+"`, or `trayctl image rm "+i.Name+"`", "it could not be had: %s", i.Failure.Cause))
		case i.Failure != nil:
			all = append(all, failed("images", i.Name, i.Failure.Remedy, "%s", i.Failure.Cause))
		case i.Progress != nil && i.Progress.Waiting != "":
			all = append(all, warning("images", i.Name, "see the source; `trayctl image cancel "+i.Name+"` gives it up", "its download waits: %s", i.Progress.Waiting))
		case i.State == wire.ImageAllocated && now.Sub(i.Added) > stuckImage:
			all = append(all, warning("images", i.Name, "`trayctl image ls` shows what is before it", "it waits for its turn since %s", i.Added.Local().Format(time.DateTime)))
		}
	}
	return all
}

// volumes looks for those that should be off.
func (d *Doctor) volumes(ctx context.Context) []Check {
	volumes := d.o.Agent.Volumes(ctx)
	var all []Check
	for _, v := range volumes {
		switch {
		case v.Error != "":
			all = append(all, failed("volumes", v.Volume, "is lvm2 or the device there? `trayctl volumes` shows it", "%s", v.Error))
		case v.Waiting != "":
			all = append(all, warning("volumes", v.Volume, "what holds it has to end; trayd goes on trying", "it can't be released: %s", v.Waiting))
		case v.Active && len(v.Users) == 0:
			all = append(all, warning("volumes", v.Volume, "`trayctl volumes gc` releases it", "it is active and belongs to nobody"))
		}
	}
	if len(all) == 0 {
		all = []Check{ok("volumes", "in use", "%d, none of which is left over", len(volumes))}
	}
	return all
}

// state compares the records with QEMU and the kernel.
func (d *Doctor) state(ctx context.Context) []Check {
	var all []Check
	for _, f := range d.o.Agent.Check(ctx) {
		if f.VM != "" && f.Drive == "" && strings.Contains(f.Next, "nothing is known") {
			continue // a machine that doesn't answer: monitors says it
		}
		all = append(all, failed("state", strings.Trim(f.VM+"/"+f.Drive, "/"), f.Next, "%s", f.Problem))
	}
	file := d.o.Config().StateFile()
	st, err := os.Stat(file)
	switch {
	case err != nil:
		all = append(all, failed("state", "file", "see `trayd state check`", "%v", err))
	case len(all) == 0:
		all = append(all, ok("state", "file", "%s, %s, agrees with QEMU and the kernel", file, bytesOf(uint64(st.Size()))))
	}
	return all
}

// The times at which a certificate's end is told of.
const certificateSoon = 21 * 24 * time.Hour

// access looks at what lets others in.
func (d *Doctor) access(context.Context) []Check {
	c := d.o.Config()
	if len(c.API.Listen) == 0 {
		return []Check{ok("access", "network", "trayd listens on no port")}
	}
	all := []Check{ok("access", "network", "trayd listens at %s", fmt.Sprint(c.API.Listen))}
	all = append(all, judgeCertificate(d.o.Certificate(), time.Now()))
	return append(all, judgeTokens(d.o.Tokens(), time.Now())...)
}

func judgeCertificate(end, now time.Time) Check {
	const next = "renew it: trayd reads the new one by itself (api.cert_file)"
	switch {
	case end.IsZero():
		return skipped("access", "certificate", "it has not been loaded")
	case now.After(end):
		return failed("access", "certificate", next, "it is over since %s", end.Format(time.DateOnly))
	case end.Sub(now) < certificateSoon:
		return warning("access", "certificate", next, "it ends on %s", end.Format(time.DateOnly))
	}
	return ok("access", "certificate", "it counts until %s", end.Format(time.DateOnly))
}

func judgeTokens(tokens []wire.Token, now time.Time) []Check {
	var all []Check
	for _, t := range tokens {
		switch {
		case t.Expires.IsZero() && t.Role == "admin":
			all = append(all, warning("access", "token "+t.Name, "make one that expires, and `trayctl token revoke "+t.Name+"`", "it has the role admin and never expires"))
		case !t.Expires.IsZero() && now.After(t.Expires):
			all = append(all, warning("access", "token "+t.Name, "`trayctl token revoke "+t.Name+"`", "it expired on %s", t.Expires.Format(time.DateOnly)))
		}
	}
	if len(all) == 0 {
		all = append(all, ok("access", "tokens", "%d", len(tokens)))
	}
	return all
}
