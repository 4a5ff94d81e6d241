package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"sort"
	"strings"

	"github.com/trayd/trayd/blockdev"
	"github.com/trayd/trayd/blockdev/volume"
	"github.com/trayd/trayd/qmp"
)

// modelMark is the prefix of our nodes in the model.
const modelMark = "trayd-test-"

func isOurs(node string) bool { return strings.HasPrefix(node, modelMark) }

// world is a small model of what survives the agent: the record, and a QEMU with one
// CD drive. It is a blockdev.Monitor, so that the real changers walk through it, and
// before each command the agent can die.
type world struct {
	rec     Record
	written Record // what a death leaves of it

	vm           Presence
	node         string // in the drive
	open, locked bool
	nodes        map[string]bool // those that exist; true: goes away with its medium
	loans        map[int]string  // fdset to tag
	lastSet      int
	askedOver    bool
	policy       GuestEject
	oldVolume    *volume.Ref // that the old disc is on; nil for none
	newVolume    *volume.Ref
	active       map[volume.Ref]bool // the volumes that are on
	elsewhere    volume.Ref          // the one that another machine's drive uses, too
	busy         bool                // somebody holds every volume open: none can be released

	ticks     int // commands and writes so far
	dieAt     int // the agent dies before this one; 0: never
	refuse    int // this command is refused; 0: none
	working   bool
	asked     bool   // the guest has been asked to eject, and may still answer
	quick     string // what the guest does as soon as it is asked
	untold    bool   // it has been asked by the last try, and nothing was written since
	everAsked bool
	reported  bool // a changer has said that it may have been asked, in this try

	// What happened, for the invariants.
	removed   bool // the operation took the old disc out
	emptied   bool // somebody else did
	guestMove bool // the guest or a reset moved the tray
	theirMove bool // somebody else put a disc in
	log       []string
}

// died is what the agent's death looks like to a model that goes on.
type died struct{}

// untilDeath runs f and reports whether the agent died in it.
func (w *world) untilDeath(f func()) (dead bool) {
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(died); !ok {
				panic(r)
			}
			w.log = append(w.log, "-- died --")
			w.rec = w.written
			dead = true
		}
	}()
	f()
	return false
}

func (w *world) tick(what string) {
	w.ticks++
	if w.ticks == w.dieAt {
		panic(died{})
	}
	w.log = append(w.log, what)
}

func (w *world) String() string {
	var nodes []string
	for n := range w.nodes {
		nodes = append(nodes, n)
	}
	sort.Strings(nodes)
	return fmt.Sprintf("node=%q open=%v locked=%v nodes=%v loans=%v loaded=%+v change=%+v asked=%+v\n%s",
		w.node, w.open, w.locked, nodes, w.loans, w.rec.Loaded, w.rec.Change, w.rec.Asked, strings.Join(w.log, "\n"))
}

func (w *world) drop() {
	if w.nodes[w.node] {
		delete(w.nodes, w.node)
	}
	w.node = ""
}

// Execute is QEMU, as FACTS and the contract suite of blockdev know it.
func (w *world) Execute(_ context.Context, command string, args, result any) error {
	switch command {
	case "query-block":
		medium := ""
		if w.node != "" {
			medium = fmt.Sprintf(`,"inserted":{"node-name":%q,"file":%q,"drv":"raw","ro":true}`, w.node, w.node)
		}
		return json.Unmarshal(fmt.Appendf(nil, `[{"device":"","qdev":"cd0","removable":true,"locked":%v,"tray_open":%v%s}]`, w.locked, w.open, medium), result)
	case "query-named-block-nodes":
		var all []map[string]string
		for n := range w.nodes {
			all = append(all, map[string]string{"node-name": n})
		}
		b, _ := json.Marshal(all)
		return json.Unmarshal(b, result)
	}
	b, _ := json.Marshal(args)
	var a struct {
		Force    bool   `json:"force"`
		NodeName string `json:"node-name"`
		Filename string `json:"filename"`
	}
	if err := json.Unmarshal(b, &a); err != nil {
		return err
	}
	node := a.NodeName
	if rest, ok := strings.CutPrefix(a.Filename, "json:"); ok {
		var options struct {
			NodeName string `json:"node-name"`
		}
		if err := json.Unmarshal([]byte(strings.ReplaceAll(rest, "'", `"`)), &options); err != nil {
			panic(err) // a model that understands nothing tests nothing
		}
		node = options.NodeName
	}
	if command == "blockdev-change-medium" || command == "blockdev-open-tray" {
		w.untold = false // what an earlier try has had asked has to be written down by now
	}
	w.tick(command + " " + node)
	refusal := &qmp.Error{Command: command, Class: qmp.ClassGeneric, Desc: "as the model says"}
	if w.ticks == w.refuse {
		if command == "blockdev-add" && strings.HasSuffix(node, blockdev.TrySuffix) && w.quick == "unlocks-quickly" {
			w.asked = false // a disc that opens no more, a moment after the guest was asked and has unlocked: it isn't known
		}
		return refusal
	}
	_, exists := w.nodes[node]
	held := w.locked && !w.open && !a.Force
	switch {
	case command == "blockdev-change-medium" && !exists && !held:
		w.drop()
		w.node, w.nodes[node], w.open = node, true, false
		w.locked = w.locked && !a.Force
	case command == "blockdev-add" && !exists:
		w.nodes[node] = false
	case command == "blockdev-del" && exists && !w.nodes[node] && w.node != node:
		delete(w.nodes, node)
	case command == "blockdev-open-tray":
		if held {
			w.ask() // and that is a success
			break
		}
		w.open, w.locked = true, false
	case command == "blockdev-close-tray":
		w.open = false
	case command == "blockdev-remove-medium" && w.open:
		w.drop()
		w.removed = w.removed || w.working
	case command == "blockdev-insert-medium" && w.open && w.node == "" && exists:
		w.node = node
	default:
		if command == "blockdev-change-medium" && held {
			w.ask()
		}
		return refusal
	}
	return nil
}

