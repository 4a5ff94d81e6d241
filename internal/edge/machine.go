package edge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/trayd/trayd/internal/edge/remote"
	"github.com/trayd/trayd/internal/guest"
	"github.com/trayd/trayd/qmp"
)

// Disks are the host's disks for tests, empty and of DiskSize each. /dev/vda is the
// root.
var Disks = []string{"/dev/vdb", "/dev/vdc"}

// DiskSize is the size of each of Disks in bytes. Only what is written takes room.
const DiskSize = 1 << 30

// Machine is an edge host. Its methods may be called concurrently, but for Crash, Boot
// and Close.
type Machine struct {
	kit *Kit
	dir string // its disks, sockets and console

	*remote.Client // runs commands in it; made anew by each boot
	conn           net.Conn
	cmd            *exec.Cmd
	done           chan struct{} // closed when QEMU has ended
	stderr         words
}

// Start restores a host in dir, which is its own and empty. It runs until Close.
func (k *Kit) Start(ctx context.Context, dir string) (*Machine, error) {
	m := &Machine{kit: k, dir: dir}
	if err := m.createDisks(filepath.Join(k.saved, "root.qcow2"), "qcow2"); err != nil {
		return nil, err
	}
	// The shell that QEMU runs this with has no more to do than to become cat.
	state := filepath.Join(k.saved, "state")
	if err := m.start(ctx, "-incoming", "exec:exec cat '"+state+"'"); err != nil {
		return nil, errors.Join(fmt.Errorf("restore the edge host: %w", err), m.Close())
	}
	return m, nil
}

