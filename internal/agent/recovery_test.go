package agent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/qemutest"
	"github.com/trayd/trayd/state"
)

// TestStopWhileWaiting: an agent that stops rolls back what waits for a guest; the next
// one still puts right what the guest answers late.
func TestStopWhileWaiting(t *testing.T) {
	strategies(t, func(t *testing.T, strategy func(*Options)) {
		r, g, a, b := lockedRig(t, qemutest.IDE, strategy)
		o := r.begin(Replace, "vm", b)
		r.waiting(o)
		begun := time.Now()
		r.stop()
		require.Less(t, time.Since(begun), stopGrace)
		_, err := r.finish(o)
		require.ErrorContains(t, r.isError(CancelledCode, err), "the agent was stopped")
		require.Equal(t, "DISC_A", g.Volume())
		_, err = r.agent.Start(request(Eject, "vm", ""))
		require.Error(t, err, "a stopped agent takes no requests")

		g.Unlock()
		require.Empty(t, g.Eject(), "the answer comes while no agent runs")
		r.start()
		r.holds("vm", a)
		require.Equal(t, "DISC_A", g.Volume())
	})
}

// TestStoppingChangesNothing in any machine, and the next agent knows what is in.
func TestStoppingChangesNothing(t *testing.T) {
	r := newRig(t)
	a := r.disc("DISC_A")
	m := r.machine("vm", qemutest.IDE)
	r.start()
	r.done(Insert, "vm", a)
	before := m.state("cd0")
	r.stop()
	require.Equal(t, before, m.state("cd0"))
	r.start()
	r.holds("vm", a)
	require.Contains(t, r.done(Insert, "vm", a).Reason, "in already")
	require.Equal(t, before, m.state("cd0"))
}

// TestWhatHappenedWhileWeWereAway is learnt by asking.
func TestWhatHappenedWhileWeWereAway(t *testing.T) {
	strategies(t, func(t *testing.T, strategy func(*Options)) {
		r, g, _, b := lockedRig(t, qemutest.IDE, strategy)
		g.Unlock()
		r.stop()
		require.Empty(t, g.Eject())
		r.start()
		r.holds("vm", "")
		r.done(Insert, "vm", b)
		r.stop()
		r.vms[0].takesOut("cd0")
		r.start()
		r.settled()
		require.Nil(t, r.record().Loaded)
	})
}

// TestOutcomeNotWritten: what is done in the machine is called incomplete when the
// state file doesn't take it, and found out by the next start.
func TestOutcomeNotWritten(t *testing.T) {
	armed := false
	var r *rig
	r = newRig(t, func(o *Options) {
		o.FailPoint = func(name string) {
			if armed && name == "swapped" {
				require.NoError(t, r.journal.Close())
			}
		}
	})
	a, b := r.disc("DISC_A"), r.disc("DISC_B")
	r.machine("vm", qemutest.IDE)
	r.start()
	r.done(Insert, "vm", a)
	armed = true
	err := r.refused(Incomplete, Replace, "vm", b)
	require.ErrorContains(t, err, "is done in the machine")
	require.Equal(t, StateOpen, r.drive("vm").State)
	armed = false
	r.restart()
	r.holds("vm", b)
	last := r.drive("vm").Last
	require.Equal(t, Done, last.Result)
	require.True(t, last.Recovered)
}

