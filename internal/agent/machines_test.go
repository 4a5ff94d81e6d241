package agent

import (
	"context"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/machine"
	"github.com/trayd/trayd/internal/machine/launch"
	"github.com/trayd/trayd/internal/wire"
)

// noneRuns is a Runner whose machines have all ended: what is left to be learnt from that
// can't be stretched with a real one.
type noneRuns struct{ Runner }

func (noneRuns) State(context.Context, string) (launch.State, error) { return launch.State{}, nil }
func (noneRuns) Tidy(context.Context, string) error                  { return nil }
func (noneRuns) Kill(context.Context, string) error                  { return nil }
func (noneRuns) Name() string                                        { return launch.RunProcess }

// lastThread is of a machine whose lock is held for a while after its end.
type lastThread struct {
	noneRuns
	held, tidied atomic.Int32
}

func (l *lastThread) Tidy(context.Context, string) error {
	if l.held.Add(-1) >= 0 {
		return launch.ErrRunning
	}
	l.tidied.Add(1)
	return nil
}

// TestTidyEnded: a machine's sockets go, though its QEMU's last thread is slow to end.
func TestTidyEnded(t *testing.T) {
	r := installedRig(t)
	slow := &lastThread{}
	slow.held.Store(2)
	said, err := os.Create(filepath.Join(r.dir, "log"))
	require.NoError(t, err)
	defer said.Close()
	r.opts.Machines.Runner, r.opts.Log = slow, slog.New(slog.NewTextHandler(said, nil))
	r.start()
	m := r.agent.machines
	m.tidyEnded("m")
	require.EqualValues(t, 1, slow.tidied.Load())

	slow.held.Store(math.MaxInt32)
	m.tidyLimit = 0
	m.tidyEnded("m")
	require.EqualValues(t, 1, slow.tidied.Load())
	warned := func() int {
		log, err := os.ReadFile(said.Name())
		require.NoError(t, err)
		return strings.Count(string(log), "its lock is still held")
	}
	require.Equal(t, 1, warned())

	// Unless it is another QEMU's: of a start that is under way, or that has been.
	done, err := m.turn("m", "started")
	require.NoError(t, err)
	m.tidyEnded("m")
	require.Equal(t, 1, warned())
	done()
	v := r.agent.vm("m")
	v.mu.Lock()
	v.process = lookUp(os.Getpid(), bootID())
	v.mu.Unlock()
	m.tidyEnded("m")
	require.Equal(t, 1, warned())
	v.mu.Lock()
	v.process = over(t)
	v.mu.Unlock()
	m.tidyEnded("m")
	require.Equal(t, 2, warned())
	r.agent.scanSoon() // it is forgotten
}

// installedRig has an agent, and a machine whose guest has written its disk.
func installedRig(t *testing.T) *rig {
	r := newRig(t)
	r.opts.Machines = MachineOptions{
		Store: machine.Store{Dir: filepath.Join(r.dir, "machines")}, RunDir: filepath.Join(r.dir, "m"),
		QEMU: "qemu-system-x86_64", QemuImg: "qemu-img", Accel: "tcg", Runner: noneRuns{},
	}
	d := &machine.Definition{Name: "m", Disks: []wire.Disk{{Size: 1 << 20}}, CDROMs: []wire.CDROM{{Medium: r.disc("INSTALLER")}}}
	require.NoError(t, machine.Complete(d, nil))
	require.Equal(t, wire.BootCDROMOnce, d.Boot)
	require.NoError(t, r.opts.Machines.Store.Create(d, func(dir string) error {
		file := filepath.Join(dir, machine.DiskFile(d.Disks[0]))
		for _, args := range [][]string{{"qemu-img", "create", "-q", "-f", "qcow2", file, "1M"}, {"qemu-io", "-f", "qcow2", "-c", "write 0 64k", file}} {
			if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
				t.Logf("%s", out)
				return err
			}
		}
		return nil
	}, func(string) {}))
	return r
}

func (r *rig) definition() *machine.Definition {
	r.t.Helper()
	d, err := r.opts.Machines.Store.Load("m")
	require.NoError(r.t, err)
	return d
}

// over is a process that has ended.
func over(t *testing.T) Process {
	t.Helper()
	cmd := exec.Command("true")
	require.NoError(t, cmd.Run())
	return Process{PID: cmd.Process.Pid, Start: "elsewhere/1"}
}

