package agent

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/blockdev"
	"github.com/trayd/trayd/blockdev/volume"
)

// scenario is one history: a drive, an operation that dies, is refused or gives up at
// some command, what others do in between, and recoveries that may die as well.
type scenario struct {
	changer string
	verb    string // Replace or Eject
	before  string // what is in: empty, ours, ours-added (by blockdev-add), theirs, theirs-unnamed (no file to open again)
	door    string // open, closed, locked, or locks: after it was looked at
	force   string // never, at-once, then
	guest   string // when asked it ignores, unlocks, or gives-in (opens the tray); some quickly, before anybody looks
	policy  GuestEject
	dieAt   int    // command of the operation before which the agent dies; 0: it lives
	refuse  int    // command that QEMU refuses
	others  string // who does what after the operation
	again   int    // command of the first recovery before which it dies; 0: it lives
	others2 string // who does what after that
	volumes string // of the old disc and the new: two, the same, one that is used elsewhere too, busy ones, or none
}

var (
	modelChangers = []string{"atomic", "atomic-without-force", "stepwise"}
	modelBefore   = []string{"empty", "ours", "ours-added", "theirs", "theirs-unnamed"}
	modelDoors    = []string{"open", "closed", "locked", "locks"}
	modelForce    = []string{"never", "at-once", "then"}
	modelGuests   = []string{"ignores", "unlocks", "gives-in", "unlocks-quickly", "gives-in-quickly"}
	modelVolumes  = []string{"two", "same", "elsewhere", "busy", "none"}
	modelOthers   = []string{"", "guest-opens", "guest-closes", "guest-locks", "guest-unlocks", "reset", "taken-out", "taken-out-closed", "theirs-in", "restarted"}
)

// newWorld is the drive before the operation.
func (s scenario) newWorld() (*world, Before) {
	w := &world{
		vm: Present, rec: recordWith(""), nodes: map[string]bool{}, loans: map[int]string{},
		open: s.door == "open", locked: s.door == "locked", policy: s.policy,
		active: map[volume.Ref]bool{}, oldVolume: &oldVolume, newVolume: &newVolume,
	}
	switch s.volumes {
	case "same":
		w.newVolume = &oldVolume
	case "elsewhere":
		w.elsewhere, w.active[oldVolume] = oldVolume, true
	case "busy":
		w.busy = true
	case "none":
		w.oldVolume, w.newVolume = nil, nil
	}
	from := Before{TrayOpen: w.open}
	switch s.before {
	case "ours", "ours-added":
		w.rec, from.Node, from.File = recordWith(oldNode), oldNode, oldFile
		if w.rec.Loaded.Medium.Volume = w.oldVolume; w.oldVolume != nil {
			w.active[oldVolume] = true
		}
	case "theirs":
		from.Node, from.File = theirNode, theirFile
	case "theirs-unnamed":
		from.Node = theirNode
	}
	if !isOurs(from.Node) {
		w.oldVolume = nil
	}
	if from.Node != "" {
		w.node, w.nodes[from.Node] = from.Node, s.before != "ours-added"
	}
	w.written = w.rec
	return w, from
}

func (s scenario) newChanger(w *world) blockdev.Changer {
	o := blockdev.Options{Own: modelMark, Report: func(st blockdev.Step) { w.reported = w.reported || st == blockdev.StepEjectAsked }}
	if s.changer == "stepwise" {
		return blockdev.NewStepwise(w, o)
	}
	o.Features = blockdev.Features{ChangeMedium: true, ChangeMediumForce: s.changer == "atomic"}
	return blockdev.NewAtomic(w, o)
}

// operate is Operation.perform: intent, attempts, and why it gave up.
func (s scenario) operate(w *world, from Before, changer blockdev.Changer) *GivenUp {
	w.working = true
	defer func() { w.working = false }()
	ctx := context.Background()
	rec := loading(from)
	if s.verb == Eject {
		rec = ejecting(from)
	}
	rec.Loaded = w.rec.Loaded
	rec.Change.Asked = w.locked && s.force != "at-once"
	rec.Change.Stepwise = s.changer == "stepwise" && s.verb == Replace
	if s.verb == Replace {
		rec.Change.Target.Volume = w.newVolume
	}
	w.write(rec)
	w.locked, w.quick = w.locked || s.door == "locks", s.guest
	if s.verb == Replace && w.newVolume != nil {
		w.activate(*w.newVolume)
	}
	if s.verb == Eject {
		asked, err := s.attempts(w, func(force bool) error { return changer.Eject(ctx, "cd0", force) })
		return s.conclude(w, asked, err)
	}
	disc := w.lend(newNode)
	asked, err := s.attempts(w, func(force bool) error { return changer.Swap(ctx, "cd0", disc, force) })
	_ = w.takeBack(disc.FDSet)
	return s.conclude(w, asked, err)
}

