//go:build integration || edge

package integration_test

import "github.com/trayd/trayd/internal/agent"

// Where a crash must end: with the old disc in the closed drive, with the new one, or
// with none.
const (
	old   = "OLD"
	fresh = "FRESH"
	none  = ""
)

// guestEjects is the verb of the guest, which ejects by itself.
const guestEjects = "guest-eject"

// crash is one row of the design's crash table.
type crash struct {
	point    string // the fail point; trayd dies there
	strategy string
	verb     string
	empty    bool // begin with an empty drive
	locked   bool // the guest holds the door
	force    bool
	loads    bool // the guest closes the tray while trayd is dead
	end      string
	// recovery are the fail points that the recovery comes by, in their order, when
	// it is killed at each of them: what it does, and nothing twice.
	recovery []string
}

// The fail points of a recovery.
const (
	takeBack   = "settle-take-back"
	openTray   = "settle-open-tray"
	insertNode = "settle-insert-node"
	remove     = "settle-remove-medium"
	closeTray  = "settle-close-tray"
	deleteNode = "settle-delete-node"
	written    = "outcome-written"
)

var crashes = []crash{
	{point: "intent-written", strategy: "atomic", verb: agent.Replace, end: old,
		recovery: []string{written}},
	{point: "descriptor-passed", strategy: "atomic", verb: agent.Replace, end: old,
		recovery: []string{takeBack, written}},
	{point: "eject-asked", strategy: "atomic", verb: agent.Replace, locked: true, end: old,
		recovery: []string{takeBack, written}},
	{point: "swapped", strategy: "atomic", verb: agent.Replace, end: fresh,
		recovery: []string{takeBack, written}},
	{point: "swapped", strategy: "atomic", verb: agent.Replace, locked: true, force: true, end: fresh,
		recovery: []string{takeBack, written}},
	{point: "taken-back", strategy: "atomic", verb: agent.Replace, end: fresh,
		recovery: []string{written}},
	{point: "outcome-written", strategy: "atomic", verb: agent.Replace, end: fresh},

	{point: "intent-written", strategy: "stepwise", verb: agent.Replace, end: old,
		recovery: []string{written}},
	{point: "descriptor-passed", strategy: "stepwise", verb: agent.Replace, end: old,
		recovery: []string{takeBack, written}},
	{point: "node-added", strategy: "stepwise", verb: agent.Replace, end: old,
		recovery: []string{takeBack, deleteNode, written}},
	{point: "eject-asked", strategy: "stepwise", verb: agent.Replace, locked: true, end: old,
		recovery: []string{takeBack, deleteNode, written}},
	{point: "tray-open", strategy: "stepwise", verb: agent.Replace, end: old,
		recovery: []string{takeBack, closeTray, deleteNode, written}},
	{point: "tray-open", strategy: "stepwise", verb: agent.Replace, locked: true, force: true, end: old,
		recovery: []string{takeBack, closeTray, deleteNode, written}},
	{point: "medium-removed", strategy: "stepwise", verb: agent.Replace, end: fresh,
		recovery: []string{takeBack, insertNode, closeTray, deleteNode, written}},
	{point: "medium-removed", strategy: "stepwise", verb: agent.Replace, loads: true, end: fresh,
		recovery: []string{takeBack, openTray, insertNode, closeTray, deleteNode, written}},
	{point: "medium-inserted", strategy: "stepwise", verb: agent.Replace, end: fresh,
		recovery: []string{takeBack, closeTray, deleteNode, written}},
	{point: "tray-closed", strategy: "stepwise", verb: agent.Replace, end: fresh,
		recovery: []string{takeBack, deleteNode, written}},
	{point: "taken-back", strategy: "stepwise", verb: agent.Replace, end: fresh,
		recovery: []string{written}},
	{point: "outcome-written", strategy: "stepwise", verb: agent.Replace, end: fresh},

	{point: "intent-written", strategy: "atomic", verb: agent.Insert, empty: true, end: none,
		recovery: []string{written}},
	{point: "descriptor-passed", strategy: "atomic", verb: agent.Insert, empty: true, end: none,
		recovery: []string{takeBack, written}},
	{point: "swapped", strategy: "atomic", verb: agent.Insert, empty: true, end: fresh,
		recovery: []string{takeBack, written}},
	{point: "taken-back", strategy: "atomic", verb: agent.Insert, empty: true, end: fresh,
		recovery: []string{written}},
	{point: "node-added", strategy: "stepwise", verb: agent.Insert, empty: true, end: none,
		recovery: []string{takeBack, deleteNode, written}},
	{point: "tray-open", strategy: "stepwise", verb: agent.Insert, empty: true, end: none,
		recovery: []string{takeBack, closeTray, deleteNode, written}},
	{point: "medium-inserted", strategy: "stepwise", verb: agent.Insert, empty: true, end: fresh,
		recovery: []string{takeBack, closeTray, written}},

	{point: "intent-written", strategy: "atomic", verb: agent.Eject, end: old,
		recovery: []string{written}},
	{point: "eject-asked", strategy: "atomic", verb: agent.Eject, locked: true, end: old,
		recovery: []string{written}},
	{point: "tray-open", strategy: "atomic", verb: agent.Eject, end: old,
		recovery: []string{closeTray, written}},
	{point: "tray-open", strategy: "atomic", verb: agent.Eject, locked: true, force: true, end: old,
		recovery: []string{closeTray, written}},
	{point: "medium-removed", strategy: "atomic", verb: agent.Eject, end: none,
		recovery: []string{closeTray, written}},
	{point: "tray-closed", strategy: "atomic", verb: agent.Eject, end: none,
		recovery: []string{written}},
	{point: "outcome-written", strategy: "atomic", verb: agent.Eject, end: none},

	// The guest's own eject is settled as a recovery is: its intent is the first write.
	{point: "outcome-written", strategy: "atomic", verb: guestEjects, end: none,
		recovery: []string{remove, closeTray, written}},
	{point: "settle-remove-medium", strategy: "atomic", verb: guestEjects, end: none,
		recovery: []string{closeTray, written}},
	{point: "settle-close-tray", strategy: "atomic", verb: guestEjects, end: none,
		recovery: []string{written}},
	{point: "outcome-written#2", strategy: "atomic", verb: guestEjects, end: none},
	{point: "outcome-written", strategy: "stepwise", verb: guestEjects, end: none,
		recovery: []string{remove, closeTray, deleteNode, written}},
	{point: "settle-remove-medium", strategy: "stepwise", verb: guestEjects, end: none,
		recovery: []string{closeTray, deleteNode, written}},
	{point: "settle-close-tray", strategy: "stepwise", verb: guestEjects, end: none,
		recovery: []string{deleteNode, written}},
	{point: "settle-delete-node", strategy: "stepwise", verb: guestEjects, end: none,
		recovery: []string{written}},
	{point: "outcome-written#2", strategy: "stepwise", verb: guestEjects, end: none},
}

func (c crash) name() string {
	name := c.strategy + "/" + c.verb + "/" + c.point
	if c.locked {
		name += "-locked"
	}
	if c.force {
		name += "-forced"
	}
	if c.loads {
		name += "-loaded"
	}
	return name
}
