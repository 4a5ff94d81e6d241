package agent

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/qemutest"
)

// guests runs a test with guests on several buses, and with both of blockdev's
// changers. All pairs of a drive and a changer have blockdev's own tests.
func guests(t *testing.T, f func(t *testing.T, kind qemutest.Drive, strategy func(*Options))) {
	for _, row := range []struct {
		kind     qemutest.Drive
		strategy string
	}{
		{qemutest.IDE, "atomic"},
		{qemutest.IDE, "stepwise"},
		{qemutest.SATA, "atomic"},
		{qemutest.SCSI, "stepwise"},
		{qemutest.USB, "atomic"},
	} {
		t.Run(row.kind.Name+"/"+row.strategy, func(t *testing.T) {
			f(t, row.kind, func(o *Options) { o.Strategy = row.strategy })
		})
	}
}

// lockedRig is a machine whose guest has disc A in and holds the door.
func lockedRig(t *testing.T, kind qemutest.Drive, edit ...func(*Options)) (r *rig, g *qemutest.Guest, a, b string) {
	r = newRig(t, edit...)
	a, b = r.disc("DISC_A"), r.disc("DISC_B")
	g = r.machine("vm", kind).Guest(t)
	r.start()
	if kind.HasDisc {
		r.done(Eject, "vm", "")
		r.event(EventEjected) // not the one that the test waits for
	}
	r.done(Insert, "vm", a)
	require.Equal(t, "DISC_A", g.Volume())
	g.Lock()
	g.EjectRequested() // takes note of the new disc, which is the first event
	return r, g, a, b
}

// noticesOnly leaves the agent, while it waits for a guest, what QEMU says of its own
// accord: with a look at the door between two acts of the guest, it answers the first.
func (r *rig) noticesOnly() { r.agent.pollDoor = patience }

// TestGuestGivesIn: the guest is asked, ejects, and the change goes through.
func TestGuestGivesIn(t *testing.T) {
	guests(t, func(t *testing.T, kind qemutest.Drive, strategy func(*Options)) {
		for _, verb := range []string{Replace, Eject} {
			t.Run(verb, func(t *testing.T) {
				r, g, _, b := lockedRig(t, kind, strategy)
				r.noticesOnly()
				medium, volume := b, "DISC_B"
				if verb == Eject {
					medium, volume = "", qemutest.NoMedium
				}
				o := r.begin(verb, "vm", medium)
				r.waiting(o)
				require.Contains(t, r.event(EventWaiting).Detail, "guest")
				require.True(t, g.EjectRequested())
				require.Equal(t, "DISC_A", g.Volume(), "the guest reads on")
				require.WithinDuration(t, time.Now().Add(10*time.Second), *o.Status().Deadline, 2*time.Second)
				g.Unlock()
				require.Empty(t, g.Eject())
				_, err := r.finish(o)
				require.NoError(t, err)
				r.holds("vm", medium)
				require.Equal(t, volume, g.Volume())
				require.Nil(t, r.record().Asked, "the guest's answer has come")
			})
		}
	})
}

// record is the durable record of the rig's only drive.
func (r *rig) record() Record {
	r.t.Helper()
	recs := r.agent.Records()
	require.Len(r.t, recs, 1)
	return recs[0]
}

// TestGuestOnlyUnlocks: a guest that unmounts says nothing.
func TestGuestOnlyUnlocks(t *testing.T) {
	r, g, _, b := lockedRig(t, qemutest.IDE)
	o := r.begin(Replace, "vm", b)
	r.waiting(o)
	g.Unlock()
	_, err := r.finish(o)
	require.NoError(t, err)
	require.Equal(t, "DISC_B", g.Volume())

	t.Log("it may have fetched the request before it unlocked: an eject that comes late is put right")
	require.Empty(t, g.Eject())
	r.event(EventTrayPutRight)
	r.holds("vm", b)
	require.Equal(t, "DISC_B", g.Volume())
}

// TestGuestHoldsOn: the old disc stays in, and the late answer is put right.
func TestGuestHoldsOn(t *testing.T) {
	guests(t, func(t *testing.T, kind qemutest.Drive, strategy func(*Options)) {
		r, g, a, b := lockedRig(t, kind, strategy)
		err := r.refused(DriveLocked, Replace, "vm", b, wait(300*time.Millisecond))
		require.Contains(t, err.Next, "--force")
		r.holds("vm", a)
		require.Equal(t, "DISC_A", g.Volume())
		require.NotNil(t, r.record().Asked)

		require.True(t, g.EjectRequested())
		g.Unlock()
		require.Empty(t, g.Eject())
		r.event(EventTrayPutRight)
		r.holds("vm", a)
		require.Equal(t, "DISC_A", g.Volume())

		t.Log("the next eject is the guest's own")
		require.Empty(t, g.Eject())
		r.event(EventGuestEjected)
		r.event(EventEjected)
		r.holds("vm", "")
	})
}