// attempts is Operation.attempts; asked says whether an answer of the guest's is to come.
func (s scenario) attempts(w *world, try func(bool) error) (asked bool, err error) {
	force, waited := s.force == "at-once", false
	for letGo := false; ; {
		w.reported = false
		err = try(force)
		asked = asked || w.reported
		var freed *blockdev.LetGoError
		switch {
		case errors.As(err, &freed) && !letGo:
			letGo = true
			w.writeAsked()
			continue
		case errors.As(err, &freed):
			return asked, freed.Refusal
		case !errors.Is(err, blockdev.ErrLocked):
			return asked, err
		}
		letGo = false
		w.writeAsked()
		if force || waited {
			return asked, err
		}
		waited = true
		switch {
		case s.guest == "gives-in":
			w.locked, w.open, w.asked = false, true, false
		case s.guest == "unlocks":
			w.locked = false
		case w.locked && s.force == "never":
			return asked, err
		case w.locked:
			force = true
		}
		asked = asked && !w.open // Operation.waitForGuest sees its answer
	}
}

// conclude is how Operation.conclude begins.
func (s scenario) conclude(w *world, asked bool, err error) *GivenUp {
	if asked && err != nil {
		w.writeAsked()
	}
	w.rec.setAsked(asked)
	if err != nil {
		w.log = append(w.log, "error: "+err.Error())
		return &GivenUp{Failed, err.Error()}
	}
	return nil
}

// writeAsked is Operation.asked.
func (w *world) writeAsked() {
	if !w.rec.Change.Asked {
		rec := w.rec
		rec.setAsked(true)
		w.write(rec)
	}
}

// interfere is what a guest, another client of QEMU, or the end of QEMU does.
func (w *world) interfere(what string) {
	if what != "" {
		w.log = append(w.log, "-- "+what+" --")
	}
	switch what {
	case "guest-opens":
		w.open, w.locked, w.guestMove, w.asked = true, false, true, false
	case "guest-closes", "reset":
		w.guestMove = w.guestMove || w.open
		w.open, w.locked = false, w.locked && what != "reset"
	case "guest-locks":
		w.locked = !w.open
	case "guest-unlocks":
		w.locked = false
	case "taken-out", "taken-out-closed":
		w.drop()
		w.open, w.locked, w.emptied = what == "taken-out", false, true
	case "theirs-in":
		w.drop()
		w.node, w.open, w.locked, w.theirMove = "#block777", false, false, true
		w.nodes[w.node] = true
	case "restarted":
		w.vm, w.node, w.open, w.locked = Replaced, "", false, false
		clear(w.nodes)
		clear(w.loans)
	}
}

// run plays the history and returns what is wrong with it, and the number of commands
// that the operation and its first recovery took.
func (s scenario) run() (wrong string, operation, recovery int, w *world) {
	w, from := s.newWorld()
	changer := s.newChanger(w)
	w.dieAt, w.refuse = s.dieAt, s.refuse
	var given *GivenUp
	dead := w.untilDeath(func() { given = s.operate(w, from, changer) })
	operation = w.ticks
	if c := w.rec.Change; dead && w.untold && c != nil && !c.Asked {
		w.asked = false // what Operation.asked does not cover
	}
	alive := !dead
	w.interfere(s.others)
	if dead {
		given = nil // died with the agent
	}
	w.ticks, w.dieAt, w.refuse = 0, s.again, 0
	dead = w.untilDeath(func() { wrong = w.settle(changer, given) })
	recovery = w.ticks
	w.dieAt = 0
	if wrong == "" && alive && !dead && w.rec.Asked != nil && !w.everAsked && s.refuse == 0 {
		wrong = "an answer is waited for, and nobody was asked"
	}
	if wrong == "" && (dead || s.others2 != "") {
		w.interfere(s.others2)
		wrong = w.settle(changer, nil)
	}
	if wrong == "" {
		wrong = s.endWrong(w, from)
	}
	if wrong == "" {
		wrong = s.lateAnswerWrong(w, changer)
	}
	if wrong == "" && w.busy {
		w.busy = false // whoever held the volumes has let go
		wrong = w.settle(changer, nil)
	}
	if wrong == "" && len(w.rec.Releasing) > 0 {
		wrong = "a volume is never released"
	}
	return wrong, operation, recovery, w
}

