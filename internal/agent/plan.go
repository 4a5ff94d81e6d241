package agent

import (
	"slices"
	"strings"
	"time"

	"github.com/trayd/trayd/blockdev"
	"github.com/trayd/trayd/blockdev/volume"
)

// Presence is whether the QEMU that a record speaks of can be asked.
type Presence string

// The presences.
const (
	Present  Presence = "present"  // it answered
	Silent   Presence = "silent"   // it lives, or may, and doesn't answer: nobody guesses
	Gone     Presence = "gone"     // its process has ended
	Replaced Presence = "replaced" // another process answers under its name
)

// GuestEject is what follows a guest's own eject of a disc of ours.
type GuestEject string

// The policies: take the disc out, or leave it in the open tray.
const (
	GuestEjectRelease GuestEject = "release"
	GuestEjectKeep    GuestEject = "keep"
)

// Observation is everything that plan may know besides the record.
type Observation struct {
	VM       Presence
	NoDrive  bool   // QEMU has no such drive any more
	Node     string // the node in the drive; "" for an empty drive
	TrayOpen bool
	Locked   bool
	// Nodes are the nodes of ours that exist in QEMU and that no other drive's
	// record claims, in this drive or outside any.
	Nodes []string
	// Loans are descriptors lent for this drive that no running operation uses.
	Loans []blockdev.Loan
	// AskedOver is set when the guest has had its time to answer the withdrawn
	// request that the record holds.
	AskedOver bool
	// GivenUp is set when the operation of the record's change has come to its
	// end without success: why, and as what.
	GivenUp *GivenUp
	// Running is set while the operation of the record's change waits for what
	// comes of it; without it, the outcome is one that was found out afterwards.
	Running bool
	Policy  GuestEject
	Now     time.Time
	// HoldReleases is set while it is not worth another try to release what the record
	// has queued.
	HoldReleases bool
}

// GivenUp is why an operation ended without success.
type GivenUp struct {
	Result Result
	Reason string
}

// Step is one thing to do. Each may be repeated: recovery can be killed at any
// step and starts again with a new observation.
type Step interface{ step() }

// The steps.
type (
	// CloseTray closes the drive's tray.
	CloseTray struct{}
	// OpenTray opens the tray of an empty drive.
	OpenTray struct{}
	// RemoveMedium takes the disc out of the open tray.
	RemoveMedium struct{}
	// InsertNode puts an existing node into the open, empty tray.
	InsertNode struct{ Node string }
	// Restore opens a file again and puts it into the drive under a node name.
	Restore struct {
		Path, Node string
		Capacity   int64 // of Medium
	}
	// DeleteNode deletes a node outside the drive.
	DeleteNode struct{ Node string }
	// TakeBack ends the loan of a descriptor.
	TakeBack struct{ FDSet int }
	// Release releases a volume of the record's queue and takes it off the queue, unless
	// a record uses it or it is held open. A failure keeps it queued and stops nothing.
	Release struct{ Volume volume.Ref }
	// Write makes the record durable and tells what it means.
	Write struct {
		Record Record
		Event  string // the event's type; "" for none
		Detail string
	}
)

func (CloseTray) step()    {}
func (OpenTray) step()     {}
func (RemoveMedium) step() {}
func (InsertNode) step()   {}
func (Restore) step()      {}
func (DeleteNode) step()   {}
func (TakeBack) step()     {}
func (Release) step()      {}
func (Write) step()        {}

// plan decides what to do about a drive, from what we own and meant and what
// QEMU says. It is pure. No steps: the drive is settled, or (Silent) must wait.
//
// Whatever a planned record lets go of is queued in it for release, and released only
// once that is durable: a volume is active as long as any record speaks of it.
func plan(rec Record, obs Observation) []Step {
	steps := planDrive(rec, obs)
	final := rec
	for i, st := range steps {
		if w, ok := st.(Write); ok {
			w.Record.letGo(&final, obs.Now)
			steps[i], final = w, w.Record
		}
	}
	for _, q := range final.Releasing {
		if !obs.HoldReleases || !slices.Contains(rec.Releasing, q) {
			steps = append(steps, Release{q.Volume})
		}
	}
	return steps
}

// planDrive decides about what is in the drive.
func planDrive(rec Record, obs Observation) []Step {
	switch obs.VM {
	case Silent:
		return nil
	case Gone, Replaced:
		return planEnded(rec, obs, "the machine ended")
	}
	if obs.NoDrive {
		return planEnded(rec, obs, "the drive was removed from the machine")
	}
	var steps []Step
	for _, l := range obs.Loans {
		steps = append(steps, TakeBack{l.FDSet})
	}
	switch {
	case rec.Change == nil:
		steps = append(steps, planSettled(rec, obs)...)
	case rec.Change.Kind == Loading:
		steps = append(steps, planLoading(rec, obs)...)
	default:
		steps = append(steps, planEjecting(rec, obs)...)
	}
	return steps
}

