package machine

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/trayd/trayd/internal/machine/launch"
	"github.com/trayd/trayd/internal/wire"
)

// The sockets in a machine's runtime directory.
const (
	// MonitorSocket is trayd's.
	MonitorSocket = "qmp"
	// OperatorSocket is a second QMP monitor, for whoever runs the host.
	OperatorSocket = "operator"
	// PowerSocket is a third one, by which the service manager powers the machine off.
	PowerSocket = "power"
	// VNCSocket, SerialSocket and AgentSocket are the screen, the serial console and QEMU's
	// guest agent.
	VNCSocket    = "vnc"
	SerialSocket = "serial"
	AgentSocket  = "agent"
)

// builder collects a Command.
type builder struct {
	c      launch.Command
	d      *Definition
	dir    string
	order  map[string]int // boot indices
	shared *bus
}

// Build is QEMU's command line for a machine: as little as it needs. The machine is made
// paused with all CD drives empty, and trayd puts the discs in before it lets it run. dir
// is the machine's directory, runDir where QEMU makes its sockets.
func Build(d *Definition, h *Host, dir, runDir string) (*launch.Command, error) {
	b := &builder{d: d, dir: dir, order: bootOrder(d)}
	b.c.Path, b.c.RunDir = h.QEMU, runDir
	b.machine(h)
	if err := b.firmware(h); err != nil {
		return nil, err
	}
	b.monitors()
	b.consoles()
	b.disks()
	b.drives()
	b.networks()
	for i := range b.c.Files { // before the devices that name them; QEMU reads -add-fd first wherever it stands
		b.add("-add-fd", fmt.Sprintf("fd=%d,set=%d", b.c.FD(i), i+1))
	}
	return &b.c, nil
}

func (b *builder) add(args ...string) { b.c.Args = append(b.c.Args, args...) }

func (b *builder) device(format string, args ...any) { b.add("-device", fmt.Sprintf(format, args...)) }

// file has a file opened, and returns the name by which QEMU finds it.
func (b *builder) file(path string, mode launch.FileMode) string {
	b.c.Files = append(b.c.Files, launch.File{Path: path, Mode: mode})
	return "/dev/fdset/" + strconv.Itoa(len(b.c.Files))
}

func (b *builder) socket(name string) string { return filepath.Join(b.c.RunDir, name) }

// comma doubles commas, as QEMU's option parser wants (qemu(1), -drive file=).
func comma(s string) string { return strings.ReplaceAll(s, ",", ",,") }

func (b *builder) machine(h *Host) {
	d := b.d
	accel, cpu := "tcg", "max"
	if h.KVM {
		accel, cpu = "kvm", "host"
	}
	typ := d.Machine
	if d.Firmware == wire.FirmwareUEFI {
		typ += ",pflash0=code,pflash1=vars"
	}
	b.add("-name", "guest="+d.Name, "-uuid", d.UUID,
		"-machine", typ+",dump-guest-core=off", "-accel", accel, "-cpu", cpu,
		"-smp", strconv.Itoa(d.CPUs), "-m", "size="+strconv.FormatInt(int64(d.Memory)>>20, 10)+"M",
		"-nodefaults", "-no-user-config", "-display", "none", "-S",
		"-rtc", "base=utc", "-boot", "menu=off,strict=on",
		// No program may be started, no privilege gained: whatever a guest makes of QEMU.
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
}

// firmware of UEFI is two flash chips: the code, and the machine's own variables.
func (b *builder) firmware(h *Host) error {
	if b.d.Firmware != wire.FirmwareUEFI {
		return nil
	}
	fw, err := h.UEFI(b.d.Machine)
	if err != nil {
		return err
	}
	b.blockdev(map[string]any{"driver": "raw", "node-name": "code", "read-only": true,
		"file": map[string]any{"driver": "file", "filename": b.file(fw.Code, launch.Read), "read-only": true}})
	b.blockdev(map[string]any{"driver": "raw", "node-name": "vars",
		"file": map[string]any{"driver": "file", "filename": b.file(filepath.Join(b.dir, VarsFile), launch.ReadWrite)}})
	return nil
}

func (b *builder) blockdev(node map[string]any) {
	text, _ := json.Marshal(node) // strings, booleans and maps of them always can be
	b.add("-blockdev", string(text))
}

func (b *builder) monitors() {
	for _, name := range []string{MonitorSocket, OperatorSocket, PowerSocket} {
		b.add("-chardev", fmt.Sprintf("socket,id=%s,path=%s,server=on,wait=off", name, comma(b.socket(name))),
			"-mon", "chardev="+name+",mode=control")
	}
}

func (b *builder) consoles() {
	d := b.d
	b.device("qemu-xhci,id=usb")
	if d.VNC {
		b.device("VGA,id=video")
		b.device("usb-tablet,id=tablet,bus=usb.0") // a pointer that is where the viewer's is
		b.device("usb-kbd,bus=usb.0")
		b.add("-vnc", "unix:"+comma(b.socket(VNCSocket)))
	}
	if d.Serial {
		b.add("-chardev", fmt.Sprintf("socket,id=serial0,path=%s,server=on,wait=off,logfile=%s,logappend=on",
			comma(b.socket(SerialSocket)), b.file(filepath.Join(b.dir, SerialLog), launch.Append)))
		b.device("isa-serial,chardev=serial0")
	}
	if d.GuestAgent {
		b.add("-chardev", "socket,id=agent,path="+comma(b.socket(AgentSocket))+",server=on,wait=off")
		b.device("virtio-serial-pci,id=channel")
		b.device("virtserialport,bus=channel.0,chardev=agent,name=org.qemu.guest_agent.0")
	}
	b.add("-object", "rng-builtin,id=rng")
	b.device("virtio-rng-pci,rng=rng")
}

func (b *builder) networks() {
	for i, n := range b.d.Networks {
		id := "net" + strconv.Itoa(i)
		switch n.Type {
		case wire.NetworkUser:
			b.add("-netdev", "user,id="+id)
		case wire.NetworkBridge:
			// The files are all known by now: those of taps follow.
			b.add("-netdev", fmt.Sprintf("tap,id=%s,fd=%d", id, b.c.TapFD(len(b.c.Taps))))
			b.c.Taps = append(b.c.Taps, launch.Tap{Bridge: n.Bridge})
		case wire.NetworkTap:
			b.add("-netdev", fmt.Sprintf("tap,id=%s,fd=%d", id, b.c.TapFD(len(b.c.Taps))))
			b.c.Taps = append(b.c.Taps, launch.Tap{Name: n.Tap})
		}
		model := n.Model
		if model == "virtio" {
			model = "virtio-net-pci"
		}
		b.device("%s,netdev=%s,mac=%s", model, id, n.MAC)
	}
}