// ask is a guest that is asked to eject.
func (w *world) ask() {
	w.asked, w.untold, w.everAsked = true, true, true
	switch w.quick {
	case "unlocks-quickly":
		w.locked = false
	case "gives-in-quickly":
		w.open, w.locked, w.asked = true, false, false
	}
}

func (w *world) AddFD(_ context.Context, _ *os.File, _ int, opaque string) (qmp.FD, error) {
	w.tick("add-fd " + opaque)
	w.lastSet++
	w.loans[w.lastSet] = opaque
	return qmp.FD{FDSet: w.lastSet}, nil
}

func (w *world) RemoveFD(_ context.Context, fdset int) error {
	w.tick(fmt.Sprint("remove-fd ", fdset))
	if _, ok := w.loans[fdset]; !ok {
		return &qmp.Error{Command: "remove-fd", Class: qmp.ClassGeneric}
	}
	delete(w.loans, fdset)
	return nil
}

func (w *world) QueryFDSets(context.Context) ([]qmp.FDSet, error) { return nil, nil }

// write makes a record durable.
func (w *world) write(rec Record) {
	w.tick("write")
	w.rec, w.written, w.untold = rec, rec, false
}

// lend is blockdev.Lend without a file.
func (w *world) lend(node string) blockdev.Disc {
	fd, _ := w.AddFD(context.Background(), nil, -1, node)
	return blockdev.Disc{Node: node, FDSet: fd.FDSet}
}

// observe is drive.observe.
func (w *world) observe(given *GivenUp) Observation {
	obs := Observation{VM: w.vm, Node: w.node, TrayOpen: w.open, Locked: w.locked, Policy: w.policy, Now: noon, GivenUp: given}
	if !w.rec.unsure(w.node) {
		return obs
	}
	for n := range w.nodes {
		if isOurs(n) {
			obs.Nodes = append(obs.Nodes, n)
		}
	}
	sort.Strings(obs.Nodes)
	for set, tag := range w.loans {
		obs.Loans = append(obs.Loans, blockdev.Loan{FDSet: set, Node: tag})
	}
	obs.AskedOver = w.rec.Asked != nil && w.askedOver
	return obs
}

// The volumes of the model: the old disc's and the new one's.
var (
	oldVolume = volume.Ref{Kind: volume.LVM, Name: "vg0/old"}
	newVolume = volume.Ref{Kind: volume.LVM, Name: "vg0/new"}
)

// activate is Operation.turnOn.
func (w *world) activate(ref volume.Ref) {
	w.tick("activate " + ref.Name)
	w.active[ref] = true
}

// release is drive.release.
func (w *world) release(ref volume.Ref) {
	if !w.rec.usesVolume(ref) && ref != w.elsewhere {
		if w.busy {
			w.log = append(w.log, ref.Name+" is busy")
			return
		}
		w.tick("release " + ref.Name)
		delete(w.active, ref)
	}
	rec := w.rec
	rec.Releasing = slices.DeleteFunc(slices.Clone(rec.Releasing), func(q Releasing) bool { return q.Volume == ref })
	if len(rec.Releasing) == 0 {
		rec.Releasing = nil
	}
	w.write(rec)
}

