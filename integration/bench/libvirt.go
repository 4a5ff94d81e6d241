package main

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

// libvirt is a libvirtd of this run's own, with one machine like ours. It is the
// system's kind (root, qemu:///system), since that is what people use, in a mount
// namespace where its files are its own: the host's libvirt is not touched.
type libvirt struct {
	socket string
	daemon *exec.Cmd
}

// private hides the host's libvirt from the namespace's. Each directory stays on the
// file system that libvirt would find it on: where the state lies decides what a
// durable write of it costs.
const private = `set -e
for dir in /etc/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt /run/libvirt; do
	mkdir -p $dir
	own=$(mktemp -d "$(dirname $dir)/trayd-bench.XXXXXX"); echo "$own" >>"$1/dirs"
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
exec libvirtd --pid-file "$1/pid"`

func (b *bench) startLibvirt(ctx context.Context) (*libvirt, error) {
	dir := filepath.Join(b.dir, "libvirt")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	v := &libvirt{socket: filepath.Join(dir, "libvirt-sock")}
	v.daemon = exec.CommandContext(ctx, "sh", "-c", private, "libvirtd", dir)
	log, err := os.Create(filepath.Join(b.dir, "libvirtd.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	v.daemon.Stdout, v.daemon.Stderr = log, log
	v.daemon.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := v.daemon.Start(); err != nil {
		return nil, fmt.Errorf("%w (root? Debian: libvirt-daemon, libvirt-daemon-driver-qemu, libvirt-clients)", err)
	}
	b.atEnd(v.stop)
	qemu, err := exec.LookPath(qemutest.Binary())
	if err != nil {
		return nil, err
	}
	xml := filepath.Join(dir, "vm.xml")
	if err := os.WriteFile(xml, fmt.Appendf(nil, `<domain type='qemu'><name>bench</name><memory unit='MiB'>16</memory>
<os><type arch='x86_64' machine='q35'>hvm</type></os>
<devices><emulator>%s</emulator>
<disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='%s'/><target dev='sda' bus='sata'/><readonly/></disk>
</devices></domain>`, qemu, b.discs[0]), 0o644); err != nil {
		return nil, err
	}
	// virsh starts a libvirtd of its own when there is none yet: wait for ours.
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if c, err := net.Dial("unix", v.socket); err == nil {
			c.Close()
			return v, v.virsh("create", xml, "--paused")
		}
		if time.Now().After(end) {
			text, _ := os.ReadFile(log.Name())
			return nil, fmt.Errorf("libvirtd does not listen: %s", text)
		}
	}
}

func (v *libvirt) virsh(args ...string) error {
	cmd := exec.Command("virsh", append([]string{"-q", "-c", "qemu+unix:///system?socket=" + v.socket}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("virsh: %w: %s", err, out)
	}
	return nil
}

func (v *libvirt) change(disc string) error {
	return v.virsh("change-media", "bench", "sda", disc, "--live", "--update")
}

func (v *libvirt) stop() {
	if v.daemon.ProcessState == nil {
		_ = v.virsh("destroy", "bench") // it may not run
		_ = v.daemon.Process.Kill()
		_ = v.daemon.Wait()
	}
	dirs, _ := os.ReadFile(filepath.Join(filepath.Dir(v.socket), "dirs")) // none were made
	for dir := range strings.Lines(string(dirs)) {
		_ = os.RemoveAll(strings.TrimSpace(dir))
	}
}
