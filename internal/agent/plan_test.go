package agent

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/blockdev"
)

// The discs of the tables: one of ours that is in, the one that is to come, and
// those that others put in.
const (
	oldNode   = "trayd-test-old"
	newNode   = "trayd-test-new"
	backNode  = newNode + "-old" // the old disc's file, opened again
	theirNode = "#block123"
	oldFile   = "/iso/old.iso"
	newFile   = "/iso/new.iso"
	theirFile = "/iso/theirs.iso"
)

var noon = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// recordWith is a record with a disc of ours in the drive; "" for none.
func recordWith(node string) Record {
	rec := Record{VM: "vm", Drive: "cd0", Process: Process{PID: 1, Start: "boot/1"}}
	if node != "" {
		rec.Loaded = &Loaded{Node: node, Since: noon, Medium: Medium{Name: oldFile, Path: oldFile}}
	}
	return rec
}

// loading is the record of a change from what was in to the new disc.
func loading(from Before, edit ...func(*Change)) Record {
	rec := recordWith("")
	if from.Node == oldNode {
		rec = recordWith(oldNode)
	}
	rec.Change = &Change{
		ID: "new", Verb: Replace, Kind: Loading, By: "root", Since: noon,
		Target: &Medium{Name: newFile, Path: newFile}, Node: newNode, From: from,
	}
	for _, f := range edit {
		f(rec.Change)
	}
	return rec
}

// ejecting is the record of an eject of what was in.
func ejecting(from Before, edit ...func(*Change)) Record {
	rec := loading(from, edit...)
	c := rec.Change
	c.ID, c.Verb, c.Kind, c.Target, c.Node = "out", Eject, Ejecting, nil, ""
	return rec
}

func withAsked(rec Record, node string) Record {
	rec.Asked = &Asked{Operation: "given-up", Node: node}
	return rec
}

func stepwise(c *Change) { c.Stepwise = true }
func asked(c *Change)    { c.Asked = true }
func byGuest(c *Change)  { c.By = ByGuest }

var (
	empty   = Before{}
	ours    = Before{Node: oldNode, File: oldFile}
	theirs  = Before{Node: theirNode, File: theirFile}
	oursOut = Before{Node: oldNode, File: oldFile, TrayOpen: true}
)

// describe writes a step as the tables do.
func describe(st Step) string {
	switch st := st.(type) {
	case CloseTray:
		return "close tray"
	case OpenTray:
		return "open tray"
	case RemoveMedium:
		return "remove medium"
	case InsertNode:
		return "insert " + st.Node
	case Restore:
		return "restore " + st.Path + " as " + st.Node
	case DeleteNode:
		return "delete " + st.Node
	case TakeBack:
		return fmt.Sprint("take back ", st.FDSet)
	case Release:
		return "release " + st.Volume.Name
	case Write:
		s := "write: "
		if st.Event != "" {
			s = "write " + st.Event + ": "
		}
		if st.Record.Loaded != nil {
			s += st.Record.Loaded.Node
		} else {
			s += "no disc of ours"
		}
		if c := st.Record.Change; c != nil {
			s += ", " + string(c.Kind) + " by " + c.By
		}
		if a := st.Record.Asked; a != nil {
			s += ", asked about " + a.Node
		}
		for _, q := range st.Record.Releasing {
			s += ", releasing " + q.Volume.Name
		}
		if l := st.Record.Last; l != nil {
			s += ", " + string(l.Result)
		}
		return s
	}
	return fmt.Sprintf("%T", st)
}

func describeAll(steps []Step) []string {
	all := []string{}
	for _, st := range steps {
		all = append(all, describe(st))
	}
	return all
}

type planRow struct {
	name string
	rec  Record
	obs  Observation
	want []string
}

func check(t *testing.T, rows []planRow) {
	t.Helper()
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			if row.obs.VM == "" {
				row.obs.VM = Present
			}
			if row.obs.Policy == "" {
				row.obs.Policy = GuestEjectRelease
			}
			row.obs.Now = noon
			if row.want == nil {
				row.want = []string{}
			}
			require.Equal(t, row.want, describeAll(plan(row.rec, row.obs)))
		})
	}
}

