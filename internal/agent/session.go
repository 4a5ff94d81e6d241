package agent

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trayd/trayd/blockdev"
	"github.com/trayd/trayd/qmp"
)

// session is one connection to one QEMU. It is made whole (drives known) and ends
// with its connection.
type session struct {
	vm      *vm
	conn    *qmp.Conn
	process Process
	events  *qmp.Subscription
	// followed is closed when the last event has been seen to, after the connection's end.
	followed chan struct{}
	// first is what was in the drives that records speak of, when it was connected to.
	first map[*drive]blockdev.State
	holds int // guarded by vm.mu; the last one to let go closes the session

	known atomic.Bool // all drives have been identified
	ended sync.Once   // the connection's end has been told

	mu       sync.Mutex // guards below
	features *blockdev.Features
	ids      map[string]*drive // by QEMU's id of the drive; nil value: no CD drive
}

func openSession(ctx context.Context, v *vm) (*session, error) {
	path := v.socket()
	if v.a.machines.own(v.name) {
		at, done, err := ownSocket(path)
		if err != nil {
			return nil, err
		}
		defer done()
		path = at
	}
	conn, err := qmp.Dial(ctx, path, &qmp.Options{Timeout: dialTimeout})
	if err != nil {
		return nil, err
	}
	s := &session{vm: v, conn: conn, followed: make(chan struct{}), ids: make(map[string]*drive)}
	s.process = lookUp(conn.Peer().PID, v.a.boot)
	// 64 events: a flood beyond it is noticed by its count, and answered by
	// asking QEMU for everything.
	s.events = conn.Subscribe(64)
	if err := s.findRecorded(ctx); err != nil {
		s.close()
		return nil, err
	}
	v.a.start(s.follow)
	return s, nil
}

// findRecorded identifies the drives that records speak of, which are to be settled. To
// identify the others takes most of the time that attaching to fifty machines takes, and
// waits until somebody asks, or nothing else is to be done.
func (s *session) findRecorded(ctx context.Context) error {
	ctx, cancel := s.command(ctx)
	defer cancel()
	states, err := blockdev.ObserveAll(ctx, s.conn)
	if err != nil {
		return err
	}
	recorded := make(map[string]*drive)
	for _, d := range s.vm.allDrives() {
		if !d.idle() {
			recorded[d.name] = d
		}
	}
	s.first = make(map[*drive]blockdev.State, len(recorded))
	for _, st := range states {
		d := recorded[blockdev.NameOf(st)]
		if d == nil {
			continue
		}
		if !s.recall(d, st) {
			if d, err = s.identify(ctx, st); err != nil {
				return err
			}
		}
		if d != nil {
			s.first[d] = st
		}
	}
	return nil
}

// recall identifies a drive by its record. A disc of ours is proof that it is the drive that
// the record speaks of: nobody but trayd puts its nodes into drives.
func (s *session) recall(d *drive, st blockdev.State) bool {
	rec := d.record()
	if rec.Model == "" || rec.Loaded == nil || rec.Loaded.Node != st.Node() || rec.Process != s.process {
		return false
	}
	d.setInfo(blockdev.Recall(st, rec.Model, rec.Bus))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ids[st.ID] = d
	return true
}

// know sees to it that all drives are identified.
func (s *session) know(ctx context.Context) error {
	if s.known.Load() {
		return nil
	}
	_, err := s.observeAll(ctx)
	return err
}

// lost tells, once, that the connection has ended and we didn't end it.
func (s *session) lost() {
	if cause := s.conn.Err(); cause != nil && s.vm.a.ctx.Err() == nil {
		s.ended.Do(func() { s.vm.a.publish(Event{Type: EventVMLost, VM: s.vm.name, Detail: cause.Error()}) })
	}
}

func (s *session) close() {
	s.events.Close()
	s.conn.Close()
}

// command bounds one question to QEMU.
func (s *session) command(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, s.vm.a.opts().Command)
}

// observeAll asks for all drives in one query, and identifies those that are new.
func (s *session) observeAll(ctx context.Context) (map[*drive]blockdev.State, error) {
	ctx, cancel := s.command(ctx)
	defer cancel()
	states, err := blockdev.ObserveAll(ctx, s.conn)
	if err != nil {
		return nil, err
	}
	found := make(map[*drive]blockdev.State, len(states))
	shown := make(map[string]bool, len(states))
	for _, st := range states {
		shown[st.ID] = true
		d, err := s.identify(ctx, st)
		if err != nil {
			return nil, err
		}
		if d != nil {
			d.saw(st)
			found[d] = st
		}
	}
	s.mu.Lock()
	for id, d := range s.ids { // what was unplugged may come back as something else
		if _, ok := found[d]; !ok && (d != nil || !shown[id]) {
			delete(s.ids, id)
		}
	}
	s.mu.Unlock()
	s.known.Store(true)
	return found, nil
}