// TestLateAnswerOfEmptyDrive: there is no disc to keep, and still the tray that was closed is
// closed again.
func TestLateAnswerOfEmptyDrive(t *testing.T) {
	guests(t, func(t *testing.T, kind qemutest.Drive, strategy func(*Options)) {
		r, g, _, b := lockedRig(t, kind, strategy)
		answersLate := func() {
			require.NotNil(t, r.record().Asked)
			g.Unlock()
			require.Empty(t, g.Eject())
			r.event(EventTrayPutRight)
			r.holds("vm", "")
			require.Nil(t, r.record().Asked)
		}
		o := r.begin(Eject, "vm", "")
		r.waiting(o)
		require.Contains(t, r.event(EventWaiting).Detail, "guest")
		require.True(t, g.EjectRequested(), "the guest has fetched it")
		_, err := r.agent.Force("vm", "", Caller{Name: "somebody"})
		require.NoError(t, err)
		_, err = r.finish(o)
		require.NoError(t, err)
		answersLate()
		g.EjectRequested() // takes note that the disc has gone, which is the first event
		g.Lock()
		r.refused(DriveLocked, Insert, "vm", b, wait(300*time.Millisecond))
		require.True(t, g.EjectRequested())
		answersLate()
		r.done(Insert, "vm", b)
		require.Equal(t, "DISC_B", g.Volume())
	})
}

func TestCancel(t *testing.T) {
	for _, verb := range []string{Replace, Eject} {
		t.Run(verb, func(t *testing.T) {
			r, g, a, b := lockedRig(t, qemutest.IDE)
			if verb == Eject {
				b = ""
			}
			o := r.begin(verb, "vm", b)
			r.waiting(o)
			stopped, err := r.agent.Cancel("vm", "", "somebody")
			require.NoError(t, err)
			require.Equal(t, o.ID, stopped.ID)
			_, err = r.finish(o)
			require.ErrorContains(t, r.isError(CancelledCode, err), "somebody")
			require.Equal(t, Cancelled, r.drive("vm").Last.Result)
			r.holds("vm", a)
			require.Equal(t, "DISC_A", g.Volume())
		})
	}
}

// TestForceAfterCancel: the request that was given up may still be answered when the
// next one has taken the disc.
func TestForceAfterCancel(t *testing.T) {
	r, g, _, b := lockedRig(t, qemutest.IDE)
	o := r.begin(Replace, "vm", b)
	r.waiting(o)
	require.True(t, g.EjectRequested(), "the guest has fetched it")
	_, err := r.agent.Cancel("vm", "", "somebody")
	require.NoError(t, err)
	_, err = r.finish(o)
	r.isError(CancelledCode, err)
	r.done(Replace, "vm", b, force)
	require.Equal(t, "DISC_B", g.Volume())
	require.Empty(t, g.Eject(), "the answer")
	r.event(EventTrayPutRight)
	r.holds("vm", b)
	require.Equal(t, "DISC_B", g.Volume())
}

func TestForce(t *testing.T) {
	guests(t, func(t *testing.T, kind qemutest.Drive, strategy func(*Options)) {
		r, g, a, b := lockedRig(t, kind, strategy)
		r.done(Replace, "vm", b, force)
		require.Equal(t, "DISC_B", g.Volume())
		g.Lock()
		r.done(Replace, "vm", a, wait(200*time.Millisecond), thenForce)
		require.Equal(t, "DISC_A", g.Volume())
		g.Lock()
		r.done(Replace, "vm", b, wait(0), thenForce)
		require.Equal(t, "DISC_B", g.Volume())
		g.Lock()
		r.done(Eject, "vm", "", force)
		r.holds("vm", "")
		require.Equal(t, qemutest.NoMedium, g.Volume())
		r.noEvent(EventTrayPutRight)
	})
}

// TestWaitZero: nobody waits, so the guest isn't asked either.
func TestWaitZero(t *testing.T) {
	r, g, a, b := lockedRig(t, qemutest.IDE)
	r.refused(DriveLocked, Replace, "vm", b, wait(0))
	r.refused(DriveLocked, Eject, "vm", "", wait(0))
	require.False(t, g.EjectRequested())
	r.holds("vm", a)
	require.Nil(t, r.record().Asked, "nothing was asked that could be answered late")
	g.Unlock()
	r.done(Replace, "vm", b, wait(0))
	r.holds("vm", b)
}

// TestPausedMachine: a paused guest can't let go, so nobody waits for it; a drive that
// isn't locked can be changed.
func TestPausedMachine(t *testing.T) {
	r := newRig(t)
	a, b := r.disc("DISC_A"), r.disc("DISC_B")
	m := r.paused("vm", qemutest.IDE)
	g := m.Guest(t)
	r.start()
	r.done(Insert, "vm", a)
	r.done(Replace, "vm", b)
	r.holds("vm", b)
	g.Lock()
	begun := time.Now()
	require.ErrorContains(t, r.refused(DriveLocked, Replace, "vm", a, wait(time.Minute)), "paused")
	require.Less(t, time.Since(begun), 10*time.Second)
	r.holds("vm", b)
	t.Log("when it runs again its answer is put right")
	m.qemu("cont", nil)
	g.Unlock()
	require.Empty(t, g.Eject())
	r.event(EventTrayPutRight)
	r.holds("vm", b)
	r.done(Eject, "vm", "", force)
}

