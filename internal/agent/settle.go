package agent

import (
	"context"
	"errors"
	"time"

	"github.com/trayd/trayd/blockdev"
	"github.com/trayd/trayd/qmp"
)

const (
	// defaultAskedWindow is how long, while the machine runs, a guest may answer
	// an eject request that was withdrawn. Linux polls its drives every two
	// seconds; a slow guest under load gets the rest.
	defaultAskedWindow = 30 * time.Second
	// settleRounds bounds observe, plan, carry out. A drive needs two or three;
	// a guest that plays with its tray may need more, and gets another look later.
	settleRounds = 8
	// lookDelay is how long after an operation the tray's own events are looked
	// into: they are the operation's in all likelihood, and the next operation
	// looks anyway.
	lookDelay = 250 * time.Millisecond
	// retryDelay is between attempts to settle a drive that can't be settled now.
	retryDelay = 2 * time.Second
)

// moves compares the tray's events with the looks at the drive: an event that came
// before QEMU answered a look says nothing that the look didn't see. So the events of
// our own changes cause no further looks.
type moves struct {
	session *session // what the numbers are of
	last    uint64   // the last event
	seen    uint64   // the last event that a look has seen the end of
}

func (m *moves) of(s *session) *moves {
	if m.session != s {
		*m = moves{session: s}
	}
	return m
}

func (m *moves) unseen() bool { return m.last > m.seen }

// trayMoved is told of DEVICE_TRAY_MOVED, an event of that number.
func (d *drive) trayMoved(s *session, seq uint64) {
	d.wakeUp()
	d.mu.Lock()
	m := d.moves.of(s)
	m.last = max(m.last, seq)
	unseen, busy := m.unseen(), d.op != nil
	d.mu.Unlock()
	if unseen && !busy {
		d.vm.a.start(func() { d.settleNow(d.vm.a.ctx, s) })
	}
}

// lookLater has the drive looked at after a while, by whatever session there is
// then.
func (d *drive) lookLater(after time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
	}
	a := d.vm.a
	d.timer = time.AfterFunc(after, func() { a.startUnlessStopping(d.look) })
}

// look settles the drive by whatever session there is now.
func (d *drive) look() {
	a := d.vm.a
	s, release := d.vm.current()
	switch {
	case s != nil:
		defer release()
		d.settleNow(a.ctx, s)
	case d.vm.hasEnded():
		d.machineEnded()
		d.vm.releasedAll(d)
	case a.opts().Attach == OnDemand:
		d.vm.kickNow() // connecting settles the drive
	}
}

// settleNow settles the drive unless somebody is at work on it, who will.
func (d *drive) settleNow(ctx context.Context, s *session) {
	select {
	case d.turn <- struct{}{}:
	default:
		d.mu.Lock()
		d.again = true
		d.mu.Unlock()
		// Whoever has the turn looks at again after giving it up. If that has just
		// happened, then the turn can be had.
		select {
		case d.turn <- struct{}{}:
		default:
			return
		}
	}
	if s != nil && s.conn.Err() == nil && s.conn.Unanswered() > 0 && !d.idle() {
		// It owes an answer already: more questions would only pile up before it.
		d.settled(errSilent)
	} else {
		d.settle(ctx, s, nil)
	}
	d.giveUpTurn()
}

// giveUpTurn lets others work on the drive, and sees to it that what was asked for
// meanwhile is done.
func (d *drive) giveUpTurn() {
	<-d.turn
	d.mu.Lock()
	again := d.again || d.moves.unseen()
	d.again = false
	asked := d.rec.Asked != nil
	unsettled := d.unsettled != ""
	d.retryLater()
	d.mu.Unlock()
	switch {
	case again:
		d.lookLater(lookDelay)
	case unsettled:
		d.lookLater(retryDelay)
	case asked:
		d.lookLater(d.vm.a.askedWindow + time.Second)
	}
}

// dropRecord removes the record of a machine that has ended, once it owns nothing: how
// its last operation went is of no use any more. It does so once: the next machine of that
// name has a record of that key, and this drive's timers may come later. Nor is it removed
// where the machine has come back meanwhile.
func (d *drive) dropRecord() {
	d.pen.Lock()
	defer d.pen.Unlock()
	d.mu.Lock()
	rec, busy := d.rec, d.op != nil
	d.mu.Unlock()
	if busy || !rec.empty() || rec.Last == nil || !d.vm.hasEnded() || d.vm.forgotten() {
		return
	}
	if err := d.vm.a.journal.Delete(recordKey(rec.VM, rec.Drive)); err != nil {
		d.vm.a.log.Warn("the record of an ended machine can't be removed", "vm", rec.VM, "drive", rec.Drive, "error", err)
		return
	}
	d.setRecord(Record{VM: rec.VM, Drive: rec.Drive})
}

// machineEnded lets go of what the drive had, when its QEMU is no more.
func (d *drive) machineEnded() { d.settleNow(d.vm.a.ctx, nil) }

// settle observes, plans and carries out until nothing is left to do, or QEMU's time
// is over. The caller has the turn. given is why a running operation gives up; nil
// when none does, or when it succeeded.
func (d *drive) settle(ctx context.Context, s *session, given *GivenUp) {
	ctx, cancel := context.WithTimeout(ctx, d.vm.a.opts().Command+exitGrace)
	defer cancel()
	d.settled(d.trySettle(ctx, s, given))
}

