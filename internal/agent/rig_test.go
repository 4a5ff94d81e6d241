package agent

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/trayd/trayd/blockdev"
	"github.com/trayd/trayd/internal/qemutest"
	"github.com/trayd/trayd/qmp"
	"github.com/trayd/trayd/state"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must come; generous, because tests share
// processors.
const patience = 15 * time.Second

// rig is a host: a directory of monitor sockets, one of discs, a state file, an agent.
// Each test ends in its leak check.
type rig struct {
	t       *testing.T
	dir     string // the sockets are in dir/run, the discs in dir/media
	opts    Options
	agent   *Agent
	journal *state.Journal
	events  *Subscriber
	halt    func() // stops the agent
	vms     []*testVM
	ended   bool // end has run
}

// newRig makes the host; start starts the agent.
func newRig(t *testing.T, edit ...func(*Options)) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("", "rig") // t.TempDir's names are too long for sockets
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := &rig{t: t, dir: dir, opts: Options{
		Monitors: []string{dir + "/run/*.qmp"}, MediaRoots: []string{dir + "/media"},
		Attach: Persistent, Look: time.Minute, Command: 5 * time.Second, Wait: 10 * time.Second,
		GuestEject: GuestEjectRelease, Strategy: "auto", Log: slog.New(slog.DiscardHandler),
	}}
	for _, f := range edit {
		f(&r.opts)
	}
	for _, d := range []string{"run", "media", "state"} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, d), 0o700))
	}
	t.Cleanup(r.end)
	return r
}

// start starts the agent and waits until it is ready.
func (r *rig) start() {
	r.t.Helper()
	j, err := state.Open(filepath.Join(r.dir, "state", "state.journal"), nil)
	require.NoError(r.t, err)
	r.startOn(j)
}

func (r *rig) startOn(j *state.Journal) {
	r.t.Helper()
	a, err := New(j, r.opts)
	require.NoError(r.t, err)
	r.agent, r.journal = a, j
	r.events = a.Subscribe(0)
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- a.Run(ctx, func() { close(ready) }) }()
	r.halt = func() {
		cancel()
		require.NoError(r.t, <-ended)
		r.events.Close()
		require.NoError(r.t, j.Close())
		r.halt = nil
	}
	select {
	case <-ready:
	case <-time.After(patience):
		require.FailNow(r.t, "the agent is never ready")
	}
}

// stop stops the agent as systemd does; restart starts it again.
func (r *rig) stop() { r.t.Helper(); r.halt() }

func (r *rig) restart() {
	r.t.Helper()
	if r.halt != nil {
		r.halt()
	}
	r.start()
}

// within waits for what must come true.
func (r *rig) within(what string, f func() bool) {
	r.t.Helper()
	for end := time.Now().Add(patience); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			require.FailNow(r.t, "waited in vain for "+what)
		}
	}
}

// event waits for the next event of that type.
func (r *rig) event(kind string) Event {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var seen []string
	for {
		e, err := r.events.Next(ctx)
		if err != nil {
			require.FailNow(r.t, "no event "+kind, "seen: %s", strings.Join(seen, "\n"))
		}
		if e.Type == kind {
			return e
		}
		seen = append(seen, e.Type+": "+e.Detail)
	}
}

// noEvent requires that none of that type has come so far.
func (r *rig) noEvent(kind string) {
	r.t.Helper()
	events, _ := r.events.Take(keptEvents)
	for _, e := range events {
		require.NotEqual(r.t, kind, e.Type, e.Detail)
	}
}

// disc makes a disc of that volume identifier and returns its path.
func (r *rig) disc(volume string) string {
	r.t.Helper()
	return qemutest.Disc(r.t, filepath.Join(r.dir, "media"), volume)
}

// testVM is a QEMU of the rig. It runs, idly, unless the test says otherwise, and has
// a second monitor for the test itself.
type testVM struct {
	*qemutest.VM
	r    *rig
	name string
	side *qmp.Conn
}

func (r *rig) machine(name string, kind qemutest.Drive, more ...string) *testVM {
	r.t.Helper()
	m := r.paused(name, kind, more...)
	qemutest.Run(r.t, m.side)
	return m
}

