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
)

// TestMachineEnds: what a machine had is let go when its process ends, however.
func TestMachineEnds(t *testing.T) {
	for _, attach := range []Attach{Persistent, OnDemand} {
		t.Run(string(attach), func(t *testing.T) {
			r := newRig(t, func(o *Options) { o.Attach = attach })
			m := r.machine("vm", qemutest.IDE)
			r.start()
			r.done(Insert, "vm", r.disc("DISC_A"))
			m.Kill() // on demand nobody is connected then
			require.Contains(t, r.event(EventReleased).Detail, "ended")
			r.event(EventVMEnded)
			require.Empty(t, r.agent.Records())
			require.Empty(t, r.agent.VMs(context.Background()))
			require.Contains(t, r.refused(Unreachable, Eject, "vm", "").Next, "start the machine")
		})
	}
}

// TestMachineEndsWhileChanging, killed while the change waits for its guest.
func TestMachineEndsWhileChanging(t *testing.T) {
	r, _, _, b := lockedRig(t, qemutest.IDE)
	o := r.begin(Replace, "vm", b)
	r.waiting(o)
	r.vms[0].Kill()
	_, err := r.finish(o)
	require.ErrorContains(t, r.isError(MachineEnded, err), "machine ended")
	r.within("the record to go", func() bool { return len(r.agent.Records()) == 0 })
}

// TestMachineRestarts: another QEMU of the same name has none of our discs.
func TestMachineRestarts(t *testing.T) {
	t.Parallel() // it waits
	r := newRig(t)
	a := r.disc("DISC_A")
	m := r.machine("vm", qemutest.IDE)
	r.start()
	r.done(Insert, "vm", a)
	m.Kill()
	r.event(EventVMEnded)
	time.Sleep(3 * time.Second) // long enough for the retries to have become rare
	r.machine("vm", qemutest.IDE)
	begun := time.Now()
	r.event(EventVMAttached)
	require.Less(t, time.Since(begun), rescanEvery/2, "a new socket is noticed at once")
	r.holds("vm", "")
	r.done(Insert, "vm", a)
}

// TestMachineRestartsWhileWeAreAway, with a disc in, and with a change under way.
func TestMachineRestartsWhileWeAreAway(t *testing.T) {
	for _, back := range []bool{false, true} {
		r := newRig(t)
		m := r.machine("vm", qemutest.IDE)
		r.start()
		r.done(Insert, "vm", r.disc("DISC_A"))
		rec := r.record()
		c := loading(Before{Node: rec.Loaded.Node, File: rec.Loaded.Medium.Path})
		rec.Change = c.Change
		require.NoError(t, r.journal.Put(recordKey("vm", "cd0"), rec))
		r.stop()
		m.Kill()
		if back {
			r.machine("vm", qemutest.IDE)
		}
		r.start()
		if !back {
			require.Empty(t, r.agent.Records())
			continue
		}
		r.holds("vm", "")
		require.Equal(t, MachineEnd, r.drive("vm").Last.Result)
		require.Nil(t, r.record().Loaded)
	}
}

// TestMachineComesLater appears by itself, also where the directory of its socket did
// not exist, and goes by itself.
func TestMachineComesLater(t *testing.T) {
	r := newRig(t)
	require.NoError(t, os.Remove(r.dir+"/run"))
	r.opts.Monitors = append(r.opts.Monitors, r.dir+"/deep/*/*.qmp")
	r.start()
	require.Empty(t, r.agent.VMs(context.Background()))
	require.Contains(t, r.refused(NoSuchVM, Eject, "vm", "").Next, "monitors")
	require.NoError(t, os.Mkdir(r.dir+"/run", 0o700))
	m := r.machine("vm", qemutest.IDE)
	begun := time.Now()
	r.event(EventVMAttached)
	require.Less(t, time.Since(begun), rescanEvery/2, "noticed, not found by the periodic scan")
	r.done(Insert, "vm", r.disc("DISC_A"))

	t.Log("it ends as machines do, and takes its socket with it")
	_ = m.side.Execute(context.Background(), "quit", nil, nil)
	r.event(EventVMEnded)
	require.Empty(t, r.agent.VMs(context.Background()))
	require.Empty(t, r.agent.Records())
	_, err := os.Stat(m.Socket)
	require.ErrorIs(t, err, os.ErrNotExist)
}