// planEnded lets go of everything: the QEMU that had it is no more.
func planEnded(rec Record, obs Observation, why string) []Step {
	if rec.idle() {
		return nil
	}
	next := rec
	next.Loaded, next.Change, next.Asked = nil, nil, nil
	switch c := rec.Change; {
	case c != nil:
		next.Last = outcome(c, MachineEnd, why, obs)
		return []Step{Write{next, EventSettled, why}}
	case rec.Loaded != nil:
		return []Step{Write{next, EventReleased, why}}
	}
	return []Step{Write{Record: next}} // a guest was asked that is no more
}

// planSettled looks at a drive on which nothing is under way: did the guest, or
// somebody else, do something?
func planSettled(rec Record, obs Observation) []Step {
	if a := rec.Asked; a != nil {
		next := rec
		next.Asked = nil
		switch {
		case obs.Node == a.Node && obs.TrayOpen:
			// Also when the guest's time is over by now: it may have answered in
			// time and nobody was connected to see it.
			return append(strays(obs, ""), CloseTray{}, Write{next, EventTrayPutRight,
				"the guest opened the tray for operation " + a.Operation + ", which was over: closed again"})
		case obs.Node != a.Node || obs.AskedOver:
			// Nothing is left of the request: what the drive shows speaks for itself.
			steps := planSettled(next, obs)
			if !writes(steps) {
				steps = append(steps, Write{Record: next})
			}
			return steps
		}
	}
	in := rec.Loaded
	if in == nil {
		return strays(obs, "")
	}
	next := rec
	next.Loaded, next.Asked = nil, nil
	switch {
	case obs.Node == "":
		return append(strays(obs, ""), Write{next, EventReleased, in.Medium.Name + " was taken out by somebody else"})
	case obs.Node != in.Node:
		return append(strays(obs, ""), Write{next, EventConflict,
			"somebody else put another disc in place of " + in.Medium.Name + ": it is left alone"})
	case obs.TrayOpen && obs.Policy == GuestEjectRelease:
		// The intent first, as for any eject: recovery must know that an empty
		// open tray is our own doing.
		next = rec
		next.Change = &Change{
			ID: in.Node + "-guest", Verb: "eject", Kind: Ejecting, By: ByGuest, Since: obs.Now,
			From: Before{Node: in.Node, File: in.Medium.Path, TrayOpen: true},
		}
		return append(strays(obs, ""), Write{next, EventGuestEjected, "the guest ejected " + in.Medium.Name})
	}
	return strays(obs, "")
}

// planLoading ends an insert or a change: forward when QEMU has the new disc,
// back when it has the old one, and out of the way when it has somebody else's.
func planLoading(rec Record, obs Observation) []Step {
	c := rec.Change
	switch obs.Node {
	case c.Node:
		return forward(rec, obs, nil)
	case c.From.Node:
		return back(rec, obs, closeIfOurs(c, obs))
	case restoredNode(c): // cut off after the old disc had been put back
		return back(restored(rec, obs), obs, closeIfOurs(c, obs))
	case "":
		if !c.Stepwise || !has(obs.Nodes, c.Node) {
			break // not our doing: the new node is there before the old disc goes
		}
		// The tray is out and the old disc with it. Never leave it empty: the
		// new disc goes in unless it is given up, then the old one goes back.
		var steps []Step
		if !obs.TrayOpen {
			steps = append(steps, OpenTray{})
		}
		switch {
		case obs.GivenUp == nil:
			return forward(rec, obs, append(steps, InsertNode{c.Node}, CloseTray{}))
		case has(obs.Nodes, c.From.Node):
			return back(rec, obs, append(steps, InsertNode{c.From.Node}, CloseTray{}))
		case c.From.File != "":
			return back(restored(rec, obs), obs, append(steps, Restore{c.From.File, restoredNode(c), capacityOf(rec)}))
		}
		return forward(rec, obs, append(steps, InsertNode{c.Node}, CloseTray{}))
	}
	next := rec
	next.Loaded, next.Change = nil, nil
	what := "the disc was taken out by somebody else"
	if obs.Node != "" {
		what = "somebody else's disc is in the drive: it is left alone"
	}
	next.Last = outcome(c, Overtaken, what, obs)
	return append(strays(obs, ""), Write{next, EventConflict, what})
}