// paused is a machine that has not begun to run.
func (r *rig) paused(name string, kind qemutest.Drive, more ...string) *testVM {
	r.t.Helper()
	args := kind.Args
	if kind.HasDisc {
		args = kind.With(r.disc("BOOT"))
	}
	return r.launch(name, append(append([]string{}, args...), more...)...)
}

func (r *rig) launch(name string, args ...string) *testVM {
	r.t.Helper()
	side := filepath.Join(r.dir, name+".side")
	args = append(args, "-qmp", "unix:"+side+",server=on,wait=off")
	args = append(args, qemutest.Idle(r.t, r.dir)...)
	m := &testVM{r: r, name: name, VM: qemutest.Start(r.t, filepath.Join(r.dir, "run"), name, args...)}
	var err error
	r.within("the second monitor", func() bool {
		m.side, err = qmp.Dial(context.Background(), side, nil)
		return err == nil
	})
	r.t.Cleanup(func() { m.side.Close() })
	r.t.Cleanup(r.end) // the last one runs first, while all machines live
	r.vms = append(r.vms, m)
	return m
}

// qemu sends a command through the second monitor, as another client does.
func (m *testVM) qemu(command string, args any) {
	m.r.t.Helper()
	require.NoError(m.r.t, m.side.Execute(context.Background(), command, args, nil))
}

// state is what QEMU says about the drive.
func (m *testVM) state(drive string) blockdev.State {
	m.r.t.Helper()
	states, err := blockdev.ObserveAll(context.Background(), m.side)
	require.NoError(m.r.t, err)
	for _, s := range states {
		if s.ID == drive || s.Device == drive {
			return s
		}
	}
	require.FailNow(m.r.t, "no drive "+drive)
	return blockdev.State{}
}

// request is one by somebody without privileges; vm may be VM/DRIVE.
func request(verb, vm, medium string, edit ...func(*Request)) Request {
	vm, drive, _ := strings.Cut(vm, "/")
	req := Request{VM: vm, Drive: drive, Verb: verb, Medium: medium, By: Caller{Name: "test"}}
	for _, f := range edit {
		f(&req)
	}
	return req
}

func wait(d time.Duration) func(*Request) { return func(r *Request) { r.Wait = &d } }
func force(r *Request)                    { r.Force = true }
func thenForce(r *Request)                { r.ThenForce = true }
func privileged(r *Request)               { r.By.Privileged = true }
func noValidate(r *Request)               { r.NoValidate = true }

// begin starts a request; do waits for its end as well.
func (r *rig) begin(verb, vm, medium string, edit ...func(*Request)) *Operation {
	r.t.Helper()
	o, err := r.agent.Start(request(verb, vm, medium, edit...))
	require.NoError(r.t, err)
	return o
}

func (r *rig) do(verb, vm, medium string, edit ...func(*Request)) (*Outcome, error) {
	r.t.Helper()
	o, err := r.agent.Start(request(verb, vm, medium, edit...))
	if err != nil {
		return nil, err
	}
	return r.finish(o)
}

func (r *rig) finish(o *Operation) (*Outcome, error) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	p, err := o.Wait(ctx)
	require.NoError(r.t, err, "the operation does not end")
	return p.Outcome, p.Err
}

// done requires success.
func (r *rig) done(verb, vm, medium string, edit ...func(*Request)) *Outcome {
	r.t.Helper()
	out, err := r.do(verb, vm, medium, edit...)
	require.NoError(r.t, err)
	require.Equal(r.t, Done, out.Result)
	return out
}

// refused requires an error of that code, which says what to do next.
func (r *rig) refused(code Code, verb, vm, medium string, edit ...func(*Request)) *Error {
	r.t.Helper()
	_, err := r.do(verb, vm, medium, edit...)
	return r.isError(code, err)
}

func (r *rig) isError(code Code, err error) *Error {
	r.t.Helper()
	require.Error(r.t, err)
	require.Equal(r.t, code, CodeOf(err), err)
	var e *Error
	require.ErrorAs(r.t, err, &e)
	if code != CancelledCode {
		require.NotEmpty(r.t, e.Next, "an error says what to do next: %v", err)
	}
	return e
}

