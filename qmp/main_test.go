package qmp_test

import (
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/trayd/trayd/qmp"
	"github.com/trayd/trayd/qmp/qmptest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// soon is far more than anything here takes, on a machine that does other things too.
const soon = 10 * time.Second

func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func dial(t testing.TB, path string) *qmp.Conn {
	t.Helper()
	c, err := qmp.Dial(within(t, soon), path, nil)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

// next returns the next event, and fails the test when none comes.
func next(t testing.TB, s *qmp.Subscription) qmp.Event {
	t.Helper()
	select {
	case e, ok := <-s.C:
		require.True(t, ok, "the subscription has ended")
		return e
	case <-time.After(soon):
		require.Fail(t, "no event")
		panic("unreachable")
	}
}

// requireEnded waits for the end of a connection and returns why.
func requireEnded(t testing.TB, c *qmp.Conn) error {
	t.Helper()
	select {
	case <-c.Done():
	case <-time.After(soon):
		require.Fail(t, "the connection has not ended")
	}
	require.Error(t, c.Err())
	return c.Err()
}

// unanswered programs commands that are never answered.
func unanswered(command string) qmptest.Option {
	return qmptest.On(command, func(*qmptest.Request) {})
}

// returning programs a command that returns v.
func returning(command string, v any) qmptest.Option {
	return qmptest.On(command, func(r *qmptest.Request) { r.Return(v) })
}

// A machine is a real QEMU without a guest.
type machine struct {
	cmd  *exec.Cmd
	path string
}

// startQEMU starts QEMU with a monitor, its processor stopped. A test that needs QEMU fails without it.
func startQEMU(t testing.TB, args ...string) *machine {
	t.Helper()
	return startQEMUWithMonitor(t, "", args...)
}

func startQEMUWithMonitor(t testing.TB, monitor string, args ...string) *machine {
	t.Helper()
	path := filepath.Join(t.TempDir(), "qmp")
	args = append([]string{
		"-accel", "tcg", "-S", "-nodefaults", "-display", "none", "-m", "16",
		"-chardev", "socket,id=qmp,path=" + path + ",server=on,wait=off",
		"-mon", "chardev=qmp,mode=control" + monitor,
	}, args...)
	m := &machine{cmd: exec.Command("qemu-system-x86_64", args...), path: path}
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var stderr strings.Builder
	m.cmd.Stderr = &stderr
	require.NoError(t, m.cmd.Start(), "these tests need qemu-system-x86_64")
	t.Cleanup(func() {
		m.kill()
		if t.Failed() && stderr.Len() > 0 {
			t.Logf("QEMU said: %s", stderr.String())
		}
	})
	awaitSocket(t, path)
	return m
}

// awaitSocket waits until somebody listens; the file is there a moment earlier.
func awaitSocket(t testing.TB, path string) {
	t.Helper()
	for end := time.Now().Add(soon); ; time.Sleep(5 * time.Millisecond) {
		nc, err := net.Dial("unix", path)
		if err == nil {
			nc.Close()
			return
		}
		require.True(t, time.Now().Before(end), "QEMU does not listen: %v", err)
	}
}

func (m *machine) kill() {
	m.cmd.Process.Kill()
	m.cmd.Wait()
}

// someFile is a file with content to pass to QEMU.
func someFile(t testing.TB, content string) *os.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disc")
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	f, err := os.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func contentOf(t testing.TB, f *os.File) string {
	t.Helper()
	content, err := io.ReadAll(f)
	require.NoError(t, err)
	return string(content)
}
