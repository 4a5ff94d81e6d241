package agent

import (
	"encoding/json"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/qemutest"
	"github.com/trayd/trayd/qmp/qmptest"
	"github.com/trayd/trayd/state"
)

// TestSilentWhileSettling: a QEMU that stops answering while its drive is settled holds
// up neither readiness nor the requests for the drive, beyond their bounds.
func TestSilentWhileSettling(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Command = 200 * time.Millisecond })
	var drive atomic.Value
	drive.Store(loadedDrive)
	srv := r.fake(&drive)
	looks := 0
	srv.Handle("query-block", func(q *qmptest.Request) {
		if looks++; looks == 1 { // the look at the connect; the settle's own gets no answer
			q.Return(json.RawMessage(loadedDrive))
		}
	})
	j, err := state.Open(filepath.Join(r.dir, "state", "state.journal"), nil)
	require.NoError(t, err)
	rec := recordWith(oldNode)
	rec.Process = lookUp(os.Getpid(), bootID())             // the fake is this process
	rec.Asked = &Asked{Operation: "earlier", Node: oldNode} // so that there is something to settle
	require.NoError(t, j.Put(recordKey("vm", "cd0"), rec))
	began := time.Now()
	r.startOn(j) // returns when ready
	require.Less(t, time.Since(began), firstRound+time.Second)
	began = time.Now()
	_, err = r.do(Eject, "vm", "")
	require.Contains(t, []Code{Unreachable, DriveBusy}, CodeOf(err), "%v", err)
	require.Less(t, time.Since(began), 10*time.Second)
	srv.Handle("query-block", func(q *qmptest.Request) { q.Return(json.RawMessage(loadedDrive)) })
	srv.Hangup() // connected anew, it answers
}

// TestRequestDuringRecovery: a request that comes before recovery has begun decides on
// what recovery leaves, not on what it found.
func TestRequestDuringRecovery(t *testing.T) {
	r := newRig(t)
	a := r.disc("DISC_A")
	m := r.machine("vm", qemutest.IDE)
	r.start()
	r.done(Insert, "vm", a)
	// As a stepwise change leaves it that died with the old disc out: the tray is open
	// and empty, the new disc's node exists, the record says that disc A was in.
	rec := r.record()
	c := loading(Before{Node: rec.Loaded.Node, File: rec.Loaded.Medium.Path})
	rec.Change = c.Change
	rec.Change.Stepwise = true
	rec.Change.Node = r.agent.mark + "interrupted"
	d := r.agent.vm("vm").drive("cd0")
	d.turn <- struct{}{} // nobody settles it meanwhile
	m.qemu("blockdev-add", map[string]any{"driver": "raw", "node-name": c.Change.Node, "read-only": true,
		"file": map[string]any{"driver": "file", "filename": r.disc("DISC_B")}})
	m.takesOut("cd0")
	d.setRecord(rec)
	o := r.begin(Eject, "vm", "")
	<-d.turn
	_, err := r.finish(o)
	require.NoError(t, err)
	require.Empty(t, o.Status().Reason, "there was a disc to eject: recovery had finished the change")
	r.holds("vm", "")
}

// TestMachineNoLongerConfigured: a machine whose glob is taken out of the configuration
// is let go, with its disc in and in the records; it is taken up again with the glob.
func TestMachineNoLongerConfigured(t *testing.T) {
	r := newRig(t)
	a := r.disc("DISC_A")
	m := r.machine("vm", qemutest.IDE)
	r.start()
	r.done(Insert, "vm", a)
	was := r.opts.Monitors
	r.opts.Monitors = []string{filepath.Join(r.dir, "other", "*.qmp")}
	r.agent.Reload(r.opts)
	r.within("the monitor to be let go", func() bool { return r.agent.vm("vm").idleMonitor() })
	conn := r.dial(m) // somebody else can have it
	conn.Close()
	require.NotNil(t, r.record().Loaded)
	r.opts.Monitors = was
	r.agent.Reload(r.opts)
	r.within("the machine to be back", func() bool { st, err := r.agent.VM(t.Context(), "vm"); return err == nil && st.Answered })
	r.holds("vm", a)
}

// idleMonitor reports whether the agent has no connection to the machine.
func (v *vm) idleMonitor() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.session == nil && !v.launched
}

// TestEndedMachinesAreForgotten: a host on which machines come and go keeps nothing of
// those that went.
func TestEndedMachinesAreForgotten(t *testing.T) {
	r := newRig(t)
	a := r.disc("DISC_A")
	r.start()
	m := r.machine("vm", qemutest.IDE)
	r.within("the machine to be attached", func() bool { st, err := r.agent.VM(t.Context(), "vm"); return err == nil && st.Answered })
	r.done(Insert, "vm", a)
	r.done(Eject, "vm", "")
	require.Len(t, r.agent.Records(), 1, "how the last operation went")
	m.Kill()
	require.NoError(t, os.Remove(m.Socket))
	r.within("it to be forgotten", func() bool { return len(r.agent.all()) == 0 })
	require.Empty(t, r.agent.Records())
}