// TestUnknownOutcome: QEMU stops in the middle of a change. Nobody guesses; when it
// goes on, what it did decides.
func TestUnknownOutcome(t *testing.T) {
	for _, row := range []struct {
		strategy, verb string
		at             string // QEMU stops just after this
		want           Result
	}{
		{"atomic", Replace, "intent-written", Failed},
		{"atomic", Replace, "descriptor-passed", Done},
		{"atomic", Eject, "intent-written", Failed}, // the tray opens, and is closed again
		{"atomic", Eject, "tray-open", Done},
		{"stepwise", Replace, "descriptor-passed", Failed},
		{"stepwise", Replace, "node-added", Failed},
		{"stepwise", Replace, "tray-open", Done},
		{"stepwise", Replace, "medium-removed", Done},
		{"stepwise", Replace, "medium-inserted", Done},
	} {
		t.Run(row.strategy+"/"+row.verb+"/"+row.at, func(t *testing.T) {
			var m *testVM
			armed := false
			r := newRig(t, func(o *Options) {
				o.Strategy, o.Command = row.strategy, 300*time.Millisecond
				o.FailPoint = func(name string) {
					if armed && name == row.at {
						armed = false
						m.Freeze(t)
					}
				}
			})
			a, b := r.disc("DISC_A"), r.disc("DISC_B")
			m = r.machine("vm", qemutest.IDE)
			g := m.Guest(t)
			r.start()
			r.done(Insert, "vm", a)
			if row.verb == Eject {
				b = ""
			}
			armed = true
			o := r.begin(row.verb, "vm", b)
			_, err := r.finish(o)
			require.ErrorContains(t, r.isError(Unknown, err), "outcome unknown")
			st := r.drive("vm")
			require.Equal(t, StateOpen, st.State)
			require.Nil(t, st.Medium, "nothing is said that QEMU didn't say")
			require.Equal(t, o.ID, r.refused(DriveBusy, Eject, "vm", "").Operation)

			m.Thaw(t)
			r.event(EventSettled)
			r.within("the operation to end", o.ended)
			p := o.Progress()
			require.NotNil(t, p.Outcome)
			require.Equal(t, row.want, p.Outcome.Result)
			require.Equal(t, row.want == Done, p.Err == nil)
			if row.want != Done {
				b = a
			}
			r.holds("vm", b)
			switch b {
			case "":
				require.Equal(t, qemutest.NoMedium, g.Volume())
			default:
				require.Equal(t, filepath.Base(b), g.Volume()+".iso")
			}
		})
	}
}

// TestFrozenMachineIsToldOf, and the others are served.
func TestFrozenMachineIsToldOf(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Command = 300 * time.Millisecond })
	a := r.disc("DISC_A")
	m := r.machine("vm", qemutest.IDE)
	r.machine("other", qemutest.IDE)
	r.start()
	r.done(Insert, "vm", a)
	m.Freeze(t)
	require.ErrorContains(t, r.refused(Unreachable, Eject, "vm", ""), "doesn't answer")
	all := r.agent.VMs(context.Background())
	require.Len(t, all, 2)
	require.True(t, all[0].Answered)
	require.False(t, all[1].Answered)
	require.NotEmpty(t, r.agent.Check(context.Background()))
	r.done(Insert, "other", a)
	m.Thaw(t)
	r.within("it to answer again", func() bool { st, _ := r.agent.VM(context.Background(), "vm"); return st.Answered })
	r.holds("vm", a)
	r.done(Eject, "vm", "")

	t.Log("an agent that starts while it is frozen says so")
	r.done(Insert, "vm", a)
	r.stop()
	m.Freeze(t)
	r.start()
	st, err := r.agent.VM(context.Background(), "vm")
	require.NoError(t, err)
	require.Contains(t, st.Reason, "stopped by a signal")
	require.Contains(t, st.Next, "kill -CONT")
	m.Thaw(t)
	r.within("it to be attached", func() bool { st, _ := r.agent.VM(context.Background(), "vm"); return st.Answered })
	r.holds("vm", a)
}

// TestEndWhileHeld: a machine ends, its socket with it, while somebody still holds the
// session that has ended as well. What it had is let go as soon as that is given back.
func TestEndWhileHeld(t *testing.T) {
	r := newRig(t)
	m := r.machine("vm", qemutest.SATA)
	r.start()
	r.event(EventVMAttached)
	s, release := r.agent.vm("vm").current()
	require.NotNil(t, s)
	m.qemu("quit", nil)
	r.event(EventVMLost)
	r.within("QEMU's end", func() bool { return errors.Is(syscall.Kill(m.PID(), 0), syscall.ESRCH) })
	if err := os.Remove(s.vm.socket()); err != nil { // some leave it (docs/qemu-versions.md)
		require.ErrorIs(t, err, os.ErrNotExist)
	}
	time.Sleep(200 * time.Millisecond) // the supervisor has looked, more than once
	r.noEvent(EventVMEnded)
	began := time.Now()
	release()
	r.event(EventVMEnded)
	require.Less(t, time.Since(began), rescanEvery/2, "only the rescan has found it")
}

// TestForgottenMachineComesBack: what a machine's drive still had to do when it was forgotten
// doesn't touch the record of the next machine of that name.
func TestForgottenMachineComesBack(t *testing.T) {
	r := newRig(t)
	a := r.disc("DISC_A")
	m := r.machine("vm", qemutest.IDE)
	r.start()
	r.done(Insert, "vm", a)
	r.done(Eject, "vm", "")
	earlier := r.agent.vm("vm").drive("cd0")
	m.Kill()
	require.NoError(t, os.Remove(m.Socket))
	r.within("it to be forgotten", func() bool { return len(r.agent.all()) == 0 })
	r.machine("vm", qemutest.IDE)
	r.within("the next one to be attached", func() bool { st, err := r.agent.VM(t.Context(), "vm"); return err == nil && st.Answered })
	r.done(Insert, "vm", a)
	require.NotSame(t, earlier, r.agent.vm("vm").drive("cd0"))
	earlier.look() // as a timer does
	var rec Record
	there, err := r.journal.Get(recordKey("vm", "cd0"), &rec)
	require.NoError(t, err)
	require.True(t, there, "the record of a disc that is in was removed")
	require.NotNil(t, rec.Loaded)
}

// TestAwaitEnd: nobody is told that a process has ended of which that can't be known.
func TestAwaitEnd(t *testing.T) {
	boot := bootID()
	require.True(t, over(t).await(t.Context(), boot))
	require.False(t, Process{}.await(t.Context(), boot))
	require.False(t, Process{PID: over(t).PID}.await(t.Context(), boot), "it may be in another namespace")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	require.False(t, lookUp(os.Getpid(), boot).await(ended, boot))
}
