package guest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Machine is a running guest.
type Machine struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	done  chan struct{}

	mu      sync.Mutex // guards below
	lines   []string   // what the guest said, oldest first
	changed chan struct{}
}

// KernelOptions are what every guest's Linux is started with. An emulated processor's clock
// drifts (tsc=unstable), and where the host has no time for it Linux counts too few ticks in
// the moment in which it tries its timer, and panics (no_timer_check).
const KernelOptions = "console=ttyS0 quiet tsc=unstable no_timer_check"

// Command is the command line by which Boot starts QEMU.
func (k *Kit) Command(qemu, initramfs string, args []string) []string {
	return append([]string{
		qemu, "-M", "q35", "-cpu", "max", "-accel", "tcg", "-m", "256", "-nodefaults", "-display", "none", "-no-reboot",
		"-kernel", k.Kernel, "-initrd", initramfs, "-append", KernelOptions + " panic=-1",
		"-serial", "stdio",
	}, args...)
}

// Boot starts QEMU with the kit's kernel and an initramfs; args add the drives and the
// monitor. say is called with every line of the guest that begins with "guest: "; it
// may be nil.
func (k *Kit) Boot(qemu, initramfs string, args []string, say func(string)) (*Machine, error) {
	command := k.Command(qemu, initramfs, args)
	m := &Machine{cmd: exec.Command(command[0], command[1:]...), done: make(chan struct{}), changed: make(chan struct{})}
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var stderr strings.Builder
	m.cmd.Stderr = &stderr
	var err error
	if m.stdin, err = m.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	console, err := m.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	started := make(chan error, 1)
	go func() {
		// The parent-death signal follows the thread that forked.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(m.done)
		err := m.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		m.read(console, say)
		_ = m.cmd.Wait() // killed, as a rule
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return m, nil
}

func (m *Machine) read(console io.Reader, say func(string)) {
	lines := bufio.NewScanner(console)
	for lines.Scan() {
		line := strings.TrimRight(lines.Text(), "\r")
		i := strings.Index(line, "guest: ") // terminal codes of the firmware may stand before it
		if i < 0 {
			continue
		}
		line = line[i:]
		m.mu.Lock()
		m.lines = append(m.lines, line)
		close(m.changed)
		m.changed = make(chan struct{})
		m.mu.Unlock()
		if say != nil {
			say(line)
		}
	}
}

// PID is QEMU's process id.
func (m *Machine) PID() int { return m.cmd.Process.Pid }

// Mark is a place in what the guest says; Expect looks behind it.
func (m *Machine) Mark() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.lines)
}

// Expect waits until the guest has said, after mark, a line that holds text.
func (m *Machine) Expect(ctx context.Context, mark int, text string) error {
	for {
		m.mu.Lock()
		lines, changed := m.lines, m.changed
		m.mu.Unlock()
		for _, l := range lines[mark:] {
			if strings.Contains(l, text) {
				return nil
			}
		}
		select {
		case <-changed:
		case <-m.done:
			return fmt.Errorf("the guest ended and has not said %q; it said %q", text, lines[mark:])
		case <-ctx.Done():
			return fmt.Errorf("the guest has not said %q; it said %q", text, lines[mark:])
		}
	}
}

// Tell sends the guest's init a command: read, eject, off.
func (m *Machine) Tell(command string) error {
	_, err := io.WriteString(m.stdin, command+"\n")
	return err
}

// Kill kills QEMU and waits for its end.
func (m *Machine) Kill() error {
	err := m.cmd.Process.Kill()
	select {
	case <-m.done:
		return nil
	case <-time.After(10 * time.Second):
		return errors.Join(err, errors.New("QEMU does not end"))
	}
}