// createDisks makes the root an overlay of another image, and empty disks.
func (m *Machine) createDisks(root, format string) error {
	out, err := exec.Command(ground("qemu-img"), "create", "-q", "-f", "qcow2", "-b", root, "-F", format, m.disk(0)).CombinedOutput()
	if err != nil {
		return fmt.Errorf("qemu-img create: %w\n%s", err, out)
	}
	for i := range Disks {
		f, err := os.OpenFile(m.disk(i+1), os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o644)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Truncate(DiskSize), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// disk is the file of a disk; 0 is the root.
func (m *Machine) disk(n int) string {
	if n == 0 {
		return filepath.Join(m.dir, "root.qcow2")
	}
	return filepath.Join(m.dir, fmt.Sprintf("disk%d.raw", n))
}

func (m *Machine) socket(name string) string { return filepath.Join(m.dir, name+".sock") }

// memory is how much a host has, in MiB: $TRAYD_EDGE_MEMORY, or what all tests but a large soak
// do with. One of each size is saved.
func memory() string { return cmp.Or(os.Getenv("TRAYD_EDGE_MEMORY"), "2048") }

// command is QEMU's command line.
func (m *Machine) command() []string {
	args := []string{
		ground(qemu), "-M", "q35", "-cpu", "max", "-accel", "tcg,thread=multi", "-smp", "2", "-m", memory(),
		"-nodefaults", "-display", "none", "-no-reboot",
		"-kernel", m.kit.kernel, "-initrd", m.kit.initramfs, "-append", guest.KernelOptions + " panic=-1",
		"-chardev", "file,id=console,append=on,path=" + filepath.Join(m.dir, "console"), "-serial", "chardev:console",
		"-device", "virtio-serial-pci", "-chardev", "socket,id=edge,server=on,wait=off,path=" + m.socket("edge"),
		"-device", "virtserialport,chardev=edge,name=edge",
		"-qmp", "unix:" + m.socket("qmp") + ",server=on,wait=off",
	}
	for i := range len(Disks) + 1 {
		format := "raw"
		if i == 0 {
			format = "qcow2"
		}
		// cache=unsafe spares this host the fsyncs. What the guest has flushed is in
		// this host's page cache, and that survives QEMU's end, which is all that
		// Crash is.
		args = append(args,
			"-drive", fmt.Sprintf("if=none,id=disk%d,format=%s,cache=unsafe,discard=unmap,file=%s", i, format, m.disk(i)),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=disk%d,serial=disk%d", i, i))
	}
	return args
}

// start starts QEMU and waits until commands can be run.
func (m *Machine) start(ctx context.Context, args ...string) error {
	for _, left := range []string{"edge", "qmp"} { // by a QEMU that was killed
		if err := os.Remove(m.socket(left)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	command := append(m.command(), args...)
	cmd := exec.Command(command[0], command[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	m.stderr.reset()
	cmd.Stderr = &m.stderr
	done, started := make(chan struct{}), make(chan error, 1)
	go func() {
		// The parent-death signal follows the thread that forked.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(done)
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // killed, as a rule
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	m.cmd, m.done = cmd, done
	ctx, cancel := context.WithTimeout(ctx, bootTime)
	defer cancel()
	if err := m.connect(ctx); err != nil {
		return fmt.Errorf("%w\nQEMU: %s\nconsole: %s", err, m.stderr.String(), m.Console())
	}
	return nil
}

// connect connects to the agent in the host. The first command is answered when it has
// come up; the clock of a restored host is that of its saving.
func (m *Machine) connect(ctx context.Context) error {
	for {
		conn, err := net.Dial("unix", m.socket("edge"))
		if err == nil {
			m.conn, m.Client = conn, remote.NewClient(conn)
			break
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-m.done:
			return errors.New("QEMU has ended")
		case <-ctx.Done():
			return fmt.Errorf("QEMU does not listen: %w", err)
		}
	}
	if _, err := m.Output(ctx, "date", "--set", fmt.Sprintf("@%.3f", float64(time.Now().UnixMilli())/1000)); err != nil {
		return fmt.Errorf("the host's agent does not answer: %w", err)
	}
	return nil
}

// Boot boots a host that has crashed or was powered off, on the disks that it had, and
// waits until systemd says that it runs.
func (m *Machine) Boot(ctx context.Context) error {
	if err := m.start(ctx); err != nil {
		return fmt.Errorf("boot the edge host: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, bootTime)
	defer cancel()
	state, err := m.Output(ctx, "systemctl", "is-system-running", "--wait")
	if err != nil {
		failed, _ := m.Output(ctx, "systemctl", "--failed", "--no-legend", "--plain") // as much as there is to say
		return fmt.Errorf("boot the edge host: systemd is %s: %w\n%s", strings.TrimSpace(state), err, failed)
	}
	return nil
}

// Crash is a loss of power: what the host has not flushed to its disks is lost, which
// may be a file that was put there a moment ago (sync).
func (m *Machine) Crash() error {
	if m.cmd == nil {
		return errors.New("the edge host isn't running")
	}
	err := m.cmd.Process.Kill()
	select {
	case <-m.done:
		err = nil // it may have ended by itself
	case <-time.After(10 * time.Second):
		return errors.Join(err, errors.New("QEMU does not end"))
	}
	if m.conn != nil {
		err = m.conn.Close()
	}
	m.cmd, m.conn, m.Client = nil, nil, nil
	return err
}

// Close ends the host. Its disks stay.
func (m *Machine) Close() error {
	if m.cmd == nil {
		return nil
	}
	return m.Crash()
}

// Put writes a file in the host, and the folders that lead to it.
func (m *Machine) Put(ctx context.Context, path string, content io.Reader, mode os.FileMode) error {
	const script = `mkdir -p "$(dirname "$1")" && cat >"$1.new" && chmod "$2" "$1.new" && mv "$1.new" "$1"`
	return m.feed(ctx, content, "sh", "-c", script, "put", path, fmt.Sprintf("%o", mode.Perm()))
}

// PutTree copies what is in a folder here into a folder there, as root's.
func (m *Machine) PutTree(ctx context.Context, from, to string) error {
	pack := exec.CommandContext(ctx, "tar", "-c", "-C", from, "--owner=0", "--group=0", ".")
	packed, err := pack.StdoutPipe()
	if err != nil {
		return err
	}
	if err := pack.Start(); err != nil {
		return err
	}
	err = m.feed(ctx, packed, "sh", "-c", `mkdir -p "$1" && tar -x --no-overwrite-dir -C "$1"`, "put", to)
	if failed := pack.Wait(); failed != nil {
		err = errors.Join(err, fmt.Errorf("tar -C %s: %w", from, failed))
	}
	return err
}

// feed runs a command with an input.
func (m *Machine) feed(ctx context.Context, input io.Reader, args ...string) error {
	var complaint strings.Builder
	code, err := m.Run(ctx, &remote.Command{Args: args, Stdin: input, Stderr: &complaint})
	if err == nil && code != 0 {
		err = fmt.Errorf("%q: exit code %d: %s", args, code, complaint.String())
	}
	return err
}

// Console is what the kernel and systemd wrote to the host's console.
func (m *Machine) Console() string {
	b, err := os.ReadFile(filepath.Join(m.dir, "console"))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// warmUp is run before a host is saved: what every test runs is in its page cache then.
const warmUp = `
lvm version; dmsetup targets; veritysetup --version; qemu-img --version; losetup --all
qemu-system-x86_64 -S -accel tcg -nodefaults -display none -m 16 -device ide-cd -daemonize -pidfile /run/warm.pid
kill $(cat /run/warm.pid)
modprobe -a dm-mod loop isofs udf
journalctl --rotate --vacuum-size=1; sync
`

// save boots a host in dir and leaves it there: its disk, and the machine's state.
func (k *Kit) save(ctx context.Context, dir string) error {
	// The backing file's name is looked up beside the overlay's.
	m := &Machine{kit: k, dir: dir}
	if err := m.createDisks(filepath.Join("..", filepath.Base(k.image)), "raw"); err != nil {
		return err
	}
	defer m.Close()
	if err := m.Boot(ctx); err != nil {
		return err
	}
	if _, err := m.Output(ctx, "sh", "-c", warmUp); err != nil {
		return err
	}
	if err := m.conn.Close(); err != nil {
		return err
	}
	m.conn = nil
	if err := m.migrate(ctx, filepath.Join(dir, "state")); err != nil {
		return fmt.Errorf("save the machine: %w", err)
	}
	if err := m.Crash(); err != nil {
		return err
	}
	left := []string{m.socket("edge"), m.socket("qmp"), filepath.Join(dir, "console")}
	for i := range Disks {
		left = append(left, m.disk(i+1))
	}
	for _, path := range left {
		if err := os.Remove(path); err != nil {
			return err
		}
	}
	return nil
}

// migrate writes the machine's state to a file. QEMU stops at its end.
func (m *Machine) migrate(ctx context.Context, path string) error {
	conn, err := qmp.Dial(ctx, m.socket("qmp"), nil)
	if err != nil {
		return err
	}
	defer conn.Close()
	// In one go, however long that takes.
	limits := map[string]any{"max-bandwidth": int64(10 << 30), "downtime-limit": 60_000}
	if err := conn.Execute(ctx, "migrate-set-parameters", limits, nil); err != nil {
		return err
	}
	if err := conn.Execute(ctx, "migrate", map[string]any{"uri": "exec:cat >'" + path + "'"}, nil); err != nil {
		return err
	}
	for {
		var is struct {
			Status string `json:"status"`
			Error  string `json:"error-desc"`
		}
		if err := conn.Execute(ctx, "query-migrate", nil, &is); err != nil {
			return err
		}
		switch is.Status {
		case "completed":
			return nil
		case "failed", "cancelled":
			return fmt.Errorf("migration %s: %s", is.Status, is.Error)
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// words collects what QEMU says.
type words struct {
	mu  sync.Mutex // guards buf
	buf strings.Builder
}

func (w *words) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.Write(b)
}

func (w *words) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}

func (w *words) reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf.Reset()
}
