package launch

import (
	"bufio"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/qmp"
)

func TestASecondStartIsRefused(t *testing.T) {
	r := newRig(t)
	r.qemu("vm")
	require.NoError(t, r.Start(t.Context(), "vm"))
	require.ErrorIs(t, r.Start(t.Context(), "vm"), ErrRunning)
	require.ErrorIs(t, r.another().Start(t.Context(), "vm"), ErrRunning)
	r.pid("vm")
}

// TestOneOfManyStarts is with many trayds, which know nothing of each other.
func TestOneOfManyStarts(t *testing.T) {
	r := newRig(t)
	r.qemu("vm")
	for range 5 {
		var wg sync.WaitGroup
		results := make([]error, 6)
		for i := range results {
			d := r.another()
			if i%2 == 0 {
				d = r.Detached
			}
			wg.Go(func() { results[i] = d.Start(t.Context(), "vm") })
		}
		wg.Wait()
		started := 0
		for _, err := range results {
			if err == nil {
				started++
				continue
			}
			require.ErrorIs(t, err, ErrRunning)
		}
		require.Equal(t, 1, started)
		// In the middle of its exec a process has no command line.
		require.Eventually(t, func() bool { return len(processesOf(t, r.socket("vm", "qmp"))) == 1 }, soon, tick)
		require.NoError(t, r.Kill(t.Context(), "vm"))
		require.Eventually(t, func() bool { _, err := os.Stat(r.socket("vm", "")); return err != nil }, soon, tick)
		r.gone("vm")
	}
}

func TestKillAtAnyMoment(t *testing.T) {
	r := newRig(t)
	r.qemu("vm")
	for range 40 {
		started := make(chan error, 1)
		go func() { started <- r.Start(t.Context(), "vm") }()
		time.Sleep(rand.N(60 * time.Millisecond))
		require.NoError(t, r.Kill(t.Context(), "vm"))
		if err := <-started; err != nil {
			require.ErrorAs(t, err, new(*StartError))
		}
		// A Kill that came before the start has ended nothing.
		require.NoError(t, r.Kill(t.Context(), "vm"))
		r.gone("vm")
		s, err := r.State(t.Context(), "vm")
		require.NoError(t, err)
		require.Equal(t, State{}, s, "what was killed has not failed")
	}
}

func TestAStartThatIsGivenUp(t *testing.T) {
	r := newRig(t)
	r.qemu("vm")
	for range 10 {
		ctx, cancel := context.WithTimeout(t.Context(), rand.N(30*time.Millisecond))
		err := r.Start(ctx, "vm")
		cancel()
		if err == nil {
			require.NoError(t, r.Kill(t.Context(), "vm"))
		} else {
			require.ErrorIs(t, err, context.DeadlineExceeded)
		}
		r.gone("vm")
	}
}

func TestAMachineOutlivesTrayd(t *testing.T) {
	r := newRig(t)
	r.qemu("vm")
	self, err := os.Executable()
	require.NoError(t, err)
	trayd := osexec.Command(self, "be-trayd", r.config, "vm")
	out, err := trayd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, trayd.Start())
	said, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "started\n", said)
	pid := r.pid("vm")
	require.NoError(t, trayd.Process.Kill())
	require.Error(t, trayd.Wait())

	d := r.another()
	s, err := d.State(t.Context(), "vm")
	require.NoError(t, err)
	require.Equal(t, State{Running: true, PID: pid}, s)
	require.ErrorIs(t, d.Start(t.Context(), "vm"), ErrRunning)
	require.ErrorIs(t, d.Tidy(t.Context(), "vm"), ErrRunning, "its sockets stay")
	r.pid("vm")
	require.NoError(t, d.Kill(t.Context(), "vm"))
	r.gone("vm")
	require.NoError(t, d.Tidy(t.Context(), "vm"))
	require.NoDirExists(t, filepath.Join(d.o.Dirs.Run, "vm"))
	require.NoError(t, d.Kill(t.Context(), "vm"), "nothing runs")
}

func TestTheLogIsSetAside(t *testing.T) {
	r := newRig(t)
	r.define("vm", Command{Path: "/bin/echo", Args: []string{"words"}})
	require.NoError(t, os.WriteFile(r.dirs.log("vm"), make([]byte, logLimit+1), 0o600))
	require.NoError(t, r.Start(t.Context(), "vm"))
	require.Eventually(t, func() bool { return r.log("vm") == "words\n" }, soon, tick)
	require.FileExists(t, r.dirs.log("vm")+".1")
}

