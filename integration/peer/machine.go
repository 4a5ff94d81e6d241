package peer

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/trayd/trayd/internal/qemutest"
)

// bootLimit is how long a QEMU may take to listen, a hundred of them at once included.
const bootLimit = 60 * time.Second

// Machine is a QEMU with one CD drive.
type Machine struct {
	Name    string
	Monitor string    // the socket that the contender has
	Side    string    // a monitor for those who look; "" without
	QTest   string    // for a qemutest.Guest; "" without
	cmd     *exec.Cmd // nil where libvirt has started it
	pid     int
}

// Boot starts a machine whose monitor is dir/name.qmp; sockets for those who look lie in
// side, which may be "". args are more of QEMU's arguments. It doesn't wait: see Await.
func Boot(dir, side, name string, args ...string) (*Machine, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	m := &Machine{Name: name, Monitor: filepath.Join(dir, name+".qmp")}
	all := []string{"-accel", "tcg", "-nodefaults", "-display", "none", "-m", "16", "-M", "q35",
		"-device", "ide-cd,id=" + driveID + ",bus=ide.0", "-qmp", "unix:" + m.Monitor + ",server=on,wait=off"}
	if side != "" {
		if err := os.MkdirAll(side, 0o755); err != nil {
			return nil, err
		}
		m.look(side)
		all = append(all, m.lookArgs()...)
	}
	m.cmd = exec.Command(qemutest.Binary(), append(all, args...)...)
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := m.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w (Debian: qemu-system-x86)", qemutest.Binary(), err)
	}
	m.pid = m.cmd.Process.Pid
	return m, nil
}

// PID is QEMU's process id; 0 when it was killed.
func (m *Machine) PID() int { return m.pid }

// driveID is the drive's id where we choose it.
const driveID = "cd0"

// look names the sockets of those who look.
func (m *Machine) look(dir string) {
	m.Side, m.QTest = filepath.Join(dir, m.Name+".side"), filepath.Join(dir, m.Name+".qtest")
}

func (m *Machine) lookArgs() []string {
	return []string{"-qmp", "unix:" + m.Side + ",server=on,wait=off", "-qtest", "unix:" + m.QTest + ",server=on,wait=off", "-qtest-log", "none"}
}

// Await waits until QEMU listens on the contender's monitor.
func (m *Machine) Await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	for {
		c, err := net.Dial("unix", m.Monitor)
		if err == nil {
			return c.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("QEMU does not listen on %s: %w", m.Monitor, err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Kill kills the machine, as kill -9 does, and waits for its end. Its sockets stay.
// A machine is killed once: what has its process id later isn't touched.
func (m *Machine) Kill() {
	if m.pid == 0 {
		return
	}
	if m.cmd != nil {
		_ = m.cmd.Process.Kill() // it may have ended
		_ = m.cmd.Wait()
		m.pid = 0
		return
	}
	_ = syscall.Kill(m.pid, syscall.SIGKILL)
	for end := time.Now().Add(startLimit); alive(m.pid) && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	m.pid = 0
}

// alive is false for a process that has ended, reaped or not.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, after, _ := strings.Cut(string(stat), ") ")
	return err == nil && !strings.HasPrefix(after, "Z")
}

// idleArgs are of a machine that runs and whose processor halts at its first instruction.
// One that is stopped (-S) keeps, up to QEMU 8.2, descriptors that were taken back.
func idleArgs(dir string) ([]string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	return qemutest.WriteIdle(dir)
}

// fleet is the machines of a contender that doesn't start them itself.
type fleet struct {
	dir, side string
	machines  map[string]*Machine
}

func newFleet(dir string) fleet {
	return fleet{filepath.Join(dir, "run"), filepath.Join(dir, "side"), make(map[string]*Machine)}
}

// boot starts machines, and in place of those that there are of that name.
func (f fleet) boot(ctx context.Context, names ...string) error {
	idle, err := idleArgs(f.side)
	if err != nil {
		return err
	}
	for _, name := range names {
		if m := f.machines[name]; m != nil {
			m.Kill()
			delete(f.machines, name)
		}
		m, err := Boot(f.dir, f.side, name, idle...)
		if err != nil {
			return err
		}
		f.machines[name] = m
	}
	for _, name := range names {
		if err := f.machines[name].Await(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Machine is one that was booted.
func (f fleet) Machine(name string) *Machine { return f.machines[name] }

func (f fleet) close() {
	for name, m := range f.machines {
		m.Kill()
		delete(f.machines, name)
	}
}
