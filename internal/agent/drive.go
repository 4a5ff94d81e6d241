package agent

import (
	"sync"
	"time"

	"github.com/trayd/trayd/blockdev"
)

// drive is one CD drive of one machine.
type drive struct {
	vm   *vm
	name string
	turn chan struct{} // holds a token while somebody works on the drive
	wake chan struct{} // the tray moved, or the connection ended
	// pen is held while the record is written. Whoever has the drive's turn writes what
	// becomes of the disc; a release takes its volume off the record's queue without it,
	// since the turn may be that of one who waits for a disk or a guest.
	pen      sync.Mutex
	retrying sync.Mutex // held by the one that tries queued releases again

	mu         sync.Mutex // guards below
	info       blockdev.Drive
	rec        Record
	op         *Operation      // running
	seen       *blockdev.State // what QEMU showed the last time; nil before
	unsettled  string          // why the drive's state is not known or not as it should be
	again      bool            // another look was asked for while somebody worked on the drive
	moves      moves
	askedSince time.Time // since when, in the machine's running time, Asked stands
	timer      *time.Timer
	// releaseTimer has the next try of a release that failed.
	releaseTimer *time.Timer
}

func newDrive(v *vm, name string) *drive {
	return &drive{
		vm: v, name: name,
		turn: make(chan struct{}, 1), wake: make(chan struct{}, 1),
		rec: Record{VM: v.name, Drive: name},
	}
}

func (d *drive) setInfo(info blockdev.Drive) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.info = info
}

// known is what the drive has been identified as.
func (d *drive) known() blockdev.Drive {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.info
}

func (d *drive) id() string { return d.known().ID }

func (d *drive) record() Record {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rec
}

func (d *drive) setRecord(rec Record) {
	defer d.vm.a.changes.Add(1)
	d.mu.Lock()
	defer d.mu.Unlock()
	if rec.Asked != nil && (d.rec.Asked == nil || *rec.Asked != *d.rec.Asked) {
		d.askedSince = time.Now()
	}
	d.rec = rec
}

// amend changes the record, makes it durable, then current. Outcomes may use the space
// that the journal keeps in reserve for them.
func (d *drive) amend(outcome bool, change func(*Record)) error {
	d.pen.Lock()
	defer d.pen.Unlock()
	rec := d.record()
	change(&rec)
	if err := d.vm.a.write(rec, outcome); err != nil {
		return err
	}
	d.setRecord(rec)
	return nil
}

// note changes the record for as long as trayd runs: what is not worth a write.
func (d *drive) note(change func(*Record)) {
	d.pen.Lock()
	defer d.pen.Unlock()
	rec := d.record()
	change(&rec)
	d.setRecord(rec)
}

// idle reports whether there is nothing that a new connection has to settle.
func (d *drive) idle() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rec.idle()
}

// quiet reports whether what QEMU just said asks for nothing to be done.
func (d *drive) quiet(st blockdev.State, there bool) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.op != nil || d.rec.empty() {
		return true
	}
	if d.rec.Asked != nil || d.rec.Change != nil {
		return false
	}
	obs := d.observation(st, there)
	obs.HoldReleases = !d.releasesDue(d.rec)
	return len(plan(d.rec, obs)) == 0
}

// asRecorded reports whether a session's first look shows what the record says, so that
// nothing is to be settled.
func (d *drive) asRecorded(p Process, st blockdev.State) bool {
	d.mu.Lock()
	same := d.op == nil && d.rec.Process == p && d.unsettled == ""
	d.mu.Unlock()
	if !same || !d.quiet(st, true) {
		return false
	}
	d.saw(st)
	return true
}

// observation is what can be said without asking QEMU more. d.mu is held.
func (d *drive) observation(st blockdev.State, there bool) Observation {
	return Observation{
		VM: Present, NoDrive: !there, Node: st.Node(), TrayOpen: st.TrayOpen, Locked: st.Locked,
		Policy: d.vm.a.opts().GuestEject, Now: time.Now().UTC(), Running: d.op != nil,
	}
}

// wakeUp tells an operation that waits for the guest to look at the drive now.
func (d *drive) wakeUp() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}