// identify asks QOM once per session what a backend is.
func (s *session) identify(ctx context.Context, st blockdev.State) (*drive, error) {
	s.mu.Lock()
	d, known := s.ids[st.ID]
	s.mu.Unlock()
	if known {
		return d, nil
	}
	info, isCD, err := blockdev.Identify(ctx, s.conn, st)
	if err != nil {
		return nil, err
	}
	if isCD {
		d = s.vm.drive(info.Name)
		d.setInfo(info)
	}
	s.mu.Lock()
	s.ids[st.ID] = d
	s.mu.Unlock()
	return d, nil
}

// changer returns the changer that this QEMU allows.
func (s *session) changer(ctx context.Context, report func(blockdev.Step)) (blockdev.Changer, error) {
	f, err := s.knownFeatures(ctx)
	if err != nil {
		return nil, err
	}
	o := blockdev.Options{Features: f, Own: s.vm.a.mark, Report: report}
	switch s.vm.a.opts().Strategy {
	case "stepwise":
		return blockdev.NewStepwise(s.conn, o), nil
	case "atomic":
		return blockdev.NewAtomic(s.conn, o), nil
	}
	return blockdev.Choose(s.conn, o), nil
}

func (s *session) knownFeatures(ctx context.Context) (blockdev.Features, error) {
	s.mu.Lock()
	known := s.features
	s.mu.Unlock()
	if known != nil {
		return *known, nil
	}
	ctx, cancel := s.command(ctx)
	defer cancel()
	f, err := s.vm.a.features.get(ctx, s.conn)
	if err != nil {
		return f, err
	}
	s.mu.Lock()
	s.features = &f
	s.mu.Unlock()
	return f, nil
}

// settleAll puts every drive in order that a record speaks of, after a connect:
// whatever happened while nobody was connected is learnt by asking.
func (s *session) settleAll(ctx context.Context) {
	for _, d := range s.vm.allDrives() {
		st, seen := s.first[d]
		if d.idle() || seen && d.asRecorded(s.process, st) {
			continue
		}
		d.settleNow(ctx, s)
	}
	s.first = nil
	if _, release := s.vm.current(); release != nil {
		s.vm.a.start(func() {
			defer release()
			if s.sweepTime() {
				s.sweep(s.vm.a.ctx)
			}
		})
	}
}

// sweepDelay is how long the sweeps of a start of trayd come after it is ready: those
// who ask what is so, or for a change, are answered before fifty QEMUs have been swept.
const sweepDelay = 100 * time.Millisecond

// sweepTime waits until the session may be swept; false when it has ended before.
func (s *session) sweepTime() bool {
	a := s.vm.a
	select {
	case <-a.begun:
		return true // a connect while trayd runs
	default:
	}
	select {
	case <-a.begun:
	case <-s.conn.Done():
		return false
	case <-a.ctx.Done():
		return false
	}
	select {
	case <-time.After(sweepDelay):
		return true
	case <-s.conn.Done():
		return false
	case <-a.ctx.Done():
		return false
	}
}

// sweep removes what carries our mark and no record speaks of, in the background
// after a connect.
func (s *session) sweep(ctx context.Context) {
	s.takeBackLoans(ctx)
	_ = s.know(ctx)             // so that the first request doesn't have to ask
	_, _ = s.knownFeatures(ctx) // so that the first change doesn't have to ask
	s.sweepNodes(ctx)
	for _, d := range s.vm.allDrives() {
		d.turnOnAgain(ctx)
	}
}

// look observes all drives at once and settles those that need it. begun is called
// just before QEMU is asked: what happens later needs another look.
func (s *session) look(ctx context.Context, begun func()) {
	begun()
	states, err := s.observeAll(ctx)
	if err != nil {
		return // the connection's end or silence is noticed elsewhere
	}
	for _, d := range s.vm.allDrives() {
		st, there := states[d]
		if d.quiet(st, there) {
			continue
		}
		d.settleNow(ctx, s)
	}
	s.sweepLeft(ctx)
}