// TestPlanCrash is the table of the crash points: what recovery does after a death
// at each of them.
func TestPlanCrash(t *testing.T) {
	loan := []blockdev.Loan{{FDSet: 3, Node: newNode}}
	rolledBack := "write rolled-back: " + oldNode + ", failed"
	loaded := "write loaded: " + newNode + ", done"
	check(t, []planRow{
		{"intent written", loading(ours), Observation{Node: oldNode, Nodes: []string{oldNode}}, []string{rolledBack}},
		{"intent written, empty drive", loading(empty), Observation{}, []string{"write rolled-back: no disc of ours, failed"}},
		{"intent written, their disc in", loading(theirs), Observation{Node: theirNode}, []string{"write rolled-back: no disc of ours, failed"}},
		{"descriptor passed", loading(ours), Observation{Node: oldNode, Loans: loan}, []string{"take back 3", rolledBack}},
		{"node added (stepwise)", loading(ours, stepwise), Observation{Node: oldNode, Nodes: []string{oldNode, newNode}, Loans: loan},
			[]string{"take back 3", "delete " + newNode, rolledBack}},
		{"a try of the disc (atomic)", loading(ours), Observation{Node: oldNode, Locked: true, Nodes: []string{newNode + "-try"}},
			[]string{"delete " + newNode + "-try", rolledBack}},
		{"polite eject asked, not answered", loading(ours, asked), Observation{Node: oldNode, Locked: true},
			[]string{"write rolled-back: " + oldNode + ", asked about " + oldNode + ", failed"}},
		{"polite eject asked, answered meanwhile", loading(ours, asked), Observation{Node: oldNode, TrayOpen: true},
			[]string{"close tray", "write rolled-back: " + oldNode + ", asked about " + oldNode + ", failed"}},
		{"tray open (stepwise)", loading(ours, stepwise), Observation{Node: oldNode, TrayOpen: true, Nodes: []string{oldNode, newNode}},
			[]string{"close tray", "delete " + newNode, rolledBack}},
		{"tray open, as it was before", loading(oursOut), Observation{Node: oldNode, TrayOpen: true}, []string{rolledBack}},
		{"medium removed (stepwise), the new node is there", loading(ours, stepwise), Observation{TrayOpen: true, Nodes: []string{newNode, oldNode}},
			[]string{"insert " + newNode, "close tray", "delete " + oldNode, loaded}},
		{"medium removed (stepwise), given up, the old node is there", loading(ours, stepwise),
			Observation{TrayOpen: true, Nodes: []string{newNode, oldNode}, GivenUp: &GivenUp{Result: Failed, Reason: "insert"}},
			[]string{"insert " + oldNode, "close tray", "delete " + newNode, rolledBack}},
		{"medium removed (stepwise), given up, the old file is there", loading(theirs, stepwise),
			Observation{TrayOpen: true, Nodes: []string{newNode}, GivenUp: &GivenUp{Result: Cancelled, Reason: "insert"}},
			[]string{"restore " + theirFile + " as " + backNode, "delete " + newNode, "write rolled-back: " + backNode + ", cancelled"}},
		{"medium removed (stepwise), given up, nothing of the old one is left", loading(Before{Node: theirNode}, stepwise),
			Observation{TrayOpen: true, Nodes: []string{newNode}, GivenUp: &GivenUp{Result: Failed, Reason: "insert"}},
			[]string{"insert " + newNode, "close tray", loaded}},
		{"medium removed (stepwise), then a reset closed the tray", loading(ours, stepwise), Observation{Nodes: []string{newNode}},
			[]string{"open tray", "insert " + newNode, "close tray", loaded}},
		{"old disc restored, not written", loading(ours, stepwise), Observation{Node: backNode, Nodes: []string{newNode, backNode}},
			[]string{"delete " + newNode, "write rolled-back: " + backNode + ", failed"}},
		{"old disc restored, tray not closed", loading(ours, stepwise), Observation{Node: backNode, TrayOpen: true, Nodes: []string{backNode}},
			[]string{"close tray", "write rolled-back: " + backNode + ", failed"}},
		{"medium inserted (stepwise)", loading(ours, stepwise), Observation{Node: newNode, TrayOpen: true, Nodes: []string{oldNode, newNode}},
			[]string{"close tray", "delete " + oldNode, loaded}},
		{"swapped", loading(ours), Observation{Node: newNode, Nodes: []string{newNode}, Loans: loan}, []string{"take back 3", loaded}},
		{"swapped after the guest was asked and before it answered", loading(ours, asked), Observation{Node: newNode},
			[]string{"write loaded: " + newNode + ", asked about " + newNode + ", done"}},
		{"swapped, given up all the same", loading(ours), Observation{Node: newNode, GivenUp: &GivenUp{Result: Failed, Reason: "a late error"}}, []string{loaded}},
		{"outcome written", recordWith(newNode), Observation{Node: newNode}, nil},
	})
}