// waiting waits until an operation waits for the guest.
func (r *rig) waiting(o *Operation) {
	r.t.Helper()
	r.within("the operation to wait for the guest", func() bool { return o.Phase() == Waiting })
}

// drive is the status of a machine's only drive.
func (r *rig) drive(vm string) DriveStatus {
	r.t.Helper()
	st, err := r.agent.Drive(context.Background(), vm, "")
	require.NoError(r.t, err)
	return st
}

// holds requires a medium, by name, in the closed drive, and that it is ours; "" for an
// empty one.
func (r *rig) holds(vm, medium string) {
	r.t.Helper()
	var st DriveStatus
	r.within("QEMU to say what is in", func() bool { // a look has a second, and a host its load
		st = r.drive(vm)
		return st.Tray != ""
	})
	require.Equal(r.t, "closed", st.Tray)
	if medium == "" {
		require.Equal(r.t, StateEmpty, st.State)
		return
	}
	require.Equal(r.t, StateLoaded, st.State)
	require.Equal(r.t, medium, st.Medium.Name)
	require.True(r.t, st.Medium.Ours)
	require.True(r.t, st.Medium.ReadOnly)
}

// settled waits until nothing is under way and records, QEMU and kernel agree.
func (r *rig) settled() {
	r.t.Helper()
	var findings []Finding
	defer func() {
		if len(findings) > 0 {
			r.t.Logf("%+v", findings)
		}
	}()
	r.within("the records and QEMU to agree", func() bool {
		findings = r.agent.Check(context.Background())
		for _, v := range r.agent.list() {
			for _, d := range v.allDrives() {
				if st := d.status(nil); st.Operation != nil {
					findings = append(findings, Finding{VM: v.name, Problem: "operation " + st.Operation.ID + " runs"})
				}
			}
		}
		if len(findings) > 0 {
			time.Sleep(20 * time.Millisecond)
		}
		return len(findings) == 0
	})
}

// end is the leak check that every test ends with: nothing under way, records and QEMU
// agree, no node of ours outside a drive, no descriptor, no open disc.
func (r *rig) end() {
	r.t.Helper()
	if r.ended {
		return
	}
	r.ended = true
	if r.t.Failed() {
		if r.halt != nil {
			r.halt()
		}
		return
	}
	if r.halt == nil && len(r.vms) > 0 {
		r.start() // what was left open is for the next start
	}
	if r.halt != nil {
		r.settled()
		r.halt()
	}
	for _, m := range r.vms {
		if !m.ended() {
			m.noLeaks(r.agent.mark)
		}
	}
}

func (m *testVM) ended() bool { return m.side.Err() != nil }

func (m *testVM) noLeaks(mark string) {
	t := m.r.t
	t.Helper()
	ctx := context.Background()
	states, err := blockdev.ObserveAll(ctx, m.side)
	require.NoError(t, err)
	inside := make(map[string]bool)
	for _, s := range states {
		inside[s.Node()] = true
	}
	nodes, err := blockdev.Nodes(ctx, m.side, mark)
	require.NoError(t, err)
	for _, n := range nodes {
		require.True(t, inside[n], "node %s is in no drive", n)
	}
	run, err := m.side.QueryStatus(ctx)
	require.NoError(t, err)
	loans, err := blockdev.Lent(ctx, m.side, mark)
	require.NoError(t, err)
	if run.Running {
		require.Empty(t, loans, "descriptors lent to nobody")
	}
	m.qemu("cont", nil)
	for _, l := range loans { // up to 8.2 a paused QEMU keeps them until it runs and is asked again
		_ = blockdev.TakeBack(ctx, m.side, l.FDSet)
	}
	eject := blockdev.NewAtomic(m.side, blockdev.Options{Own: mark})
	for _, s := range states {
		if s.Removable && s.Medium != nil {
			require.NoError(t, eject.Eject(ctx, s.ID, true))
		}
	}
	require.Empty(t, m.OpenFiles(t, filepath.Join(m.r.dir, "media")), "discs that QEMU still holds open")
}
