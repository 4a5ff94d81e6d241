package agent

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/machine"
	"github.com/trayd/trayd/internal/machine/launch"
	"github.com/trayd/trayd/internal/simulated"
	"github.com/trayd/trayd/internal/wire"
	"github.com/trayd/trayd/qmp/qmptest"
)

// runsOn is a Runner whose machine runs.
type runsOn struct{ noneRuns }

func (runsOn) State(context.Context, string) (launch.State, error) {
	return launch.State{Running: true, PID: os.Getpid()}, nil
}

// bootRig has a machine whose boot order and resets are a simulated QEMU's.
type bootRig struct {
	*rig
	qemu    *simulated.Machine
	turning chan struct{} // at each change of an index
	silent  atomic.Bool   // QEMU doesn't answer query-status

	mu      sync.Mutex // guards below
	index   map[string]int
	boots   []string // at each reset
	refuses bool     // to reset
}

// newBootRig has one whose guest has written to its disk so often since QEMU was started.
func newBootRig(t *testing.T, writes int, edit ...func(*Options)) *bootRig {
	r := &bootRig{
		rig: installedRig(t), qemu: simulated.New(t, json.RawMessage(simulated.Schema)),
		turning: make(chan struct{}, 100), index: map[string]int{"cd0": 1, "disk0": 2},
	}
	r.opts.Machines.Runner = runsOn{}
	for _, e := range edit {
		e(&r.opts)
	}
	t.Cleanup(r.end) // before QEMU goes
	r.qemu.Handle("block-set-write-threshold", func(q *qmptest.Request) { q.Return(struct{}{}) })
	r.qemu.Handle("query-blockstats", func(q *qmptest.Request) {
		if writes > 0 {
			q.Sleep(time.Second) // others have the time to be faster
		}
		q.Return([]any{map[string]any{"node-name": "disk0", "stats": map[string]int{"wr_operations": writes}}})
	})
	r.qemu.Handle("query-status", func(q *qmptest.Request) {
		for r.silent.Load() && q.Sleep(10*time.Millisecond) {
		}
		q.Return(map[string]any{"running": true, "status": "running"})
	})
	r.qemu.Handle("qom-get", r.get)
	r.qemu.Handle("qom-set", r.set)
	r.qemu.Handle("system_reset", r.reset)
	run := filepath.Join(r.opts.Machines.RunDir, "m")
	require.NoError(t, os.MkdirAll(run, 0o700))
	require.NoError(t, os.Link(r.qemu.Path(), filepath.Join(run, machine.MonitorSocket)))
	r.start()
	r.event(EventVMAttached)
	return r
}

func (r *bootRig) get(q *qmptest.Request) {
	var args struct{ Path, Property string }
	q.Decode(&args)
	r.mu.Lock()
	defer r.mu.Unlock()
	if args.Property == "bootindex" {
		q.Return(r.index[filepath.Base(args.Path)])
		return
	}
	q.Return(simulated.QOM(q))
}

func (r *bootRig) set(q *qmptest.Request) {
	var args struct {
		Path  string
		Value int
	}
	q.Decode(&args)
	r.mu.Lock()
	r.index[filepath.Base(args.Path)] = args.Value
	r.mu.Unlock()
	r.turning <- struct{}{}
	q.Sleep(100 * time.Millisecond) // as a busy QEMU
	q.Return(struct{}{})
}

func (r *bootRig) reset(q *qmptest.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.refuses {
		q.Error("GenericError", "no reset today")
		return
	}
	boots := "cd0"
	if r.index["disk0"] < r.index["cd0"] {
		boots = "disk0"
	}
	r.boots = append(r.boots, boots)
	q.Return(struct{}{})
}

// booted are what the machine has booted from, at each reset.
func (r *bootRig) booted() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.boots
}

// guestWrites has the guest write to its disk for the first time, and waits until the order of
// the boot is about to be turned round.
func (r *bootRig) guestWrites() {
	r.t.Helper()
	r.qemu.Write(`{"event":"BLOCK_WRITE_THRESHOLD","data":{"node-name":"disk0","amount-exceeded":1,"write-threshold":1},"timestamp":{"seconds":1,"microseconds":2}}` + "\r\n")
	select {
	case <-r.turning:
	case <-time.After(patience):
		require.FailNow(r.t, "the order isn't turned round")
	}
}

// diskFirst reports whether the next reset boots the disk.
func (r *bootRig) diskFirst() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.index["disk0"] < r.index["cd0"]
}

