package fault

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/trayd/trayd/blockdev"
	"github.com/trayd/trayd/integration/peer"
	"github.com/trayd/trayd/internal/qemutest"
)

// finding is what one look found wrong; "" is well.
type finding struct {
	lost   string // the disc that should be in isn't
	untrue string // the status isn't so
	left   string // something is left
	silent bool   // there is no status
	busy   bool   // the contender says that it isn't done
	volume string // what the guest reads
}

func (f finding) good() bool { return f.lost == "" && f.untrue == "" && f.left == "" }

// unread is what a guest reads off a disc that can't be read.
const unread = "an unreadable disc"

// drive is what QEMU and the guest say.
type drive struct {
	volume   string // what the guest reads
	open     bool
	inserted bool // QEMU has a disc in it, whether the guest can read it or not
}

func (d drive) String() string {
	what := d.volume
	switch {
	case what == none && d.inserted:
		what = "a disc that the guest can't reach"
	case what == none:
		what = "no disc"
	}
	if d.open {
		return what + ", tray open"
	}
	return what
}

// look looks at the drive once.
func (r *Rig) look(ctx context.Context, may []string) (f finding) {
	d, err := r.drive(ctx)
	if err != nil {
		f.lost = "QEMU doesn't say: " + err.Error()
		return f
	}
	f.volume = d.volume
	// An open tray is right where the guest opened it.
	if !slices.Contains(may, d.volume) || d.open && !slices.Contains(may, none) {
		f.lost = "in the drive: " + d.String()
	}
	f.untrue = r.untrue
	says, err := r.contender.Says(ctx)
	switch {
	case errors.Is(err, peer.ErrNoStatus):
		f.silent, f.untrue = true, ""
	case err != nil:
		f.untrue = "no answer about the status"
	case f.untrue == "":
		f.untrue, f.busy = r.compare(d, says[vm]), says[vm].Busy
	}
	f.left = r.left(ctx, d)
	return f
}

func (r *Rig) drive(ctx context.Context) (drive, error) {
	var d drive
	all, err := blockdev.ObserveAll(ctx, r.side)
	if err != nil {
		return d, err
	}
	for _, s := range all {
		if s.Removable {
			d.open, d.inserted = s.TrayOpen, s.Medium != nil
		}
	}
	d.volume = r.guest.Volume()
	switch {
	case d.volume == qemutest.NoMedium:
		d.volume = none
	case d.volume != old && d.volume != fresh:
		d.volume = unread
	}
	return d, nil
}

// compare says what of a status isn't so.
func (r *Rig) compare(d drive, s peer.Status) string {
	said := drive{open: s.Open, inserted: s.Disc != ""}
	switch {
	case !s.Running:
		return "status: the machine doesn't run"
	case s.Busy:
		return "status: not settled"
	case s.Open || s.Disc == "":
	case s.Disc == r.discs.unreadable():
		said.volume = unread
	case s.Disc == r.old():
		said.volume = old
	default: // FRESH, by one of its names
		said.volume = fresh
	}
	if said != d {
		return fmt.Sprintf("status: %s; QEMU: %s", said, d)
	}
	return ""
}

// left finds what a change has left: nodes and descriptors in QEMU, descriptors in the
// daemon, active volumes, what the contender itself finds.
func (r *Rig) left(ctx context.Context, d drive) string {
	want, discs := r.empty, 0
	if d.inserted {
		want, discs = r.full, 1
	}
	has, err := r.holds(ctx)
	if err != nil {
		return err.Error()
	}
	if has != want {
		return fmt.Sprintf("left in QEMU: %+d block nodes, %+d fdsets, %+d descriptors in them", has.nodes-want.nodes, has.fdsets-want.fdsets, has.fds-want.fds)
	}
	if n := r.open(r.machine().PID()); n != discs {
		return fmt.Sprintf("left in QEMU: %+d descriptors of discs", n-discs)
	}
	if pid := r.contender.PID(); pid != 0 {
		if n := r.open(pid); n > 0 {
			return fmt.Sprintf("left in the daemon: %d descriptors of discs", n)
		}
	}
	if active, err := r.discs.left(ctx, d); err != nil {
		return err.Error()
	} else if active != "" {
		return active
	}
	found, err := r.contender.Left(ctx)
	if err != nil {
		return err.Error()
	}
	return strings.Join(found, "; ")
}

// holdings are what QEMU lists. A node keeps, up to QEMU 8.2, the emptied fdset that it was
// opened through, so that there is one as long as the disc is in.
type holdings struct{ nodes, fdsets, fds int }

func (r *Rig) holds(ctx context.Context) (h holdings, err error) {
	nodes, err := blockdev.Nodes(ctx, r.side, "")
	if err != nil {
		return h, err
	}
	sets, err := r.side.QueryFDSets(ctx)
	for _, s := range sets {
		h.fds += len(s.FDs)
	}
	h.nodes, h.fdsets = len(nodes), len(sets)
	return h, err
}

// open counts the descriptors of discs that a process has.
func (r *Rig) open(pid int) (n int) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	fds, _ := os.ReadDir(dir) // a process that has ended has none
	for _, fd := range fds {
		if target, err := os.Readlink(filepath.Join(dir, fd.Name())); err == nil && r.discs.is(target) {
			n++
		}
	}
	return n
}

// saysDead is "" once the contender says that the machine doesn't run.
func (r *Rig) saysDead(ctx context.Context) string {
	const soon = 5 * time.Second
	for end := time.Now().Add(soon); ; time.Sleep(10 * time.Millisecond) {
		says, err := r.contender.Says(ctx)
		if errors.Is(err, peer.ErrNoStatus) || err == nil && !says[vm].Running {
			return ""
		}
		if time.Now().After(end) {
			return "status: a dead machine runs"
		}
	}
}
