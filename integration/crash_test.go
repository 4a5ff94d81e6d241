//go:build integration

package integration_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/agent"
	"github.com/trayd/trayd/internal/qemutest"
)

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

// TestKilledAtEveryStep kills trayd at each point of a change and starts it again.
func TestKilledAtEveryStep(t *testing.T) {
	for _, c := range crashes {
		t.Run(c.name(), func(t *testing.T) {
			r, vm, guest := c.crash(t)
			r.start("")
			r.ready()
			c.check(r, guest)
			r.clean(vm, "vm/cd0")
		})
	}
}

// TestRecoveryKilledAtEveryStep kills trayd in a change, kills the recovery as well at
// each of its steps, and starts it once more.
func TestRecoveryKilledAtEveryStep(t *testing.T) {
	for _, c := range crashes {
		t.Run(c.name(), func(t *testing.T) {
			r, vm, guest := c.crash(t)
			for _, step := range c.recovery {
				t.Log("killed at", step)
				r.start(step)
				r.died()
			}
			r.start("")
			r.ready()
			c.check(r, guest)
			r.clean(vm, "vm/cd0")
		})
	}
}

// TestKilledTogether kills trayd at each point, and QEMU with it: nothing may be left
// in the records.
func TestKilledTogether(t *testing.T) {
	for _, c := range crashes {
		t.Run(c.name(), func(t *testing.T) {
			r, vm, _ := c.crash(t)
			vm.Kill()
			r.start("")
			r.ready()
			require.Eventually(t, func() bool {
				return r.must("-o", "json", "state", "show") == "[]\n"
			}, 5*time.Second, 20*time.Millisecond, "records of a machine that is no more")
			require.Contains(t, r.must("state", "check"), "ok: ")
			require.Equal(t, 1, r.trayctl("eject", "vm").code)
		})
	}
}

// crash takes the drive to its beginning and the change to its fail point.
func (c crash) crash(t *testing.T) (*rig, *qemutest.VM, *qemutest.Guest) {
	r := newRig(t)
	r.extra = "strategy = \"" + c.strategy + "\""
	first, second := r.disc(old), r.disc(fresh)
	vm := r.vm("vm", qemutest.IDE.With("")...)
	guest := vm.Guest(t)
	if !c.empty {
		r.start("")
		r.ready()
		r.must("insert", "vm", first)
		r.stop()
	}
	if c.locked {
		guest.Volume() // the change is a unit attention
		guest.Lock()
	}
	r.start(c.point)
	r.ready()
	if c.verb == guestEjects {
		require.Empty(t, guest.Eject())
		r.died()
		return r, vm, guest
	}
	args := []string{c.verb, "vm"}
	if c.verb != agent.Eject {
		args = append(args, second)
	}
	if c.force {
		args = append(args, "--force")
	}
	got := r.trayctl(args...)
	require.Equal(t, 3, got.code, "trayctl must say that nobody knows: %s%s", got.stdout, got.stderr)
	r.died()
	if c.loads {
		require.Empty(t, guest.Load())
	}
	return r, vm, guest
}

// check looks at the end as the guest, QEMU and the records see it.
func (c crash) check(r *rig, guest *qemutest.Guest) {
	t := r.t
	d := r.settled("vm/cd0")
	require.Equal(t, "closed", d.Tray)
	if c.end == none {
		require.Equal(t, agent.StateEmpty, d.State)
		require.Equal(t, qemutest.NoMedium, guest.Volume())
	} else {
		require.Equal(t, agent.StateLoaded, d.State)
		require.True(t, d.Medium.Ours)
		require.Equal(t, c.end, d.Medium.VolumeID)
		require.Equal(t, c.end, guest.Volume(), "what the guest reads")
	}
	require.Contains(t, r.must("state", "check"), "ok: ")
	if c.locked && !c.force {
		// The guest had been asked before trayd died. Its late answer is put right.
		guest.Unlock()
		require.Empty(t, guest.Eject())
		require.Eventually(t, func() bool { return guest.Volume() == c.end }, 5*time.Second, 20*time.Millisecond,
			"a tray that opened late because of us is closed again")
		r.settled("vm/cd0")
	}
}