// TestEndIsLearntFirst: what a guest has done at its end stands in its machine's definition
// before that is read or changed again.
func TestEndIsLearntFirst(t *testing.T) {
	r := installedRig(t)
	r.start()
	m := r.agent.machines
	for _, verb := range []struct {
		name string
		do   func() error
	}{
		{"set", func() error {
			cpus := 2
			_, err := r.agent.ChangeVM(t.Context(), "m", wire.MachineChange{CPUs: &cpus}, Caller{})
			return err
		}},
		{"eject", func() error {
			_, err := r.agent.Start(Request{VM: "m", Drive: "cd0", Verb: Eject})
			return err
		}},
		{"insert", func() error {
			_, err := r.agent.Start(Request{VM: "m", Drive: "cd0", Verb: Insert, Medium: r.disc("OTHER")})
			return err
		}},
	} {
		d := r.definition()
		d.Boot = wire.BootCDROMOnce
		require.NoError(t, r.opts.Machines.Store.Save(d))
		require.NoError(t, r.journal.Put(runPrefix+"m", run{over(t), time.Now()}))
		require.NoError(t, verb.do(), verb.name)
		require.Equal(t, wire.BootDisk, r.definition().Boot, verb.name)
	}
	require.NoError(t, m.seeEnd(t.Context(), "m"), "there is nothing to wait for")
}

// TestEndOfAnEarlierRun: an end is of the run that it is of.
func TestEndOfAnEarlierRun(t *testing.T) {
	r := installedRig(t)
	r.start()
	now := lookUp(os.Getpid(), r.agent.boot)
	require.NoError(t, r.agent.machines.noteRun("m", now))
	r.agent.machines.ended("m", over(t), endUnseen)
	require.Equal(t, wire.BootCDROMOnce, r.definition().Boot)
	var still run
	ok, err := r.journal.Get(runPrefix+"m", &still)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, now, still.Process)
	require.NoError(t, r.journal.Delete(runPrefix+"m"))
}

// TestKilledAfterNobodyLooked: who kills a machine that may have been installed while trayd was
// dead doesn't have the installer begin again. One that trayd has looked at all the time does.
func TestKilledAfterNobodyLooked(t *testing.T) {
	for _, missed := range []bool{true, false} {
		r := installedRig(t)
		r.start()
		m := r.agent.machines
		p := over(t)
		require.NoError(t, m.noteRun("m", p))
		m.known("m", func(i *installing) { i.written, i.killed, i.missed, i.followed = true, true, missed, &session{} })
		m.ended("m", p, endSeen)
		want := map[bool]string{true: wire.BootDisk, false: wire.BootCDROMOnce}[missed]
		require.Equal(t, want, r.definition().Boot)
	}
}

// TestEndsBeforeTraydIsBack: a machine whose QEMU was just ending when trayd was started, and
// had closed its monitor already, hasn't failed, and its disk is taken for installed, as that
// of one that was gone.
func TestEndsBeforeTraydIsBack(t *testing.T) {
	r := installedRig(t)
	r.start()
	qemu := exec.Command("sleep", "60")
	require.NoError(t, qemu.Start())
	defer func() { _ = qemu.Wait() }()
	defer func() { _ = qemu.Process.Kill() }()
	p := lookUp(qemu.Process.Pid, bootID())
	require.NoError(t, r.journal.Put(runPrefix+"m", run{p, time.Now()}))
	r.restart()
	v := r.agent.vm("m")
	require.Eventually(t, func() bool { return strings.Contains(v.unreachable().Error(), "its monitor socket is gone") }, rescanEvery/3, time.Millisecond)
	require.Equal(t, wire.BootCDROMOnce, r.definition().Boot)

	require.NoError(t, qemu.Process.Kill())
	require.Eventually(t, func() bool { return r.definition().Boot == wire.BootDisk }, rescanEvery/3, time.Millisecond, "its end isn't noticed")
	require.Eventually(t, func() bool { ok, err := r.journal.Get(runPrefix+"m", &run{}); return err == nil && !ok }, rescanEvery/3, time.Millisecond)
	all := r.agent.VMs(t.Context())
	require.Len(t, all, 1)
	require.Equal(t, wire.VMStopped, all[0].State)
}

// TestNotValidated: a stopped machine can't be given what only root may put into one that runs.
func TestNotValidated(t *testing.T) {
	r := installedRig(t)
	r.start()
	for _, privileged := range []bool{false, true} {
		_, err := r.agent.Start(Request{VM: "m", Drive: "cd0", Verb: Replace, Medium: "/etc/passwd", NoValidate: true, By: Caller{Privileged: privileged}})
		require.Equal(t, BadRequest, CodeOf(err))
	}
	require.Contains(t, r.definition().CDROMs[0].Medium, "INSTALLER")
}

// TestBaseIsTheImages: who asks for a machine doesn't say what its disks stand on.
func TestBaseIsTheImages(t *testing.T) {
	r := installedRig(t)
	r.start()
	_, _, err := r.agent.CreateVM(t.Context(), wire.MachineRequest{Definition: machine.Definition{
		Name: "n", Disks: []wire.Disk{{Size: 1 << 20, Base: "/etc/shadow", BaseFormat: "raw"}},
	}}, Caller{})
	require.NoError(t, err)
	d, err := r.opts.Machines.Store.Load("n")
	require.NoError(t, err)
	require.Empty(t, d.Disks[0].Base+d.Disks[0].BaseFormat)
}