func (r *bootRig) followed() bool {
	return r.agent.machines.known("m", func(*installing) {}).followed != nil
}

// TestResetAfterFirstWrite: the reset button in the middle of an installation has the disc boot
// again, also when the order of the boot is just being turned round for the guest's first write.
func TestResetAfterFirstWrite(t *testing.T) {
	r := newBootRig(t, 0)
	r.qemu.Wait("block-set-write-threshold", 1)
	for range 3 {
		r.guestWrites()
		require.NoError(t, r.agent.ResetVM(t.Context(), "m", Caller{}))
		for len(r.turning) > 0 {
			<-r.turning
		}
	}
	// The turn for a write before the reset, which comes after it, is left out.
	r.agent.machines.wroteDisk(r.agent.vm("m"))
	require.Equal(t, []string{"cd0", "cd0", "cd0"}, r.booted())
	require.Equal(t, wire.BootCDROMOnce, r.definition().Boot)
	require.False(t, r.diskFirst())
}

// TestResetRefused: an installation whose machine can't be reset goes on, and its end boots the
// disk: with the next write the order is turned round again.
func TestResetRefused(t *testing.T) {
	r := newBootRig(t, 0)
	r.qemu.Wait("block-set-write-threshold", 1)
	r.guestWrites()
	r.within("the order to be turned round", r.diskFirst)
	r.mu.Lock()
	r.refuses = true
	r.mu.Unlock()
	err := r.agent.ResetVM(t.Context(), "m", Caller{})
	require.Equal(t, Unreachable, CodeOf(err))
	require.ErrorContains(t, err, "VM m can't be reset")
	require.ErrorContains(t, err, "no reset today")
	require.Empty(t, r.booted())
	r.qemu.Wait("block-set-write-threshold", 2)
	r.guestWrites()
	r.within("the order to be turned round again", r.diskFirst)
}

// TestResetAfterTraydsStart: the reset button boots the disk of a machine that was installed
// while trayd was dead, also before trayd has found that out.
func TestResetAfterTraydsStart(t *testing.T) {
	r := newBootRig(t, 1)
	require.NoError(t, r.agent.ResetVM(t.Context(), "m", Caller{}))
	require.Equal(t, []string{"disk0"}, r.booted())
	require.Equal(t, wire.BootDisk, r.definition().Boot)
}

// TestResetOfASilentQEMU: no reset before trayd knows what the guest has done, which it finds
// out as soon as QEMU answers again.
func TestResetOfASilentQEMU(t *testing.T) {
	r := newBootRig(t, 1, func(o *Options) { o.Command = 2 * time.Second })
	r.within("it to be followed", r.followed)
	r.silent.Store(true)
	r.qemu.Write("nonsense\r\n")
	r.within("the connection to be lost", func() bool { return !r.followed() })
	err := r.agent.ResetVM(t.Context(), "m", Caller{})
	require.Equal(t, Unreachable, CodeOf(err), err)
	require.Empty(t, r.booted())
	r.silent.Store(false)
	r.within("it to be followed again", r.followed)
}

// TestMissedWhileLearning: what a guest does while it is found out what it has done isn't lost
// when QEMU's events are: it is found out once more.
func TestMissedWhileLearning(t *testing.T) {
	r := newBootRig(t, 1)
	r.qemu.Wait("query-blockstats", 1) // whose answer is a second away
	s, release := r.agent.vm("m").current()
	defer release()
	require.False(t, r.followed())
	r.agent.machines.missedEvents(s)
	r.within("it to be followed", r.followed)
	r.qemu.Wait("query-blockstats", 2)
}

// TestEndsWhileNotConnected: a machine whose connection trayd has lost, and whose guest may have
// powered off since, hasn't failed when it has ended, and its disk is taken for installed.
func TestEndsWhileNotConnected(t *testing.T) {
	for _, lost := range []bool{true, false} {
		r := newBootRig(t, 0)
		m := r.agent.machines
		r.within("it to be followed", r.followed)
		if lost {
			r.silent.Store(true) // trayd is connected again, and can't learn what it has missed
			r.qemu.Write("nonsense\r\n")
			r.within("the connection to be lost", func() bool { return !r.followed() })
		}
		m.ended("m", lookUp(os.Getpid(), r.agent.boot), endSeen)
		want := map[bool]string{true: wire.BootDisk, false: wire.BootCDROMOnce}[lost]
		require.Equal(t, want, r.definition().Boot)
		failed := m.whyFailed("m", launch.State{})
		require.Equal(t, !lost, failed != "", failed)
		r.silent.Store(false)
	}
}