// TestStateFileRefuses: a full disk takes no intent, so nothing is touched; looking
// goes on, and changes too as soon as there is space.
func TestStateFileRefuses(t *testing.T) {
	r := newRig(t)
	a, b := r.disc("DISC_A"), r.disc("DISC_B")
	m := r.machine("vm", qemutest.IDE)
	small := filepath.Join(r.dir, "state")
	require.NoError(t, syscall.Mount("tmpfs", small, "tmpfs", 0, "size=512k"), "this test mounts a small file system")
	t.Cleanup(func() { require.NoError(t, syscall.Unmount(small, 0)) })
	t.Cleanup(r.end)
	r.start()
	r.done(Insert, "vm", a)
	node := m.state("cd0").Node()

	full := fill(t, filepath.Join(small, "filler"))
	require.NoError(t, r.journal.Err())
	for _, size := range []int{4000, 1} { // until not even a line fits besides the reserve
		var err error
		for i := 0; err == nil; i++ {
			require.Less(t, i, 5000)
			err = r.journal.Put("filler", string(make([]byte, size)))
		}
		require.ErrorIs(t, err, syscall.ENOSPC)
	}
	for _, verb := range []string{Replace, Eject} {
		err := r.refused(StateRefused, verb, "vm", b)
		require.ErrorIs(t, err, syscall.ENOSPC)
		require.Contains(t, err.Next, "nothing was touched")
	}
	require.Equal(t, node, m.state("cd0").Node())
	r.holds("vm", a)
	require.NoError(t, os.Remove(full))
	r.done(Replace, "vm", b)
	r.holds("vm", b)
}

// fill makes a file that takes all the space there is.
func fill(t *testing.T, path string) string {
	f, err := os.Create(path)
	require.NoError(t, err)
	defer f.Close()
	for block := make([]byte, 4096); ; {
		if _, err := f.Write(block); err != nil {
			require.True(t, errors.Is(err, syscall.ENOSPC))
			return path
		}
	}
}

// TestReload: new settings hold for what comes next.
func TestReload(t *testing.T) {
	r := newRig(t)
	a := r.disc("DISC_A")
	other := r.dir + "/other"
	require.NoError(t, os.Mkdir(other, 0o700))
	b := qemutest.Disc(t, other, "DISC_B")
	g := r.machine("vm", qemutest.IDE).Guest(t)
	late := r.machine("late", qemutest.IDE)
	r.opts.Monitors = []string{r.dir + "/run/vm.qmp"}
	r.start()
	r.done(Insert, "vm", a)
	r.refused(OutsideRoots, Replace, "vm", b)
	r.refused(NoSuchVM, Insert, "late", a)

	r.opts.Monitors = append(r.opts.Monitors, r.dir+"/run/late.qmp")
	r.opts.MediaRoots = append(r.opts.MediaRoots, other)
	r.opts.Wait = 100 * time.Millisecond
	r.agent.Reload(r.opts)
	r.within("the other machine to be attached", func() bool {
		st, err := r.agent.VM(context.Background(), "late")
		return err == nil && st.Answered
	})
	r.done(Insert, "late", a)
	r.done(Replace, "vm", b)
	g.Volume()
	g.Lock()
	r.refused(DriveLocked, Eject, "vm", "")

	t.Log("from now on the monitors are others' to use between operations")
	r.opts.Attach = OnDemand
	r.agent.Reload(r.opts)
	r.dial(late).Close()
	r.opts.Attach = Persistent
	r.agent.Reload(r.opts)
	r.within("the monitor to be held", func() bool {
		r.agent.mu.Lock()
		v := r.agent.vms["late"]
		r.agent.mu.Unlock()
		s, release := v.current()
		if s == nil {
			return false
		}
		release()
		return true
	})
}

// TestRecordThatCannotBeRead is left alone, and the others are served.
func TestRecordThatCannotBeRead(t *testing.T) {
	r := newRig(t)
	r.machine("vm", qemutest.IDE)
	j, err := state.Open(filepath.Join(r.dir, "state", "state.journal"), nil)
	require.NoError(t, err)
	require.NoError(t, j.Put(recordKey("newer", "cd0"), []int{1}))
	r.startOn(j)
	r.done(Insert, "vm", r.disc("DISC_A"))
	var kept []int
	ok, err := j.Get(recordKey("newer", "cd0"), &kept)
	require.NoError(t, err)
	require.True(t, ok)
	findings := r.agent.Check(t.Context())
	require.Len(t, findings, 1, "the check tells of it")
	require.Contains(t, findings[0].Problem, "newer")
	require.NoError(t, j.Delete(recordKey("newer", "cd0")))
}