// settlePatiently is settle for those who wait as long as QEMU takes.
func (d *drive) settlePatiently(ctx context.Context, s *session) {
	d.settled(d.trySettle(ctx, s, nil))
}

// settled notes what came of an attempt to settle the drive.
func (d *drive) settled(err error) {
	why := ""
	if err != nil {
		why = err.Error()
	}
	d.mu.Lock()
	was := d.unsettled
	d.unsettled = why
	d.mu.Unlock()
	if why != "" && why != was {
		d.vm.a.log.Warn("the drive is not settled; trayd goes on trying", "vm", d.vm.name, "drive", d.name, "error", why)
	}
}

var (
	errNotSettled = errors.New("the drive keeps changing")
	errSilent     = errors.New("QEMU doesn't answer: what is in the drive is not known")
)

func (d *drive) trySettle(ctx context.Context, s *session, given *GivenUp) error {
	deep := given != nil || d.record().Change == nil || !d.inFlight()
	for range settleRounds {
		obs, err := d.observe(ctx, s, deep)
		if err != nil {
			return err
		}
		obs.GivenUp = given
		rec := d.record()
		obs.HoldReleases = !d.releasesDue(rec)
		if !deep && rec.Change != nil && (obs.Node != rec.Change.Node || obs.TrayOpen) {
			deep = true // not the smooth end: look at everything
			continue
		}
		steps := plan(rec, obs)
		if obs.VM == Silent && !rec.idle() {
			return errSilent
		}
		for _, st := range steps {
			if err := d.carryOut(ctx, s, obs, st); err != nil {
				return err
			}
		}
		if rec = d.record(); rec.Change == nil {
			return nil
		}
	}
	return errNotSettled
}

// inFlight reports whether the record's change is that of the running operation,
// which leaves nothing behind when it goes well. One whose outcome is unknown may have
// left its loan.
func (d *drive) inFlight() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.op != nil && d.rec.Change != nil && d.op.ID == d.rec.Change.ID && !d.rec.Change.Stepwise &&
		d.op.Phase() != Unsettled
}

// observe asks QEMU about the drive. A shallow look is one query; a deep one also
// finds the nodes and descriptors that a death may have left.
func (d *drive) observe(ctx context.Context, s *session, deep bool) (Observation, error) {
	if s == nil || s.conn.Err() != nil {
		return d.unobserved(ctx), nil
	}
	id := d.id()
	look := looker{Conn: s.conn}
	st, err := blockdev.Observe(ctx, &look, id)
	noDrive := errors.Is(err, blockdev.ErrNoDrive)
	if err != nil && !noDrive {
		if s.conn.Err() != nil {
			return d.unobserved(ctx), nil
		}
		return Observation{VM: Silent}, nil
	}
	d.mu.Lock()
	if !noDrive {
		d.seen = &st
	}
	m := d.moves.of(s)
	m.seen = max(m.seen, look.events)
	rec := d.rec
	obs := d.observation(st, !noDrive)
	d.mu.Unlock()
	if !rec.idle() && rec.Process != s.process {
		obs.VM = Replaced
		return obs, nil
	}
	if !deep {
		return obs, nil
	}
	if rec.unsure(st.Node()) {
		if obs.Nodes, err = s.ownNodes(ctx, d); err != nil {
			return Observation{VM: Silent}, nil
		}
		if obs.Loans, err = s.unclaimedLoans(ctx, d); err != nil {
			return Observation{VM: Silent}, nil
		}
	}
	if rec.Asked != nil {
		obs.AskedOver, err = d.askedOver(ctx, s)
		if err != nil {
			return Observation{VM: Silent}, nil
		}
	}
	return obs, nil
}

// looker is a connection that remembers how many events stood before its last answer.
type looker struct {
	*qmp.Conn
	events uint64
}

// Execute is that of the connection.
func (l *looker) Execute(ctx context.Context, command string, args, result any) error {
	call, err := l.Send(ctx, command, args, nil)
	if err != nil {
		return err
	}
	err = call.Wait(ctx, result)
	if err == nil {
		l.events = call.Events()
	}
	return err
}

// exitGrace is how long a process may take to be gone once its socket is closed.
const exitGrace = 2 * time.Second

// unobserved is the observation of a QEMU that can't be asked: it has ended, or
// nobody knows.
func (d *drive) unobserved(ctx context.Context) Observation {
	d.mu.Lock()
	obs := Observation{VM: Silent, Now: time.Now().UTC(), Running: d.op != nil}
	p := d.rec.Process
	d.mu.Unlock()
	if p.PID == 0 {
		return obs // the kernel didn't say who listens: nobody knows whether it has ended
	}
	for end := time.Now().Add(exitGrace); ; {
		if !p.alive(d.vm.a.boot) {
			obs.VM = Gone
			return obs
		}
		if time.Now().After(end) || ctx.Err() != nil {
			return obs
		}
		time.Sleep(10 * time.Millisecond) // rare, and bounded: a pidfd would tell, but needs a thread of its own to wait
	}
}

// askedOver reports whether the guest has had its time. A paused guest has none.
func (d *drive) askedOver(ctx context.Context, s *session) (bool, error) {
	st, err := s.conn.QueryStatus(ctx)
	if err != nil {
		return false, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !st.Running {
		d.askedSince = time.Now()
		return false, nil
	}
	return time.Since(d.askedSince) >= d.vm.a.askedWindow, nil
}