// volumesWrong says what is wrong with the volumes at any moment, in the middle of
// everything: a disc that a guest can read needs its volume, and a volume that is on
// needs a record.
func (w *world) volumesWrong() string {
	for _, v := range []struct {
		node string
		ref  *volume.Ref
	}{{oldNode, w.oldVolume}, {backNode, w.oldVolume}, {newNode, w.newVolume}} {
		if v.ref != nil && w.node == v.node && w.vm == Present && !w.active[*v.ref] {
			return "the volume of " + v.node + " is off and the disc is in"
		}
	}
	for ref := range w.active {
		queued := slices.ContainsFunc(w.rec.Releasing, func(q Releasing) bool { return q.Volume == ref })
		if !queued && !w.rec.usesVolume(ref) && ref != w.elsewhere {
			return ref.Name + " is on and no record speaks of it"
		}
	}
	return ""
}

// carryOut is drive.carryOut.
func (w *world) carryOut(changer blockdev.Changer, st Step) error {
	ctx := context.Background()
	switch st := st.(type) {
	case CloseTray:
		return blockdev.CloseTray(ctx, w, "cd0")
	case OpenTray:
		return blockdev.OpenTray(ctx, w, "cd0")
	case RemoveMedium:
		return blockdev.RemoveMedium(ctx, w, "cd0")
	case InsertNode:
		return blockdev.InsertNode(ctx, w, "cd0", st.Node)
	case DeleteNode:
		return blockdev.DeleteNode(ctx, w, st.Node)
	case TakeBack:
		return w.takeBack(st.FDSet)
	case Restore:
		disc := w.lend(st.Node)
		err := changer.Swap(ctx, "cd0", disc, true)
		if e := w.takeBack(disc.FDSet); err == nil {
			err = e
		}
		return err
	case Write:
		w.write(st.Record)
		return nil
	case Release:
		w.release(st.Volume)
		return nil
	}
	return fmt.Errorf("no such step: %T", st)
}

func (w *world) takeBack(fdset int) error {
	err := w.RemoveFD(context.Background(), fdset)
	var refused *qmp.Error
	if errors.As(err, &refused) {
		return nil
	}
	return err
}

// settle is drive.settle, with the invariants of every single step. It returns what
// is wrong, or "".
func (w *world) settle(changer blockdev.Changer, given *GivenUp) string {
	for range settleRounds {
		for _, st := range plan(w.rec, Observation{VM: Silent, Node: w.node, TrayOpen: w.open}) {
			if _, ok := st.(Release); !ok {
				return "steps for a QEMU that doesn't answer"
			}
		}
		obs := w.observe(given)
		obs.HoldReleases = w.busy
		steps := plan(w.rec, obs)
		if len(steps) == 0 {
			return ""
		}
		for _, st := range steps {
			node, before := w.node, w.rec
			err := w.carryOut(changer, st)
			if wrong := w.stepWrong(st, node, before); wrong != "" {
				return wrong
			}
			if err != nil {
				w.log = append(w.log, "error: "+err.Error())
				break
			}
		}
	}
	return "it does not converge"
}

// stepWrong says what is wrong with a step that recovery has just done.
func (w *world) stepWrong(st Step, node string, before Record) string {
	if wrong := w.volumesWrong(); wrong != "" {
		return wrong
	}
	if node != "" && !isOurs(node) && w.node != node {
		return fmt.Sprintf("%s touched somebody else's disc", describe(st))
	}
	if _, ok := st.(Write); !ok || w.vm != Present {
		return ""
	}
	if in := w.rec.Loaded; in != nil && w.rec.Change == nil && in.Node != w.node {
		return "the record claims " + in.Node
	}
	c := before.Change
	if c == nil || w.rec.Last == nil || w.rec.Change != nil {
		return ""
	}
	in := w.node
	switch w.rec.Last.Result {
	case Done:
		if c.Kind == Loading && (in != c.Node || w.open) || c.Kind == Ejecting && in != "" {
			return "done, it says, and it isn't"
		}
	case Failed, Cancelled:
		if in != c.From.Node && in != restoredNode(c) {
			return "rolled back, it says, and it isn't"
		}
	case Overtaken:
		if in == c.Node && in != "" || in == c.From.Node && in != "" {
			return "overtaken, it says, and it isn't"
		}
	}
	return ""
}