// TestPlanEject is the same for ejects: before the removal they are rolled back,
// after it they are finished.
func TestPlanEject(t *testing.T) {
	ejected := "write ejected: no disc of ours, done"
	check(t, []planRow{
		{"intent written", ejecting(ours), Observation{Node: oldNode, Nodes: []string{oldNode}}, []string{"write rolled-back: " + oldNode + ", failed"}},
		{"intent written, the tray was open", ejecting(oursOut), Observation{Node: oldNode, TrayOpen: true}, []string{"write rolled-back: " + oldNode + ", failed"}},
		{"asked", ejecting(ours, asked), Observation{Node: oldNode, Locked: true}, []string{"write rolled-back: " + oldNode + ", asked about " + oldNode + ", failed"}},
		{"tray open", ejecting(ours), Observation{Node: oldNode, TrayOpen: true}, []string{"close tray", "write rolled-back: " + oldNode + ", failed"}},
		{"tray open, their disc", ejecting(theirs), Observation{Node: theirNode, TrayOpen: true}, []string{"close tray", "write rolled-back: no disc of ours, failed"}},
		{"removed", ejecting(ours), Observation{TrayOpen: true, Nodes: []string{oldNode}}, []string{"close tray", "delete " + oldNode, ejected}},
		{"closed", ejecting(ours), Observation{}, []string{ejected}},
		{"closed, given up all the same", ejecting(ours), Observation{GivenUp: &GivenUp{Result: Failed, Reason: "a late error"}}, []string{ejected}},
		{"outcome written", recordWith(""), Observation{}, nil},
		{"somebody else's disc came in", ejecting(ours), Observation{Node: theirNode, Nodes: []string{oldNode}}, []string{"delete " + oldNode, "write conflict: no disc of ours, overtaken"}},
	})
}

// TestPlanOVirt holds oVirt's recovery rows ("VM recovery flow"), as far as they
// are not about volumes, which plain files have none of.
func TestPlanOVirt(t *testing.T) {
	insert := func(c *Change) { c.Verb = Insert }
	check(t, []planRow{
		{"insert: CD is loaded", loading(empty, insert), Observation{Node: newNode}, []string{"write loaded: " + newNode + ", done"}},
		{"insert: CD isn't loaded", loading(empty, insert), Observation{}, []string{"write rolled-back: no disc of ours, failed"}},
		{"eject: CD is loaded", ejecting(ours), Observation{Node: oldNode}, []string{"write rolled-back: " + oldNode + ", failed"}},
		{"eject: CD isn't loaded", ejecting(ours), Observation{}, []string{"write ejected: no disc of ours, done"}},
		{"change: still contains the ejecting CD", loading(ours), Observation{Node: oldNode}, []string{"write rolled-back: " + oldNode + ", failed"}},
		{"change: contains the loading CD", loading(ours), Observation{Node: newNode}, []string{"write loaded: " + newNode + ", done"}},
		{"change: the ejected CD's leftovers", loading(ours, stepwise), Observation{Node: newNode, Nodes: []string{oldNode, newNode}},
			[]string{"delete " + oldNode, "write loaded: " + newNode + ", done"}},
	})
}

// TestPlanOthers: what guests and other clients of QEMU do.
func TestPlanOthers(t *testing.T) {
	check(t, []planRow{
		{"the guest ejects", recordWith(oldNode), Observation{Node: oldNode, TrayOpen: true}, []string{"write guest-ejected: " + oldNode + ", ejecting by guest"}},
		{"the guest ejects, policy keep", recordWith(oldNode), Observation{Node: oldNode, TrayOpen: true, Policy: GuestEjectKeep}, nil},
		{"the guest ejected: its disc is taken out", ejecting(oursOut, byGuest), Observation{Node: oldNode, TrayOpen: true},
			[]string{"remove medium", "close tray", "write ejected: no disc of ours, done"}},
		{"the guest ejected: its disc is taken out, and a node that outlives that deleted", ejecting(oursOut, byGuest), Observation{Node: oldNode, TrayOpen: true, Nodes: []string{oldNode}},
			[]string{"remove medium", "close tray", "delete " + oldNode, "write ejected: no disc of ours, done"}},
		{"the guest ejected, and closed the tray again", ejecting(oursOut, byGuest), Observation{Node: oldNode, Nodes: []string{oldNode}}, []string{"write: " + oldNode}},
		{"the guest ejected, and we died after the removal", ejecting(oursOut, byGuest), Observation{TrayOpen: true, Nodes: []string{oldNode}},
			[]string{"close tray", "delete " + oldNode, "write ejected: no disc of ours, done"}},
		{"the guest opens a tray with somebody else's disc", recordWith(""), Observation{Node: theirNode, TrayOpen: true}, nil},

		{"withdrawn request: nothing yet", withAsked(recordWith(oldNode), oldNode), Observation{Node: oldNode, Locked: true}, nil},
		{"withdrawn request: answered late", withAsked(recordWith(oldNode), oldNode), Observation{Node: oldNode, TrayOpen: true}, []string{"close tray", "write tray-put-right: " + oldNode}},
		{"withdrawn request: answered late, their disc", withAsked(recordWith(""), theirNode), Observation{Node: theirNode, TrayOpen: true}, []string{"close tray", "write tray-put-right: no disc of ours"}},
		{"withdrawn request: answered while nobody looked, seen after its time", withAsked(recordWith(oldNode), oldNode), Observation{Node: oldNode, TrayOpen: true, AskedOver: true},
			[]string{"close tray", "write tray-put-right: " + oldNode}},
		{"withdrawn request: its time is over", withAsked(recordWith(oldNode), oldNode), Observation{Node: oldNode, AskedOver: true}, []string{"write: " + oldNode}},
		{"withdrawn request: another disc is in by now", withAsked(recordWith(oldNode), oldNode), Observation{Node: theirNode}, []string{"write conflict: no disc of ours"}},
		{"withdrawn request: the disc was taken out", withAsked(recordWith(oldNode), oldNode), Observation{}, []string{"write released: no disc of ours"}},
		{"withdrawn request: their disc was taken out", withAsked(recordWith(""), theirNode), Observation{}, []string{"write: no disc of ours"}},

		{"our disc was taken out", recordWith(oldNode), Observation{TrayOpen: true}, []string{"write released: no disc of ours"}},
		{"somebody else's disc in place of ours", recordWith(oldNode), Observation{Node: theirNode}, []string{"write conflict: no disc of ours"}},
		{"somebody else's disc instead of the new one", loading(ours, stepwise), Observation{Node: theirNode, Nodes: []string{oldNode, newNode}},
			[]string{"delete " + oldNode, "delete " + newNode, "write conflict: no disc of ours, overtaken"}},
		{"the old disc was taken out during a change", loading(ours), Observation{TrayOpen: true}, []string{"write conflict: no disc of ours, overtaken"}},
		{"the old disc was taken out before the new node was there (stepwise)", loading(ours, stepwise), Observation{TrayOpen: true},
			[]string{"write conflict: no disc of ours, overtaken"}},
		{"the same, with an old file that nobody can open again", loading(Before{Node: theirNode}, stepwise), Observation{},
			[]string{"write conflict: no disc of ours, overtaken"}},
	})
}