func TestLastWords(t *testing.T) {
	path := t.TempDir() + "/log"
	require.Empty(t, lastWords(path, 0))
	require.NoError(t, os.WriteFile(path, []byte("of before\n1\n2\n3\n4\n5\n6\n"), 0o600))
	require.Equal(t, "2\n3\n4\n5\n6", lastWords(path, 0))
	require.Equal(t, "5\n6", lastWords(path, int64(len("of before\n1\n2\n3\n4\n"))))
	require.NoError(t, os.WriteFile(path, []byte(strings.Repeat("x", 1<<20)), 0o600))
	require.Len(t, lastWords(path, 0), wordsLimit)
}

func TestPowerOff(t *testing.T) {
	r := newRig(t)
	r.qemu("vm")
	require.NoError(t, r.Start(t.Context(), "vm"))
	pid := r.pid("vm")
	for _, name := range []string{"qmp", PowerSocket} {
		require.Eventually(t, func() bool { _, err := os.Stat(r.socket("vm", name)); return err == nil }, soon, tick)
	}
	m, err := qmp.Dial(t.Context(), r.socket("vm", "qmp"), nil)
	require.NoError(t, err)
	defer m.Close()
	events := m.Subscribe(16)
	off := make(chan error, 1)
	go func() { off <- PowerOff(t.Context(), r.dirs.Run+"/vm", pid) }()
	select {
	case e := <-events.C:
		require.Equal(t, "POWERDOWN", e.Name)
	case err := <-off:
		require.FailNow(t, "it didn't wait", "%v", err)
	}
	require.NoError(t, m.Execute(t.Context(), "quit", nil, nil), "as a guest does that powers off")
	require.NoError(t, <-off)
	require.NoError(t, PowerOff(t.Context(), r.dirs.Run+"/vm", pid), "it has ended")
	require.NoError(t, PowerOff(t.Context(), r.dirs.Run+"/vm", 0))

	r.define("vm", Command{Path: "/bin/sleep", Args: []string{"60"}})
	require.NoError(t, r.Start(t.Context(), "vm"))
	err = PowerOff(t.Context(), r.dirs.Run+"/vm", r.pid("vm"))
	require.ErrorContains(t, err, "the guest can't be asked to power off")
}

// TestServices: who is a service's process would have machines end with the service.
func TestServices(t *testing.T) {
	for cgroup, want := range map[string]string{
		"0::/system.slice/trayd.service\n":                               "trayd.service",
		"4:memory:/x\n1:name=systemd:/system.slice/a.service\n0::/\n":    "a.service",
		"0::/user.slice/user-0.slice/session-1.scope\n":                  "",
		"0::/user.slice/user@1000.service/app.slice/app-shell-1.scope\n": "",
		"0::/\n":              "",
		"4:memory:/x.service": "",
	} {
		path := t.TempDir() + "/cgroup"
		require.NoError(t, os.WriteFile(path, []byte(cgroup), 0o600))
		require.Equal(t, want, serviceOf(path), cgroup)
	}
	path := t.TempDir() + "/cgroup"
	require.NoError(t, os.WriteFile(path, []byte("0::/system.slice/trayd.service\n"), 0o600))
	t.Setenv("SYSTEMD_EXEC_PID", "1")
	require.NoError(t, dependent(path, nil), "a shell in a service")
	t.Setenv("SYSTEMD_EXEC_PID", strconv.Itoa(os.Getpid()))
	err := dependent(path, errors.New("D-Bus doesn't answer"))
	require.ErrorContains(t, err, "machines can't be processes of trayd.service, since they would end with it (D-Bus doesn't answer): install trayd-vm@.service and polkit")
	r := newRig(t)
	r.define("vm", Command{Path: "/bin/true"})
	r.refuse = err
	require.ErrorIs(t, r.Start(t.Context(), "vm"), err)
}

func TestChoose(t *testing.T) {
	o := Options{Dirs: Dirs{State: t.TempDir(), Run: t.TempDir()}}
	for run, want := range map[string]string{RunSystemd: "systemd", RunProcess: "process"} {
		o.Run = run
		require.Equal(t, want, Choose(t.Context(), o).Name())
	}
}

// BenchmarkStart is from Start to QEMU's first instruction.
func BenchmarkStart(b *testing.B) {
	r := newRig(b)
	r.define("vm", Command{Path: "/bin/sleep", Args: []string{"60"}})
	for b.Loop() {
		require.NoError(b, r.Start(context.Background(), "vm"))
		b.StopTimer()
		require.NoError(b, r.Kill(context.Background(), "vm"))
		b.StartTimer()
	}
}
