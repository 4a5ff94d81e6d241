// Package fault does the same things wrong to each contender that changes discs, and
// looks at what came of it: is the old disc still in, is it true what the contender says,
// is anything left.
//
// It doesn't take the contender's word. What is in the drive is what QEMU says over a
// second monitor, and what a guest reads off the disc; what is left is what QEMU lists and
// what the kernel says that QEMU and the daemon hold open.
//
// The comparison counts with it; an integration test requires of trayd that nothing is
// ever lost.
package fault

import (
	"context"
	"math/rand/v2"
	"runtime"
	"time"

	"github.com/trayd/trayd/internal/wire"
)

// Fault is one thing that goes wrong while a disc is to be changed from OLD to FRESH.
type Fault struct {
	Name string
	// How is what is done, and Good what has to be in the drive in the end.
	How, Good string
	// Either is set where a run may well end with either disc: which it was is of interest.
	Either bool
	// do does it, and returns the volumes of which the guest has to read one afterwards.
	do func(ctx context.Context, r *Rig) (may []string, err error)
}

// The volumes of the discs, as a guest reads them.
const (
	old   = "OLD"
	fresh = "FRESH"
	none  = "" // no disc, or an open tray
)

// All are the faults, in the order of the table.
func All() []Fault {
	return []Fault{
		{"new image missing", "the file doesn't exist", "the old disc", false, missing},
		{"new image unreadable", "a file on a disk that fails: it can be opened, and reads of its content end with EIO", "the old disc", false, unreadable},
		{"new image vanishes and comes back", "the file is renamed away and back, about every 200 µs, while the change is asked for", "the old disc if the answer was an error, else the new one", true, vanishing},
		{"new image vanishes for good", "the file is unlinked at a random moment of the change (0 to 1.2 of its median duration, half of the runs in its first tenth)", "the old disc if the answer was an error, else the new one", true, removed},
		{"guest holds the lock", "the guest has locked the door and keeps it; the change is asked for without force", "the old disc", false, locked},
		{"guest lets go late", "as before; when the contender has given up (libvirt after 5 s), the guest does what it was asked for and ejects, as one under load does", "the old disc, in a closed tray", false, late},
		{"daemon killed in the middle", "kill -9 at a random moment of the change (0 to 1.2 of its median duration), then started again", "exactly one of the two, whole; the new one if the change had been confirmed", true, daemonKilled},
		{"daemon killed, guest ejects, daemon back", "kill -9; the guest ejects; started again", "what the guest wanted: it reads no disc", false, guestEjects},
		{"machine killed in the middle", "kill -9 of QEMU at a random moment of the change; then a machine of that name is started and given the old disc", "the next machine's disc", false, machineKilled},
	}
}

func missing(ctx context.Context, r *Rig) ([]string, error) {
	return r.ends(r.change(ctx, r.discs.missing())), nil
}

func unreadable(ctx context.Context, r *Rig) ([]string, error) {
	err := r.change(ctx, r.discs.unreadable())
	r.answered = err
	return []string{old}, nil
}

// vanishing renames the disc away and back while the change is asked for.
func vanishing(ctx context.Context, r *Rig) ([]string, error) {
	disc, err := r.discs.spare(ctx)
	if err != nil {
		return nil, err
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			case <-time.After(rand.N(200 * time.Microsecond)):
			}
			r.discs.away()
			time.Sleep(rand.N(200 * time.Microsecond))
			r.discs.back()
		}
	}()
	time.Sleep(rand.N(time.Millisecond))
	err = r.change(ctx, disc)
	close(stop)
	<-stopped
	return r.ends(err), nil
}

// removed removes the disc at a random moment of the change. A contender opens it soon, so
// half of the moments are in the first tenth.
func removed(ctx context.Context, r *Rig) ([]string, error) {
	disc, err := r.discs.spare(ctx)
	if err != nil {
		return nil, err
	}
	at := r.moment()
	if rand.N(2) == 0 {
		at /= 12
	}
	return r.ends(r.meanwhile(ctx, disc, at, r.discs.remove)), nil
}

func locked(ctx context.Context, r *Rig) ([]string, error) {
	r.guest.Lock()
	return r.ends(r.change(ctx, r.fresh())), nil
}

func late(ctx context.Context, r *Rig) ([]string, error) {
	r.guest.Lock()
	err := r.change(ctx, r.fresh())
	asked := false
	for range 2 { // the drive tells of a new disc first
		asked = asked || r.guest.EjectRequested()
	}
	r.guest.Unlock()
	if asked {
		_ = r.guest.Eject() // it may find the tray open
	}
	return r.ends(err), nil
}

func daemonKilled(ctx context.Context, r *Rig) ([]string, error) {
	err := r.meanwhile(ctx, r.fresh(), r.moment(), r.contender.Kill)
	if e := r.contender.Start(ctx); e != nil {
		return nil, e
	}
	if err == nil {
		return []string{fresh}, nil
	}
	return []string{old, fresh}, nil
}

func guestEjects(ctx context.Context, r *Rig) ([]string, error) {
	r.contender.Kill()
	_ = r.guest.Eject() // what it reads afterwards is looked at
	return []string{none}, r.contender.Start(ctx)
}

// machineKilled looks at what is said of the dead machine, and leaves the next one to be
// looked at as after any fault.
func machineKilled(ctx context.Context, r *Rig) ([]string, error) {
	err := r.meanwhile(ctx, r.fresh(), r.moment(), r.machine().Kill)
	r.answered = err
	r.untrue = r.saysDead(ctx)
	r.retire()
	if err := r.contender.Boot(ctx, vm); err != nil {
		return nil, err
	}
	if err := r.meet(ctx); err != nil {
		return nil, err
	}
	return []string{old}, r.ask(ctx, wire.Insert, vm, r.old())
}

// moment is a random one of a change: 0 to 1.2 of its median duration.
func (r *Rig) moment() time.Duration { return rand.N(r.duration * 12 / 10) }

// meanwhile has the disc changed and does something so long after the begin. It returns the
// change's answer.
func (r *Rig) meanwhile(ctx context.Context, disc string, at time.Duration, do func()) error {
	const exact = time.Millisecond // what a sleep may be late by
	answer := make(chan error, 1)
	began := time.Now()
	go func() { answer <- r.change(ctx, disc) }()
	time.Sleep(at - exact)
	for time.Since(began) < at {
		runtime.Gosched()
	}
	do()
	return <-answer
}

// ends says which volume has to be in after a change that was answered so.
func (r *Rig) ends(err error) []string {
	r.answered = err
	if err == nil {
		return []string{fresh}
	}
	return []string{old}
}