// planEjecting ends an eject: finished once the disc is out, rolled back before.
func planEjecting(rec Record, obs Observation) []Step {
	c := rec.Change
	next := rec
	next.Change = nil
	switch obs.Node {
	case "":
		var steps []Step
		if obs.TrayOpen {
			steps = append(steps, CloseTray{})
		}
		next.Loaded, next.Asked = nil, nil
		if c.Asked { // taken by force, and the guest may still open the empty tray
			next.Asked = &Asked{Operation: c.ID}
		}
		next.Last = outcome(c, Done, "", obs)
		return append(append(steps, strays(obs, "")...), Write{next, EventEjected, ejected(rec)})
	case c.From.Node:
		switch {
		case c.By == ByGuest && obs.TrayOpen:
			next.Change, next.Loaded, next.Asked = nil, nil, nil
			next.Last = outcome(c, Done, "", obs)
			steps := []Step{RemoveMedium{}, CloseTray{}}
			if has(obs.Nodes, c.From.Node) { // a node that blockdev-add made stays when its medium goes
				steps = append(steps, DeleteNode{c.From.Node})
			}
			return append(append(steps, strays(obs, "")...), Write{next, EventEjected, ejected(rec)})
		case c.By == ByGuest:
			// The guest closed the tray again before anything was done.
			return append(strays(obs, ""), Write{Record: next})
		}
		return back(rec, obs, closeIfOurs(c, obs))
	}
	next.Loaded = nil
	what := "somebody else's disc is in the drive: it is left alone"
	next.Last = outcome(c, Overtaken, what, obs)
	return append(strays(obs, ""), Write{next, EventConflict, what})
}

// closeIfOurs closes a tray that is open and was closed before the change.
func closeIfOurs(c *Change, obs Observation) []Step {
	if obs.TrayOpen && !c.From.TrayOpen {
		return []Step{CloseTray{}}
	}
	return nil
}

// forward ends a change with its new disc in.
func forward(rec Record, obs Observation, steps []Step) []Step {
	c := rec.Change
	if len(steps) == 0 && obs.TrayOpen {
		steps = append(steps, CloseTray{})
	}
	next := rec
	next.Loaded = &Loaded{Medium: *c.Target, Node: c.Node, Since: obs.Now}
	next.Change, next.Asked = nil, nil
	if c.Asked {
		// The guest may have fetched the request before the disc went, by force or
		// because it had let go of the door, and would now eject the new one.
		next.Asked = &Asked{Operation: c.ID, Node: c.Node}
	}
	next.Last = outcome(c, Done, "", obs)
	return append(append(steps, strays(obs, c.Node)...), Write{next, EventLoaded, c.Target.Name + " is in the drive"})
}

// back ends a change with the old disc, or the old emptiness, as it was.
func back(rec Record, obs Observation, steps []Step) []Step {
	c := rec.Change
	next := rec
	next.Change, next.Asked = nil, nil
	if c.Asked && !c.From.TrayOpen {
		next.Asked = &Asked{Operation: c.ID, Node: c.From.Node}
	}
	result, reason := Failed, "interrupted before the disc was changed: the drive is as it was"
	if obs.GivenUp != nil {
		result, reason = obs.GivenUp.Result, obs.GivenUp.Reason
	}
	next.Last = outcome(c, result, reason, obs)
	return append(append(steps, strays(obs, c.From.Node)...), Write{next, EventRolledBack, reason})
}

// restored is rec with its old disc under the name of the node that brings it back.
// The node is ours, also where the disc was somebody else's before.
func restored(rec Record, obs Observation) Record {
	c := *rec.Change
	in := Loaded{Medium: Medium{Name: c.From.File, Path: c.From.File}, Since: obs.Now}
	if rec.Loaded != nil && rec.Loaded.Node == c.From.Node {
		in = *rec.Loaded
	}
	in.Node = restoredNode(&c)
	c.From.Node = in.Node
	rec.Loaded, rec.Change = &in, &c
	return rec
}

// capacityOf is the exact size of the disc that was in before, where that is known.
func capacityOf(rec Record) int64 {
	if in := rec.Loaded; in != nil && in.Node == rec.Change.From.Node {
		return in.Medium.Capacity
	}
	return 0
}

// restoredNode names the node of an old disc that had to be opened again. It has
// the prefix of ours, and recovery that is cut off after it finds it in the drive.
func restoredNode(c *Change) string { return c.Node + "-old" }

// strays deletes this drive's own nodes that are in no drive; keep is about to be
// or is in the drive already.
func strays(obs Observation, keep string) []Step {
	var steps []Step
	for _, n := range obs.Nodes {
		if n != keep && n != obs.Node {
			steps = append(steps, DeleteNode{n})
		}
	}
	return steps
}

func writes(steps []Step) bool {
	for _, st := range steps {
		if _, ok := st.(Write); ok {
			return true
		}
	}
	return false
}

func outcome(c *Change, r Result, reason string, obs Observation) *Outcome {
	o := &Outcome{Operation: c.ID, Verb: c.Verb, By: c.By, Result: r, Reason: reason, At: obs.Now}
	o.Recovered = !obs.Running && c.By != ByGuest
	if c.Target != nil {
		o.Medium = c.Target.Name
	}
	return o
}

func ejected(rec Record) string {
	name := rec.Change.From.File
	if rec.Loaded != nil {
		name = rec.Loaded.Medium.Name
	}
	return strings.TrimSpace(name + " is out")
}

func has(names []string, name string) bool {
	for _, n := range names {
		if n == name && name != "" {
			return true
		}
	}
	return false
}
