package peer

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/trayd/trayd/internal/qemutest"
	"github.com/trayd/trayd/internal/wire"
	"github.com/trayd/trayd/qmp"
)

// Libvirt is a libvirtd of this run's own. It is the system's kind (root,
// qemu:///system), since that is what people use, in a mount namespace where its files are
// its own: the host's libvirt is not touched.
type Libvirt struct {
	dir      string
	keeper   *exec.Cmd // keeps the namespace
	release  io.Closer // ends it
	daemon   *exec.Cmd
	client   *python // nil until it is needed
	machines map[string]*Machine
}

// NewLibvirt is a contender whose sockets lie beneath dir, a short path; Boot starts it.
func NewLibvirt(dir string) *Libvirt {
	return &Libvirt{dir: dir, machines: make(map[string]*Machine)}
}

// private hides the host's libvirt from the namespace's. Each directory stays on the
// file system that libvirt would find it on: where the state lies decides what a
// durable write of it costs. /run is in memory wherever systemd runs, and so is libvirt's
// part of it here, where /run may lie on a disk.
const private = `set -e
mkdir -p /run/libvirt
mount -t tmpfs -o mode=755 libvirt /run/libvirt
for dir in /etc/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt; do
	mkdir -p $dir
	own=$(mktemp -d "$(dirname $dir)/trayd-peer.XXXXXX"); echo "$own" >>"$1/dirs"
	mount --bind "$own" $dir
done
grep -q ^libvirt-qemu: /etc/passwd || { # its maintainer script would have made it
	for file in passwd group; do cp /etc/$file "$1/$file"; done
	echo 'libvirt-qemu:x:64055:64055::/nonexistent:/usr/sbin/nologin' >>"$1/passwd"
	echo 'libvirt-qemu:x:64055:' >>"$1/group"
	for file in passwd group; do mount --bind "$1/$file" /etc/$file; done
}
printf 'user = "root"\ngroup = "root"\nstdio_handler = "file"\n' >/etc/libvirt/qemu.conf
printf 'unix_sock_dir = "%s"\nauth_unix_rw = "none"\n' "$1" >/etc/libvirt/libvirtd.conf
echo ready
exec cat`

// Name implements Contender.
func (*Libvirt) Name() string { return "libvirt" }

func (l *Libvirt) socket() string { return filepath.Join(l.dir, "libvirt-sock") }
func (l *Libvirt) uri() string    { return "qemu+unix:///system?socket=" + l.socket() }
func (l *Libvirt) log() string    { return filepath.Join(l.dir, "libvirtd.log") }

// prepare makes the namespace.
func (l *Libvirt) prepare() error {
	if err := os.MkdirAll(filepath.Join(l.dir, "side"), 0o755); err != nil {
		return err
	}
	l.keeper = exec.Command("sh", "-c", private, "libvirt", l.dir)
	l.keeper.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	var errs lastLines
	l.keeper.Stderr = &errs
	in, err := l.keeper.StdinPipe()
	if err != nil {
		return err
	}
	out, err := l.keeper.StdoutPipe()
	if err != nil {
		return err
	}
	if err := l.keeper.Start(); err != nil {
		return fmt.Errorf("a mount namespace for libvirtd: %w (root?)", err)
	}
	l.release = in
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		_ = l.keeper.Wait()
		return fmt.Errorf("directories for libvirtd: %w: %s", err, &errs)
	}
	return nil
}

// Start implements Contender: it ends when libvirtd takes connections. libvirtd answers
// them a while later.
func (l *Libvirt) Start(ctx context.Context) error {
	log, err := os.Create(l.log())
	if err != nil {
		return err
	}
	defer log.Close()
	l.daemon = exec.Command("nsenter", "--mount=/proc/"+strconv.Itoa(l.keeper.Process.Pid)+"/ns/mnt", "--", "libvirtd", "--pid-file", filepath.Join(l.dir, "pid"))
	l.daemon.Stdout, l.daemon.Stderr = log, log
	l.daemon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := l.daemon.Start(); err != nil {
		return fmt.Errorf("libvirtd: %w (Debian: libvirt-daemon, libvirt-daemon-driver-qemu, libvirt-clients)", err)
	}
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for {
		if c, err := net.Dial("unix", l.socket()); err == nil {
			return c.Close()
		}
		select {
		case <-ctx.Done():
			text, _ := os.ReadFile(l.log()) // the context's error says enough
			return fmt.Errorf("libvirtd does not listen: %w: %s", ctx.Err(), text)
		case <-time.After(time.Millisecond):
		}
	}
}

// Kill implements Contender.
func (l *Libvirt) Kill() {
	if l.daemon == nil || l.daemon.ProcessState != nil {
		return
	}
	_ = l.daemon.Process.Kill() // it may have ended
	_ = l.daemon.Wait()
	if l.client != nil {
		_, _ = l.client.do(context.Background(), pythonRequest{Do: "forget"}) // connections to nobody
	}
}

// PID implements Contender.
func (l *Libvirt) PID() int {
	if l.daemon == nil {
		return 0
	}
	return l.daemon.Process.Pid
}

func (l *Libvirt) virsh(ctx context.Context, args ...string) error {
	_, err := run(ctx, noAutostart(), "virsh", append([]string{"-q", "-c", l.uri()}, args...)...)
	return err
}

// noAutostart keeps libvirt's clients from starting a libvirtd of their own when there is
// none.
func noAutostart() []string { return append(os.Environ(), "LIBVIRT_AUTOSTART=0") }

