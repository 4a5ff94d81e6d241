package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/trayd/trayd/internal/qemutest"
)

// libvirt is a libvirtd of this run's own, with one machine like ours.
type libvirt struct {
	env    []string
	daemon *exec.Cmd
}

func (b *bench) startLibvirt(ctx context.Context) (*libvirt, error) {
	dir := filepath.Join(b.dir, "libvirt")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	v := &libvirt{env: append(os.Environ(), "XDG_RUNTIME_DIR="+dir, "XDG_CONFIG_HOME="+dir, "XDG_CACHE_HOME="+dir, "HOME="+dir)}
	v.daemon = exec.CommandContext(ctx, "libvirtd", "--pid-file", filepath.Join(dir, "pid"))
	v.daemon.Env = v.env
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
	var last error
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
		if last = v.virsh("create", xml, "--paused"); last == nil {
			return v, nil
		}
	}
	return nil, last
}

func (v *libvirt) virsh(args ...string) error {
	cmd := exec.Command("virsh", append([]string{"-q", "-c", "qemu:///session"}, args...)...)
	cmd.Env = v.env
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