// endWrong says what is wrong with the settled drive.
func (s scenario) endWrong(w *world, from Before) string {
	rec := w.rec
	if rec.Change != nil {
		return "a record with a change is left"
	}
	if w.vm != Present {
		if !rec.idle() {
			return "a record of a machine that has ended"
		}
		return ""
	}
	for n := range w.nodes {
		if isOurs(n) && n != w.node {
			return "node " + n + " is left"
		}
	}
	if len(w.loans) > 0 {
		return "a loan is left"
	}
	if isOurs(w.node) && (rec.Loaded == nil || rec.Loaded.Node != w.node) {
		return "our disc is in and no record says so"
	}
	if w.emptied || w.theirMove {
		return "" // what others made of it is theirs
	}
	guestEjected := s.policy == GuestEjectRelease && (w.guestMove || from.TrayOpen)
	if w.node == "" && from.Node != "" && s.verb == Replace && !guestEjected {
		return "the drive was left empty"
	}
	switch {
	case s.verb == Eject && w.removed && (w.node != "" || w.open && !w.guestMove):
		return "an eject after its removal is not finished"
	case s.verb == Eject && !w.removed && !guestEjected && w.node != from.Node:
		return "an eject before its removal is not rolled back"
	case w.guestMove:
		return ""
	case w.node == from.Node && w.node != "" && w.open != from.TrayOpen && (s.refuse == 0 || w.open):
		// A changer that is refused in the middle closes the tray, also one that
		// was open before: the disc can be read then.
		return "the tray is not as it was"
	case w.node != from.Node && w.open && !(w.node == backNode && from.TrayOpen):
		return "the tray is open"
	}
	return ""
}

// lateAnswerWrong has the guest answer a request that was withdrawn, or not in time.
func (s scenario) lateAnswerWrong(w *world, changer blockdev.Changer) string {
	if w.rec.Asked == nil && (!w.asked || w.open || w.emptied || w.theirMove || w.vm != Present) {
		return ""
	}
	late := *w
	late.nodes, late.loans, late.active = maps.Clone(w.nodes), maps.Clone(w.loans), maps.Clone(w.active)
	late.interfere("guest-opens")
	if wrong := late.settle(s.newChanger(&late), nil); wrong != "" {
		return "after a late answer: " + wrong
	}
	if late.node != w.node || late.open || late.rec.Asked != nil {
		return "a late answer was not put right"
	}
	w.askedOver = true
	if wrong := w.settle(changer, nil); wrong != "" {
		return "after the guest's time: " + wrong
	}
	if w.rec.Asked != nil || w.node != late.node {
		return "a withdrawn request is never over"
	}
	return ""
}

// eachOperation calls f for every operation on every drive, without interference.
func eachOperation(changers []string, f func(scenario)) {
	for _, changer := range changers {
		for _, verb := range []string{Replace, Eject} {
			for _, before := range modelBefore {
				for _, door := range modelDoors {
					for _, force := range modelForce {
						for _, guest := range modelGuests {
							if !strings.HasPrefix(door, "lock") && (force == "then" || guest != "ignores") {
								continue // nobody is asked
							}
							s := scenario{changer: changer, verb: verb, before: before, door: door, force: force, guest: guest, volumes: "two"}
							for _, s.policy = range []GuestEject{GuestEjectRelease, GuestEjectKeep} {
								f(s)
							}
							if door == "closed" && strings.HasPrefix(before, "ours") {
								s.policy = GuestEjectRelease
								for _, s.volumes = range modelVolumes[1:] {
									f(s)
								}
							}
						}
					}
				}
			}
		}
	}
}

// TestModel cuts every operation off at every command, lets one other party act, cuts
// its recovery off at every command too, and looks at the end.
func TestModel(t *testing.T) {
	for _, changer := range modelChangers {
		t.Run(changer, func(t *testing.T) {
			t.Parallel()
			model(t, changer)
		})
	}
}

func model(t *testing.T, changer string) {
	histories := 0
	try := func(s scenario) (operation, recovery int) {
		histories++
		wrong, operation, recovery, w := s.run()
		require.Empty(t, wrong, "%+v\n%v", s, w)
		return operation, recovery
	}
	eachOperation([]string{changer}, func(s scenario) {
		length, _ := try(s)
		for at := 1; at <= length+1; at++ {
			for _, fault := range []string{"dies", "refused"} {
				f := s
				if f.dieAt, f.refuse = at, 0; fault == "refused" {
					f.dieAt, f.refuse = 0, at
				}
				_, recovery := try(f)
				for again := 1; again <= recovery; again++ {
					f.again = again
					try(f)
				}
				f.again = 0
				for _, f.others = range modelOthers[1:] {
					try(f)
				}
			}
		}
	})
	t.Log(histories, "histories")
}

// TestModelRandom goes on where all combinations are too many: others act more than
// once, between recoveries that die.
func TestModelRandom(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Log("seed", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	var all []scenario
	eachOperation(modelChangers, func(s scenario) { all = append(all, s) })
	for range 20000 {
		s := all[r.IntN(len(all))]
		s.others = modelOthers[r.IntN(len(modelOthers))]
		s.others2 = modelOthers[r.IntN(len(modelOthers))]
		s.again = r.IntN(8)
		s.volumes = modelVolumes[r.IntN(len(modelVolumes))]
		if at := r.IntN(12); r.IntN(2) == 0 {
			s.dieAt = at
		} else {
			s.refuse = at
		}
		wrong, _, _, w := s.run()
		require.Empty(t, wrong, "seed %d: %+v\n%v", seed, s, w)
	}
}
