//go:build integration

package integration_test

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/internal/qemutest"
)

// terminal is a pseudo-terminal and what was written to it.
type terminal struct {
	master, slave *os.File
	done          chan struct{}

	mu  sync.Mutex // guards out
	out strings.Builder
}

// newTerminal opens a pseudo-terminal, by pty(7).
func newTerminal(t *testing.T) *terminal {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	fd := int(master.Fd())
	require.NoError(t, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	require.NoError(t, err)
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	term := &terminal{master: master, slave: slave, done: make(chan struct{})}
	go func() {
		defer close(term.done)
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf) // EIO once nobody has the other end
			term.mu.Lock()
			term.out.Write(buf[:n])
			term.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() {
		slave.Close()
		<-term.done
		master.Close()
	})
	return term
}

func (t *terminal) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.out.String()
}

// TestProgressOnTerminal: who watches sees that the guest is waited for, and for how
// long yet; who doesn't is not told.
func TestProgressOnTerminal(t *testing.T) {
	r := newRig(t)
	vm, _ := r.running("vm", qemutest.IDE.With("")...)
	guest := vm.Guest(t)
	one, two := r.disc("ONE"), r.disc("TWO")
	r.start("")
	r.ready()
	r.must("insert", "vm", one)
	guest.Volume()
	guest.Lock()

	term := newTerminal(t)
	cmd := r.command("change", "vm", two, "--wait", "1m")
	cmd.Stderr = term.slave
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	require.Eventually(t, func() bool {
		return strings.Contains(term.String(), "waiting for the guest to let go of the disc in vm/cd0: 5")
	}, 10*time.Second, 20*time.Millisecond, "no progress is shown")
	shown := len(term.String())
	require.Eventually(t, func() bool {
		return strings.Count(term.String()[shown:], "\r\x1b[K") >= 2
	}, 5*time.Second, 20*time.Millisecond, "the line does not move")
	guest.Unlock()
	said, err := io.ReadAll(stdout)
	require.NoError(t, err)
	require.NoError(t, cmd.Wait())
	require.Equal(t, "vm/cd0: "+two+" is in\n", string(said))
	require.Eventually(t, func() bool { return strings.HasSuffix(term.String(), "\r\x1b[K") },
		time.Second, 10*time.Millisecond, "the line is not cleared: %q", term.String())

	t.Log("no terminal, no line")
	guest.Volume()
	guest.Lock()
	got := r.trayctl("change", "vm", one, "--wait", "2s")
	require.Equal(t, 1, got.code)
	require.NotContains(t, got.stderr, "\x1b")
	require.NotContains(t, got.stderr, "waiting for")
	guest.Unlock()
	r.clean(vm, "vm/cd0")
}
