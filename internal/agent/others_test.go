package agent

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/blockdev"
	"github.com/trayd/trayd/internal/qemutest"
	"github.com/trayd/trayd/qmp"
)

// puts is another client that puts its own disc in, by force. QEMU before 7.1 has no
// force for that: there the door must not be locked.
func (m *testVM) puts(drive, path string) {
	m.r.t.Helper()
	args := map[string]any{"id": drive, "filename": path, "format": "raw", "read-only-mode": "read-only"}
	if m.forces() {
		args["force"] = true
	}
	m.qemu("blockdev-change-medium", args)
}

func (m *testVM) forces() bool {
	m.r.t.Helper()
	features, err := blockdev.Probe(m.r.t.Context(), m.side)
	require.NoError(m.r.t, err)
	return features.ChangeMediumForce
}

// takesOut is another client that takes the disc out and leaves the tray open.
func (m *testVM) takesOut(drive string) {
	m.r.t.Helper()
	m.qemu("eject", map[string]any{"id": drive, "force": true})
}

// TestTakenOutByOthers: a disc of ours that left by other hands is let go.
func TestTakenOutByOthers(t *testing.T) {
	strategies(t, func(t *testing.T, strategy func(*Options)) {
		r := newRig(t, strategy)
		a, b := r.disc("DISC_A"), r.disc("DISC_B")
		m := r.machine("vm", qemutest.IDE)
		r.start()
		r.done(Insert, "vm", a)
		m.takesOut("cd0")
		require.Contains(t, r.event(EventReleased).Detail, "DISC_A")
		require.Nil(t, r.record().Loaded)
		r.within("QEMU to let the file go", func() bool { return len(m.OpenFiles(t, filepath.Dir(a))) == 0 })
		require.Equal(t, StateEmpty, r.drive("vm").State)
		r.done(Insert, "vm", b)
		r.holds("vm", b)
	})
}

// TestConflict: somebody else's disc in place of ours is reported and left alone.
func TestConflict(t *testing.T) {
	strategies(t, func(t *testing.T, strategy func(*Options)) {
		r := newRig(t, strategy)
		a, theirs := r.disc("DISC_A"), r.disc("THEIRS")
		m := r.machine("vm", qemutest.IDE)
		r.start()
		r.done(Insert, "vm", a)
		m.puts("cd0", theirs)
		r.event(EventConflict)
		node := m.state("cd0").Node()
		r.settled()
		r.restart()
		r.settled()
		require.Equal(t, node, m.state("cd0").Node())
		st := r.drive("vm")
		require.Equal(t, theirs, st.Medium.Name)
		require.False(t, st.Medium.Ours)
		require.Equal(t, []string{theirs}, m.OpenFiles(t, filepath.Dir(a)))
		r.refused(DriveOccupied, Insert, "vm", a)
		r.done(Replace, "vm", a)
		r.holds("vm", a)
	})
}

// TestOvertaken: somebody else's disc comes in while ours waits for the guest.
func TestOvertaken(t *testing.T) {
	strategies(t, func(t *testing.T, strategy func(*Options)) {
		r, g, _, b := lockedRig(t, qemutest.IDE, strategy)
		r.noticesOnly()
		theirs := r.disc("THEIRS")
		for _, verb := range []string{Replace, Eject} {
			o := r.begin(verb, "vm", b)
			r.event(EventWaiting) // and it has looked at the door
			if !r.vms[0].forces() {
				g.Unlock() // says nothing
			}
			r.vms[0].puts("cd0", theirs)
			_, err := r.finish(o)
			r.isError(OvertakenCode, err)
			require.Equal(t, theirs, r.drive("vm").Medium.Name)
			require.Equal(t, Overtaken, r.drive("vm").Last.Result)
			r.settled()
			g.Volume() // takes note of the new disc
			g.Lock()
		}
	})
}

// TestTakenOutWhileWaiting: a drive that somebody else emptied takes the new disc.
func TestTakenOutWhileWaiting(t *testing.T) {
	strategies(t, func(t *testing.T, strategy func(*Options)) {
		r, _, _, b := lockedRig(t, qemutest.IDE, strategy)
		o := r.begin(Replace, "vm", b)
		r.waiting(o)
		r.vms[0].takesOut("cd0")
		_, err := r.finish(o)
		require.NoError(t, err)
		r.holds("vm", b)
	})
}

// TestMonitorHeld: one monitor serves one client. Who comes second is told so, and
// attached when the first lets go.
func TestMonitorHeld(t *testing.T) {
	r := newRig(t)
	a := r.disc("DISC_A")
	m := r.machine("vm", qemutest.IDE)
	other := m.Dial(t)
	r.start()
	err := r.refused(Unreachable, Insert, "vm", a)
	require.ErrorContains(t, err, "another client holds this monitor")
	require.Contains(t, err.Next, "second -qmp socket")
	st, e := r.agent.VM(context.Background(), "vm")
	require.NoError(t, e)
	require.False(t, st.Answered)
	require.Contains(t, st.Reason, "another client")
	other.Close()
	r.event(EventVMAttached)
	r.done(Insert, "vm", a)
}

// TestOnDemand: between operations the monitor is others' to use.
func TestOnDemand(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Attach = OnDemand })
	a, b := r.disc("DISC_A"), r.disc("DISC_B")
	m := r.machine("vm", qemutest.IDE)
	r.start()
	for _, disc := range []string{a, b} {
		r.done(Replace, "vm", disc)
		r.holds("vm", disc)
		other := r.dial(m)
		time.Sleep(2 * lookDelay) // a look after the operation wants the monitor, too
		require.NoError(t, other.Err())
		require.ErrorContains(t, r.refused(Unreachable, Eject, "vm", ""), "another client")
		other.Close()
	}
	t.Log("what happened meanwhile is learnt by the next look")
	m.takesOut("cd0")
	r.agent.vm("vm").lookSoon()
	r.event(EventReleased)
}

// dial connects to the machine's first monitor as soon as it is free.
func (r *rig) dial(m *testVM) *qmp.Conn {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	c, err := qmp.Dial(ctx, m.Socket, nil)
	require.NoError(r.t, err, "the monitor is free")
	return c
}
