// Package qemutest runs real QEMU processes for tests, and plays their guests.
//
// A machine starts in about 50 ms: -S (no guest code runs), software emulation,
// 16 MiB, nothing but what the test asks for. A Guest plays the operating system:
// through QEMU's qtest protocol it sets up the drive's adapter and sends the drive SCSI
// commands, as a driver does, so that a locked door, a guest's eject and what a guest
// reads are deterministic and take milliseconds, on every bus.
//
// The QEMU under test is the first in PATH; $QEMU is its path where it isn't this host's
// (integration/qemu-of sets both). A missing QEMU fails a test; it never skips it.
package qemutest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/qmp"
)

// Drive is a kind of CD drive for a test's machine.
type Drive struct {
	Name string   // for subtests
	Bus  string   // as blockdev names it
	ID   string   // the name that people use for the drive
	Args []string // the machine and its drive; %s is replaced by a disc where HasDisc
	// HasDisc is set when the drive can't be had without a disc on the command line.
	HasDisc bool
}

// The drives that the project promises to change.
var (
	SATA   = Drive{Name: "q35-sata", Bus: "sata", ID: "cd0", Args: []string{"-M", "q35", "-device", "ide-cd,id=cd0,bus=ide.0"}}
	IDE    = Drive{Name: "pc-ide", Bus: "ide", ID: "cd0", Args: []string{"-M", "pc", "-device", "ide-cd,id=cd0,bus=ide.1"}}
	SCSI   = Drive{Name: "virtio-scsi", Bus: "scsi", ID: "cd0", Args: []string{"-M", "q35", "-device", "virtio-scsi-pci,id=scsi0", "-device", "scsi-cd,id=cd0,bus=scsi0.0"}}
	USB    = Drive{Name: "usb-storage", Bus: "usb", ID: "stick", Args: []string{"-M", "q35", "-device", "qemu-xhci,id=xhci", "-drive", "if=none,id=usbdisc,media=cdrom,readonly=on,format=raw,file=%s", "-device", "usb-storage,id=stick,drive=usbdisc"}, HasDisc: true}
	Legacy = Drive{Name: "legacy-cdrom", Bus: "ide", ID: "ide1-cd0", Args: []string{"-M", "pc", "-cdrom", "%s"}, HasDisc: true}
	Drives = []Drive{SATA, IDE, SCSI, USB, Legacy}
)

// With is the command line of the drive's machine, with disc in it where the drive
// needs one.
func (d Drive) With(disc string) []string {
	args := make([]string, len(d.Args))
	for i, a := range d.Args {
		args[i] = strings.ReplaceAll(a, "%s", disc)
	}
	return args
}

// VM is a running QEMU.
type VM struct {
	Socket string // QMP
	QTest  string // qtest
	cmd    *exec.Cmd
	done   chan struct{}
}

// Start starts a machine whose monitor socket is dir/name.qmp, and ends it with the
// test. dir is made by the test; a short one, since a socket's path has 107 bytes.
func Start(t testing.TB, dir, name string, args ...string) *VM {
	t.Helper()
	vm := &VM{Socket: filepath.Join(dir, name+".qmp"), QTest: filepath.Join(dir, name+".qtest"), done: make(chan struct{})}
	all := append([]string{
		"-S", "-accel", "tcg", "-nodefaults", "-display", "none", "-m", "16",
		"-qmp", "unix:" + vm.Socket + ",server=on,wait=off",
		"-qtest", "unix:" + vm.QTest + ",server=on,wait=off", "-qtest-log", "none",
	}, args...)
	vm.cmd = exec.Command(Binary(), all...)
	vm.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var stderr strings.Builder
	vm.cmd.Stderr = &stderr
	started := make(chan error, 1)
	go func() {
		// Pdeathsig is the thread's: the thread that forked must live as long.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := vm.cmd.Start()
		started <- err
		if err == nil {
			_ = vm.cmd.Wait() // killed by the test, as a rule
		}
		close(vm.done)
	}()
	require.NoError(t, <-started, "QEMU must be installed (Debian: qemu-system-x86)")
	t.Cleanup(vm.Kill)
	for end := time.Now().Add(90 * time.Second); ; { // fifty at once in an emulated host
		if _, err := os.Stat(vm.QTest); err == nil {
			if _, err := os.Stat(vm.Socket); err == nil {
				return vm
			}
		}
		select {
		case <-vm.done:
			require.FailNow(t, "QEMU ended", "%v: %s", all, stderr.String())
		case <-time.After(2 * time.Millisecond):
		}
		require.False(t, time.Now().After(end), "QEMU makes no sockets: %s", stderr.String())
	}
}

// PID is the process id of QEMU.
func (v *VM) PID() int { return v.cmd.Process.Pid }

// Kill kills QEMU and waits for its end. Its sockets stay, as after any kill -9.
func (v *VM) Kill() {
	_ = v.cmd.Process.Kill() // it may have ended
	<-v.done
}

// Freeze stops QEMU as stalled storage would; Thaw lets it go on.
func (v *VM) Freeze(t testing.TB) { v.signal(t, syscall.SIGSTOP) }

// Thaw lets a frozen QEMU go on.
func (v *VM) Thaw(t testing.TB) { v.signal(t, syscall.SIGCONT) }

func (v *VM) signal(t testing.TB, s syscall.Signal) {
	t.Helper()
	require.NoError(t, v.cmd.Process.Signal(s))
	if s != syscall.SIGSTOP {
		return
	}
	// The signal has arrived when the kernel says so.
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", v.PID()))
		require.NoError(t, err)
		if i := strings.LastIndexByte(string(b), ')'); strings.HasPrefix(string(b[i+1:]), " T") {
			return
		}
	}
	require.FailNow(t, "QEMU does not stop")
}

// Dial connects to the monitor.
func (v *VM) Dial(t testing.TB) *qmp.Conn {
	t.Helper()
	c, err := qmp.Dial(context.Background(), v.Socket, nil)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

// OpenFiles are the targets of QEMU's descriptors that begin with prefix, for leak
// checks.
func (v *VM) OpenFiles(t testing.TB, prefix string) []string {
	t.Helper()
	return OpenFiles(t, v.PID(), prefix)
}

// OpenFiles are the targets of any process's descriptors that begin with prefix.
func OpenFiles(t testing.TB, pid int, prefix string) []string {
	t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	fds, err := os.ReadDir(dir)
	require.NoError(t, err)
	var open []string
	for _, fd := range fds {
		if target, err := os.Readlink(filepath.Join(dir, fd.Name())); err == nil && strings.HasPrefix(target, prefix) {
			open = append(open, target)
		}
	}
	return open
}