// TestNameIsFree: a machine that was removed holds its name no longer, nor does one of others
// that has ended.
func TestNameIsFree(t *testing.T) {
	r := installedRig(t)
	r.start()
	v := r.agent.vm("m") // as its supervisor leaves it
	v.mu.Lock()
	v.ended = true
	v.mu.Unlock()
	require.NoError(t, r.agent.RemoveVM(t.Context(), "m", false, Caller{}))
	_, err := r.agent.StartVM(t.Context(), "m", Caller{})
	require.Equal(t, NoSuchVM, CodeOf(err), "%v", err)
	r.noEvent(EventVMFailed)
	_, _, err = r.agent.CreateVM(t.Context(), wire.MachineRequest{Definition: machine.Definition{Name: "m"}}, Caller{})
	require.NoError(t, err)
}

// TestNotedTooLate: the end of a machine that was seen before it was noted that it runs holds
// nobody up.
func TestNotedTooLate(t *testing.T) {
	r := installedRig(t)
	r.start()
	p := over(t)
	require.NoError(t, r.agent.machines.noteRun("m", p))
	r.agent.machines.neverRan("m", Process{PID: p.PID})
	ok, err := r.journal.Get(runPrefix+"m", &run{})
	require.NoError(t, err)
	require.True(t, ok, "another one's")
	r.agent.machines.neverRan("m", p)
	require.NoError(t, r.agent.machines.seeEnd(t.Context(), "m"))
	require.Equal(t, wire.BootCDROMOnce, r.definition().Boot)
}

// TestRefusedIsNotAnnounced: who is refused, or has nothing to do, isn't said to begin.
func TestRefusedIsNotAnnounced(t *testing.T) {
	r := installedRig(t)
	r.start()
	done, err := r.agent.machines.turn("m", "captured")
	require.NoError(t, err)
	_, err = r.agent.StartVM(t.Context(), "m", Caller{})
	require.Equal(t, VMBusy, CodeOf(err), "%v", err)
	done()
	_, err = r.agent.StopVM(t.Context(), "m", nil, false, Caller{})
	require.NoError(t, err, "it doesn't run")
	events, _ := r.events.Take(keptEvents)
	for _, e := range events {
		require.NotContains(t, []string{EventVMStarting, wire.EventVMStopping}, e.Type)
	}
	require.NoError(t, os.Remove(r.definition().CDROMs[0].Medium))
	_, err = r.agent.StartVM(t.Context(), "m", Caller{Name: "root"})
	require.Equal(t, NoSuchMedium, CodeOf(err), "%v", err)
	e := r.event(EventVMStarting)
	require.Equal(t, "asked for by root", e.Detail)
	require.NotEmpty(t, e.Operation)
}

// crashed is a Runner whose machines' QEMUs have crashed.
type crashed struct{ noneRuns }

func (crashed) State(context.Context, string) (launch.State, error) {
	return launch.State{Failed: true, Why: "SIGSEGV"}, nil
}

// dying is a Runner whose machine's QEMU dies while somebody starts it: it runs when that asks
// first, and no more when it asks again.
type dying struct {
	noneRuns
	asked   atomic.Int32
	started atomic.Bool
}

func (d *dying) State(context.Context, string) (launch.State, error) {
	return launch.State{Running: d.asked.Add(1) == 1}, nil
}

func (d *dying) Start(context.Context, string) error {
	d.started.Store(true)
	return &launch.StartError{Machine: "m", Why: "started"}
}

// TestStartWhileItDies: a machine is started whose QEMU was about to be gone, and the words of
// that one are not taken for the new one's.
func TestStartWhileItDies(t *testing.T) {
	r := installedRig(t)
	d := &dying{}
	r.opts.Machines.Runner = d
	r.start()
	_, err := r.agent.StartVM(t.Context(), "m", Caller{})
	require.ErrorContains(t, err, "VM m can't be started: started")
	require.True(t, d.started.Load())
	require.EqualValues(t, 2, d.asked.Load(), "somebody else has asked first")
}

// TestCrashAfterPowerOff: a QEMU that crashes at its end, after its guest has powered off, has
// not failed its machine. One that crashes otherwise has.
func TestCrashAfterPowerOff(t *testing.T) {
	for _, off := range []bool{true, false} {
		r := installedRig(t)
		r.opts.Machines.Runner = crashed{}
		r.start()
		m, p := r.agent.machines, over(t)
		require.NoError(t, m.noteRun("m", p))
		m.known("m", func(i *installing) { i.off, i.followed = off, &session{} })
		m.ended("m", p, endSeen)
		all := r.agent.VMs(t.Context())
		require.Len(t, all, 1)
		require.Equal(t, map[bool]string{true: wire.VMStopped, false: wire.VMFailed}[off], all[0].State)
		m.setFailed("m", "") // as at its next start
		require.Equal(t, "SIGSEGV", m.whyFailed("m", launch.State{Failed: true, Why: "SIGSEGV"}))
	}
}