// definition is a machine like those of the others; what libvirt adds by itself and the
// others don't have is taken out.
const definition = `<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><name>%s</name><memory unit='MiB'>16</memory>
<os><type arch='x86_64' machine='q35'>hvm</type></os>
<devices><emulator>%s</emulator>
<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><target dev='sda' bus='sata'/><readonly/></disk>
<controller type='usb' model='none'/><memballoon model='none'/>
</devices>
<qemu:commandline>%s</qemu:commandline></domain>`

// atOnce is how many machines libvirtd is asked to start, or to end, at once.
const atOnce = 4

// Boot implements Contender. The first one starts libvirtd.
func (l *Libvirt) Boot(ctx context.Context, names ...string) error {
	if l.keeper == nil {
		if err := l.prepare(); err != nil {
			return err
		}
		if err := l.Start(ctx); err != nil {
			return err
		}
	}
	var all sync.WaitGroup
	errs := make(chan error, len(names))
	turns := make(chan struct{}, atOnce) // its room is the number of those that start
	for _, name := range names {
		if m := l.machines[name]; m != nil {
			_ = l.virsh(ctx, "destroy", name) // it may have ended
			m.Kill()
		}
		m := &Machine{Name: name}
		m.look(filepath.Join(l.dir, "side"))
		l.machines[name] = m
		all.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			if err := l.boot(ctx, m); err != nil {
				errs <- err
			}
		})
	}
	all.Wait()
	if l.client != nil {
		_, _ = l.client.do(ctx, pythonRequest{Do: "forget"}) // machines of before
	}
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}

func (l *Libvirt) boot(ctx context.Context, m *Machine) error {
	qemu, err := exec.LookPath(qemutest.Binary())
	if err != nil {
		return err
	}
	var args strings.Builder
	idle, err := idleArgs(filepath.Join(l.dir, "side"))
	if err != nil {
		return err
	}
	for _, a := range append(m.lookArgs(), idle...) {
		fmt.Fprintf(&args, "<qemu:arg value='%s'/>", a)
	}
	xml := filepath.Join(l.dir, m.Name+".xml")
	if err := os.WriteFile(xml, fmt.Appendf(nil, definition, m.Name, qemu, &args), 0o644); err != nil {
		return err
	}
	// A machine that was killed a moment ago may not be forgotten yet.
	if err := until(ctx, "libvirt to start "+m.Name, func() (bool, error) {
		err := l.virsh(ctx, "create", xml)
		return err == nil, err
	}); err != nil {
		return err
	}
	conn, err := qmp.Dial(ctx, m.Side, nil)
	if err != nil {
		return err
	}
	m.pid = conn.Peer().PID
	return conn.Close()
}

// Machine implements Contender.
func (l *Libvirt) Machine(name string) *Machine { return l.machines[name] }

// Command implements Contender: `virsh change-media`.
func (l *Libvirt) Command() Ask {
	how := map[string]string{wire.Insert: "--insert", wire.Replace: "--update", wire.Eject: "--eject"}
	return func(ctx context.Context, verb, vm, disc string) error {
		args := []string{"change-media", vm, "sda"}
		if disc != "" {
			args = append(args, disc)
		}
		return l.virsh(ctx, append(args, "--live", how[verb])...)
	}
}

// Persistent implements Contender: virDomainUpdateDeviceFlags over a connection that
// stays, of a Python program with a connection for each machine. What is measured has the
// pipe to that program in it, see Pipe.
func (l *Libvirt) Persistent() Ask {
	return func(ctx context.Context, _, vm, disc string) error {
		_, err := l.python(ctx, pythonRequest{Do: "change", VM: vm, Disc: &disc})
		return err
	}
}

// Pipe is an exchange with the Python program that has it do nothing.
func (l *Libvirt) Pipe(ctx context.Context) error {
	_, err := l.python(ctx, pythonRequest{Do: "nothing"})
	return err
}

// Says implements Contender, by virDomainGetXMLDesc.
func (l *Libvirt) Says(ctx context.Context) (map[string]Status, error) {
	return l.python(ctx, pythonRequest{Do: "says"})
}

// python asks the Python program, which the first request starts.
func (l *Libvirt) python(ctx context.Context, r pythonRequest) (map[string]Status, error) {
	if l.client == nil {
		client, err := startPython(l.uri())
		if err != nil {
			return nil, err
		}
		l.client = client
	}
	return l.client.do(ctx, r)
}

// Left implements Contender: libvirt has no check of that kind.
func (*Libvirt) Left(context.Context) ([]string, error) { return nil, nil }

// Close implements Contender.
func (l *Libvirt) Close() {
	var all sync.WaitGroup
	turns := make(chan struct{}, atOnce) // its room is the number of those that are ended
	for name, m := range l.machines {
		all.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			_ = l.virsh(context.Background(), "destroy", name) // it may have ended, and libvirtd too
			m.Kill()
		})
	}
	all.Wait()
	if l.client != nil {
		l.client.close()
		l.client = nil
	}
	l.Kill()
	if l.release != nil {
		_ = l.release.Close()
		_ = l.keeper.Wait()
	}
	dirs, _ := os.ReadFile(filepath.Join(l.dir, "dirs")) // none were made
	for dir := range strings.Lines(string(dirs)) {
		_ = os.RemoveAll(strings.TrimSpace(dir))
	}
}
