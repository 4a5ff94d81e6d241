package agent

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/internal/machine"
	"github.com/trayd/trayd/internal/machine/launch"
	"github.com/trayd/trayd/internal/simulated"
	"github.com/trayd/trayd/qmp/qmptest"
)

// listensLate is a Runner whose QEMU has bound its socket a while before it listens on it.
type listensLate struct {
	noneRuns
	t       *testing.T
	path    string
	qemu    *simulated.Machine
	started atomic.Bool
	ended   chan struct{} // closed by the test
}

func (l *listensLate) State(context.Context, string) (launch.State, error) {
	return launch.State{Running: l.started.Load(), PID: os.Getpid()}, nil
}

func (l *listensLate) Start(context.Context, string) error {
	if err := os.MkdirAll(filepath.Dir(l.path), 0o700); err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: l.path}); err != nil {
		return err
	}
	l.started.Store(true)
	time.AfterFunc(700*time.Millisecond, func() { // what tries again at ever longer intervals, sleeps
		_ = unix.Listen(fd, 1)
		f := os.NewFile(uintptr(fd), "monitor")
		listener, err := net.FileListener(f)
		f.Close()
		if err != nil {
			l.t.Error(err)
			return
		}
		context.AfterFunc(l.t.Context(), func() {
			<-l.ended
			listener.Close()
		})
		for {
			there, err := listener.Accept()
			if err != nil {
				return
			}
			here, err := net.Dial("unix", l.qemu.Path())
			if err != nil {
				return // the test is over
			}
			go func() { _, _ = io.Copy(there, here); there.Close() }()
			go func() { _, _ = io.Copy(here, there); here.Close() }()
		}
	})
	return nil
}

// TestStartKeepsTheConnection: there is no moment after its start in which trayd isn't connected
// to a machine, and would miss what its guest does, though QEMU was slow to listen.
func TestStartKeepsTheConnection(t *testing.T) {
	r := installedRig(t)
	qemu := simulated.New(t, json.RawMessage(simulated.Schema))
	ended := make(chan struct{})
	t.Cleanup(func() { close(ended) })
	held, err := os.Open(r.definition().CDROMs[0].Medium) // the descriptor that QEMU would have
	require.NoError(t, err)
	t.Cleanup(func() { held.Close() })
	t.Cleanup(r.end) // before QEMU goes
	var runs atomic.Bool
	qemu.Handle("query-status", func(q *qmptest.Request) {
		q.Return(map[string]any{"running": runs.Load(), "status": map[bool]string{false: prelaunch, true: "running"}[runs.Load()]})
	})
	qemu.Handle("cont", func(q *qmptest.Request) { runs.Store(true); q.Return(struct{}{}) })
	qemu.Handle("block-set-write-threshold", func(q *qmptest.Request) { q.Return(struct{}{}) })
	r.opts.Machines.Runner = &listensLate{t: t, path: filepath.Join(r.opts.Machines.RunDir, "m", machine.MonitorSocket), qemu: qemu, ended: ended}
	r.start()
	_, err = r.agent.StartVM(t.Context(), "m", Caller{})
	require.NoError(t, err)
	require.True(t, runs.Load())
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		require.True(t, r.agent.vm("m").connected())
	}
}