// TestGuestEject: the guest's own eject takes the disc out, or leaves it in the open
// tray, as configured.
func TestGuestEject(t *testing.T) {
	guests(t, func(t *testing.T, kind qemutest.Drive, strategy func(*Options)) {
		r, g, _, b := lockedRig(t, kind, strategy)
		g.Unlock()
		require.Empty(t, g.Eject())
		r.event(EventGuestEjected)
		require.Contains(t, r.event(EventEjected).Detail, "DISC_A")
		r.holds("vm", "")
		require.Equal(t, ByGuest, r.drive("vm").Last.By)
		r.done(Insert, "vm", b)
		require.Equal(t, "DISC_B", g.Volume())
	})
	t.Run("keep", func(t *testing.T) {
		r, g, a, b := lockedRig(t, qemutest.IDE, func(o *Options) { o.GuestEject = GuestEjectKeep })
		g.Unlock()
		require.Empty(t, g.Eject())
		r.within("the tray to be open", func() bool { return r.drive("vm").Tray == "open" })
		require.Empty(t, g.Load())
		require.Equal(t, "DISC_A", g.Volume())
		r.noEvent(EventGuestEjected)
		r.holds("vm", a)
		require.Empty(t, g.Eject())
		r.done(Replace, "vm", b)
		require.Equal(t, "DISC_B", g.Volume())
	})
}

// TestGuestPlaysWithTheTray: a guest that ejects and closes at once keeps its disc or
// loses it, but nothing is left half-way.
func TestGuestPlaysWithTheTray(t *testing.T) {
	guests(t, func(t *testing.T, kind qemutest.Drive, strategy func(*Options)) {
		r, g, a, _ := lockedRig(t, kind, strategy)
		g.Unlock()
		for range 5 {
			r.do(Insert, "vm", a) // it may be in
			g.Volume()
			g.Eject()
			g.Load()
		}
		r.settled()
		st := r.drive("vm")
		require.Equal(t, "closed", st.Tray)
		if st.Medium != nil {
			require.Equal(t, "DISC_A", g.Volume())
		}
	})
}

// TestReset closes an open tray with no event about the tray.
func TestReset(t *testing.T) {
	guests(t, func(t *testing.T, kind qemutest.Drive, strategy func(*Options)) {
		for _, policy := range []GuestEject{GuestEjectKeep, GuestEjectRelease} {
			t.Run(string(policy), func(t *testing.T) {
				r, g, a, _ := lockedRig(t, kind, strategy, func(o *Options) { o.GuestEject = policy })
				g.Unlock()
				require.Empty(t, g.Eject())
				if policy == GuestEjectRelease {
					r.event(EventEjected)
					a = ""
				}
				r.vms[0].qemu("system_reset", nil)
				r.settled()
				r.holds("vm", a)
			})
		}
	})
}

// TestWithdrawnRequestIsOver: after its time the guest's eject is the guest's own.
func TestWithdrawnRequestIsOver(t *testing.T) {
	r, g, _, b := lockedRig(t, qemutest.IDE)
	r.agent.askedWindow = 300 * time.Millisecond
	r.refused(DriveLocked, Replace, "vm", b, wait(100*time.Millisecond))
	r.within("the request to be forgotten", func() bool { return r.record().Asked == nil })
	g.Unlock()
	require.Empty(t, g.Eject())
	r.event(EventEjected)
	r.holds("vm", "")
	require.Empty(t, r.agent.Check(context.Background()))
}

// TestLockedEmptyDrive: a guest may hold the door of an empty drive, too. It is waited
// for like any other, and not for ever.
func TestLockedEmptyDrive(t *testing.T) {
	strategies(t, func(t *testing.T, strategy func(*Options)) {
		r := newRig(t, strategy)
		a := r.disc("DISC_A")
		g := r.machine("vm", qemutest.IDE).Guest(t)
		r.start()
		g.Lock()
		wait := time.Second
		o, err := r.agent.Start(Request{VM: "vm", Verb: Insert, Medium: a, Wait: &wait, By: Caller{Name: "test"}})
		require.NoError(t, err)
		_, err = r.finish(o)
		require.Equal(t, DriveLocked, CodeOf(err), "%v", err)
		r.holds("vm", "")

		o = r.begin(Insert, "vm", a)
		r.waiting(o)
		g.Unlock()
		_, err = r.finish(o)
		require.NoError(t, err)
		require.Equal(t, "DISC_A", g.Volume())
	})
}