// takeBackLoans ends the loans that no operation uses: those that a death left, and
// those that a paused QEMU up to 8.2 kept when it was asked before.
func (s *session) takeBackLoans(ctx context.Context) {
	ctx, cancel := s.command(ctx)
	defer cancel()
	loans, err := s.unclaimedLoans(ctx, nil)
	if err != nil {
		return
	}
	for _, l := range loans {
		_ = blockdev.TakeBack(ctx, s.conn, l.FDSet) // it is asked for again at the next chance
	}
}

// unclaimedLoans lists our loans that no drive but one has a claim to. A claim counts
// that stood before QEMU was asked or stands after it: fdset numbers are used again, so
// a loan that is about to end must not be taken for one that may be ended.
func (s *session) unclaimedLoans(ctx context.Context, but *drive) ([]blockdev.Loan, error) {
	before := s.vm.nodesInUse(but)
	loans, err := blockdev.Lent(ctx, s.conn, s.vm.a.mark)
	after := s.vm.nodesInUse(but)
	return slices.DeleteFunc(loans, func(l blockdev.Loan) bool { return before[l.Node] || after[l.Node] }), err
}

// follow acts on QEMU's events until the connection ends.
func (s *session) follow() {
	defer close(s.followed)
	missed := uint64(0)
	for e := range s.events.C {
		s.vm.a.machines.event(s, e)
		s.vm.a.changes.Add(1)
		switch e.Name {
		case "DEVICE_TRAY_MOVED":
			s.trayMoved(e)
		case "RESUME":
			// A paused QEMU up to 8.2 kept descriptors that were taken back.
			// They keep volumes busy.
			s.vm.a.start(func() {
				s.takeBackLoans(s.vm.a.ctx)
				s.vm.a.retryReleases()
			})
			s.vm.lookSoon()
		case "DEVICE_DELETED":
			// Its id may be another device's by the time that anybody looks.
			s.mu.Lock()
			clear(s.ids)
			s.mu.Unlock()
			s.vm.lookSoon()
		case "BLOCK_EXPORT_DELETED", "BLOCK_JOB_COMPLETED", "BLOCK_JOB_CANCELLED":
			s.vm.a.start(func() {
				s.sweepLeft(s.vm.a.ctx)
				s.vm.a.retryReleases()
			})
		case "RESET":
			// A reset closes an open tray without DEVICE_TRAY_MOVED.
			s.vm.lookSoon()
		}
		if n := s.events.Missed(); n != missed {
			missed = n
			s.vm.a.log.Warn("QEMU sent more events than could be followed: asking for its state instead", "vm", s.vm.name, "missed", n)
			s.wakeAll()
			s.vm.lookSoon()
			s.vm.a.machines.missedEvents(s)
		}
	}
	// Wake whoever waits for the guest: the connection has ended.
	s.wakeAll()
}

func (s *session) wakeAll() {
	for _, d := range s.vm.allDrives() {
		d.wakeUp()
	}
}

func (s *session) trayMoved(e qmp.Event) {
	var moved struct {
		ID     string `json:"id"`
		Device string `json:"device"`
	}
	if json.Unmarshal(e.Data, &moved) != nil {
		return
	}
	s.mu.Lock()
	d := s.ids[moved.ID]
	s.mu.Unlock()
	if d == nil {
		s.vm.lookSoon()
		return
	}
	d.trayMoved(s, e.Seq)
}

// nodesInUse are the names of nodes that the records of the machine's drives, but
// for one, lay claim to.
func (v *vm) nodesInUse(but *drive) map[string]bool {
	claimed := make(map[string]bool)
	for _, d := range v.allDrives() {
		if d == but {
			continue
		}
		rec := d.record()
		if c := rec.Change; c != nil && c.Node != "" {
			for _, suffix := range []string{"", blockdev.TrySuffix, "-old"} {
				claimed[c.Node+suffix] = true
			}
			claimed[c.From.Node] = true
		}
		if rec.Loaded != nil && but != nil {
			claimed[rec.Loaded.Node] = true
		}
	}
	return claimed
}

// holds reports whether a record says that the node is in a drive.
func (v *vm) holds(node string) bool {
	for _, d := range v.allDrives() {
		if in := d.record().Loaded; in != nil && in.Node == node {
			return true
		}
	}
	return false
}

// ownNodes lists our nodes that no drive but this one has a claim to.
func (s *session) ownNodes(ctx context.Context, d *drive) ([]string, error) {
	all, err := blockdev.Nodes(ctx, s.conn, s.vm.a.mark)
	if err != nil {
		return nil, err
	}
	claimed := s.vm.nodesInUse(d)
	var own []string
	for _, n := range all {
		if !claimed[n] && !strings.HasPrefix(n, "#") {
			own = append(own, n)
		}
	}
	return own, nil
}
