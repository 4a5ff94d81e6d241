package agent

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/trayd/trayd/internal/machine"
	"github.com/trayd/trayd/internal/wire"
)

// What a guest does, trayd hears by QEMU's events. What it has done while they weren't heard
// (trayd was dead, the connection lost, events were more than could be followed) is learnt
// afterwards, before anything is decided by it.

// follows reports whether trayd hears by a session of all that the guest does.
func (m *machines) follows(s *session) bool {
	return m.known(s.vm.name, func(*installing) {}).followed == s
}

// unfollowed is told that the guest may do, or have done, what the session doesn't tell. It
// reports whether it was followed by that.
func (m *machines) unfollowed(s *session) (was bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	i := m.watch[s.vm.name]
	if i == nil {
		return false
	}
	i.misses++
	if was = i.followed == s; was {
		i.followed = nil
	}
	return was
}

// attached is told of every new session of a machine of trayd's own: a start that was cut off
// or that `systemctl start` began is gone on with, and what happened meanwhile is learnt.
func (m *machines) attached(s *session) {
	if !m.own(s.vm.name) {
		return
	}
	m.known(s.vm.name, func(i *installing) { i.followed = nil }) // by a session before this
	m.learnSoon(s)
}

// learnSoon has it learnt what a machine has done, however long QEMU doesn't answer.
func (m *machines) learnSoon(s *session) {
	m.a.startUnlessStopping(func() {
		now, release := s.vm.current()
		if now == nil {
			return
		}
		defer release()
		if now != s {
			return // that one's to learn
		}
		doing := m.doing(s.vm.name) != ""
		begins, err := m.learn(m.a.ctx, s)
		for told := ""; err != nil; begins, err = m.learn(m.a.ctx, s) {
			if s.conn.Err() != nil || !m.own(s.vm.name) {
				return
			}
			if told != err.Error() {
				told = err.Error()
				m.a.log.Warn("what the machine has done can't be found out; trayd goes on trying", "vm", s.vm.name, "error", err)
			}
			select {
			case <-time.After(learnAgain):
			case <-s.conn.Done():
				return
			case <-m.a.ctx.Done():
				return
			}
		}
		if !begins || doing || m.doing(s.vm.name) != "" {
			return
		}
		release()
		if began, err := m.a.StartVM(m.a.ctx, s.vm.name, Caller{Name: "the service manager"}); err == nil {
			for _, w := range began.Warnings {
				m.a.log.Warn(w, "vm", s.vm.name)
			}
		}
	})
}

// learnAgain is between questions to a QEMU that doesn't answer: it isn't hurried.
const learnAgain = 5 * time.Second

// errMissed is of a catching up that was itself overtaken.
var errMissed = errors.New("QEMU has sent more events than could be followed")

// learn catches up with a machine whose guest runs, or has run, unless that has been done by
// this session. It reports whether the guest is about to begin.
func (m *machines) learn(ctx context.Context, s *session) (begins bool, err error) {
	select {
	case s.vm.learning <- struct{}{}:
		defer func() { <-s.vm.learning }()
	case <-ctx.Done():
		return false, ctx.Err()
	}
	before := m.known(s.vm.name, func(*installing) {})
	if before.followed == s {
		return false, nil
	}
	d, err := m.store().Load(s.vm.name)
	if err != nil {
		return false, err
	}
	bounded, cancel := s.command(ctx)
	defer cancel()
	st, err := s.conn.QueryStatus(bounded)
	if err != nil || st.Status == prelaunch || m.follows(s) { // it has been started meanwhile
		return err == nil && st.Status == prelaunch, err
	}
	var r run
	if ok, err := m.a.journal.Get(runPrefix+d.Name, &r); err != nil || !ok || r.Process != s.process {
		if err := m.noteRun(d.Name, s.process); err != nil {
			m.a.log.Warn("that the machine runs can't be written to the state file", "vm", d.Name, "error", err)
		}
	}
	return false, m.catchUp(ctx, s, d, before.misses)
}

// catchUp learns what a running machine did while trayd didn't look, unless there are more
// misses by now.
func (m *machines) catchUp(ctx context.Context, s *session, d *machine.Definition, misses int) error {
	if err := s.know(ctx); err == nil {
		for _, c := range d.CDROMs {
			if rec := s.vm.drive(c.Name).record(); rec.Change == nil {
				m.followDrive(s.vm.name, c.Name, rec)
			}
		}
	}
	var written bool
	var err error
	if d.Boot == wire.BootCDROMOnce {
		if written, err = m.writtenInQEMU(ctx, s, d); err == nil && !written {
			err = m.followInstall(ctx, s, d)
		}
	}
	m.known(d.Name, func(i *installing) {
		if err == nil && i.misses != misses {
			err = errMissed
		}
		if err == nil {
			i.followed = s
		}
		if written {
			i.written, i.missed = true, true
		}
	})
	if written {
		m.wroteDisk(s.vm)
	}
	return err
}

// missedEvents is told that QEMU has sent more than could be followed.
func (m *machines) missedEvents(s *session) {
	if m.unfollowed(s) { // else it is being learnt anyway
		m.learnSoon(s)
	}
}

// writtenInQEMU asks QEMU whether the guest has written to a disk since it was started.
func (m *machines) writtenInQEMU(ctx context.Context, s *session, d *machine.Definition) (bool, error) {
	ctx, cancel := s.command(ctx)
	defer cancel()
	var stats []struct {
		Node  string `json:"node-name"`
		Stats struct {
			Writes int64 `json:"wr_operations"`
		} `json:"stats"`
	}
	if err := s.conn.Execute(ctx, "query-blockstats", nil, &stats); err != nil {
		return false, err
	}
	for _, st := range stats {
		if st.Stats.Writes > 0 && slices.ContainsFunc(d.Disks, func(k wire.Disk) bool { return k.Name == st.Node }) {
			return true, nil
		}
	}
	return false, nil
}
