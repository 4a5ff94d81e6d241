package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/trayd/trayd/internal/qemutest"
)

// libvirt is a libvirtd of this run's own, with one machine like ours. It runs as
// nobody, in its session mode: root's would be the host's, with its sockets and
// configuration.
type libvirt struct {
	env    []string
	daemon *exec.Cmd
}

const nobody = 65534

func asNobody() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}, Pdeathsig: syscall.SIGKILL}
}

func (b *bench) startLibvirt(ctx context.Context) (*libvirt, error) {
	dir := filepath.Join(b.dir, "libvirt")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := errors.Join(os.Chown(dir, nobody, nobody), os.Chmod(b.dir, 0o755)); err != nil {
		return nil, err
	}
	v := &libvirt{env: append(os.Environ(), "XDG_RUNTIME_DIR="+dir, "XDG_CONFIG_HOME="+dir, "XDG_CACHE_HOME="+dir, "HOME="+dir)}
	v.daemon = exec.CommandContext(ctx, "libvirtd", "--pid-file", filepath.Join(dir, "pid"))
	log, err := os.Create(filepath.Join(b.dir, "libvirtd.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	v.daemon.Stdout, v.daemon.Stderr = log, log
	v.daemon.Env, v.daemon.SysProcAttr = v.env, asNobody()
	if err := v.daemon.Start(); err != nil {
		return nil, fmt.Errorf("%w (Debian: libvirt-daemon, libvirt-daemon-driver-qemu, libvirt-clients)", err)
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
		if c, err := net.Dial("unix", filepath.Join(dir, "libvirt/libvirt-sock")); err == nil {
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
	cmd := exec.Command("virsh", append([]string{"-q", "-c", "qemu:///session"}, args...)...)
	cmd.Env, cmd.SysProcAttr = v.env, asNobody()
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
}