// TestPlanMachine: the machine is gone, another process, silent, or lost its drive.
func TestPlanMachine(t *testing.T) {
	released := "write released: no disc of ours"
	for _, vm := range []Presence{Gone, Replaced} {
		check(t, []planRow{
			{string(vm) + ": with a disc", recordWith(oldNode), Observation{VM: vm, Node: theirNode, TrayOpen: true, Nodes: []string{newNode}}, []string{released}},
			{string(vm) + ": with a withdrawn request", withAsked(recordWith(""), theirNode), Observation{VM: vm}, []string{"write: no disc of ours"}},
			{string(vm) + ": while loading", loading(ours, stepwise), Observation{VM: vm, TrayOpen: true}, []string{"write settled: no disc of ours, machine-ended"}},
			{string(vm) + ": while ejecting", ejecting(ours), Observation{VM: vm}, []string{"write settled: no disc of ours, machine-ended"}},
			{string(vm) + ": with nothing", recordWith(""), Observation{VM: vm}, nil},
		})
	}
	for _, rec := range []Record{recordWith(""), recordWith(oldNode), loading(ours), ejecting(ours), withAsked(recordWith(oldNode), oldNode)} {
		require.Empty(t, plan(rec, Observation{VM: Silent, Node: theirNode, TrayOpen: true, Nodes: []string{newNode}, Loans: []blockdev.Loan{{FDSet: 1}}}),
			"nobody guesses about a QEMU that doesn't answer")
	}
	check(t, []planRow{
		{"the drive was unplugged", recordWith(oldNode), Observation{NoDrive: true}, []string{released}},
		{"the drive was unplugged while loading", loading(ours), Observation{NoDrive: true}, []string{"write settled: no disc of ours, machine-ended"}},
	})
}

// TestPlanOutcome: what an outcome says about who, what and how.
func TestPlanOutcome(t *testing.T) {
	last := func(rec Record, obs Observation) Outcome {
		obs.VM, obs.Now = Present, noon
		steps := plan(rec, obs)
		return *steps[len(steps)-1].(Write).Record.Last
	}
	want := Outcome{Operation: "new", Verb: Replace, Medium: newFile, By: "root", Result: Done, At: noon, Recovered: true}
	require.Equal(t, want, last(loading(ours), Observation{Node: newNode}), "found out afterwards")
	want.Recovered = false
	require.Equal(t, want, last(loading(ours), Observation{Node: newNode, Running: true}), "the operation's own")
	want.Result, want.Reason = Cancelled, "why"
	require.Equal(t, want, last(loading(ours), Observation{Node: oldNode, Running: true, GivenUp: &GivenUp{Cancelled, "why"}}))
	guest := last(ejecting(oursOut, byGuest), Observation{})
	require.False(t, guest.Recovered, "a guest's eject is nobody's recovery")
	require.Equal(t, ByGuest, guest.By)
}
