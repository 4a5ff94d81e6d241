package doctor

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/internal/machine"
)

// oldestQEMU is the first that trayd works with.
var oldestQEMU = [2]int{4, 2}

// qemu looks for the programs that machines of trayd's own need; those of others bring theirs.
func (d *Doctor) qemu(ctx context.Context) []Check {
	m := d.o.Config().Machines
	var all []Check
	host, err := machine.FindHost(m.QEMU, m.Accel)
	if err != nil {
		all = append(all, warning("qemu", "program", "install it (Debian: apt-get install qemu-system-x86), or set machines.qemu; machines that others run need nothing of it",
			"%v: trayd can't run machines itself", err))
	} else {
		text, err := firstLine(ctx, host.QEMU, "--version")
		all = append(all, judgeQEMU(host.QEMU, text, err), judgeAccel(m.Accel, host.KVM))
		if _, err := host.UEFI("q35"); err != nil {
			all = append(all, warning("qemu", "firmware", "install it (Debian: apt-get install ovmf), or use --firmware bios", "%v", err))
		} else {
			all = append(all, ok("qemu", "firmware", "UEFI for q35 is there"))
		}
	}
	if path, err := exec.LookPath(m.QemuImg); err != nil {
		all = append(all, warning("qemu", "qemu-img", "install it (Debian: apt-get install qemu-utils)", "qemu-img (%s) is not there: disks can't be made, captured or checked", m.QemuImg))
	} else {
		all = append(all, ok("qemu", "qemu-img", "%s", path))
	}
	return all
}

// firstLine is what a program says first.
func firstLine(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	cmd.WaitDelay = limit / 4
	out, err := cmd.CombinedOutput()
	line, _, _ := bytes.Cut(out, []byte("\n"))
	return strings.TrimSpace(string(line)), err
}

func judgeQEMU(path, text string, err error) Check {
	if err != nil {
		return failed("qemu", "program", "see what it says: `"+path+" --version`", "%s can't be run: %v: %s", path, err, text)
	}
	var major, minor int
	if _, e := fmt.Sscanf(strings.TrimPrefix(text, "QEMU emulator version "), "%d.%d", &major, &minor); e != nil {
		return warning("qemu", "program", "is machines.qemu a QEMU?", "%s says %q, which is no version of QEMU", path, text)
	}
	if major < oldestQEMU[0] || major == oldestQEMU[0] && minor < oldestQEMU[1] {
		return failed("qemu", "program", "use QEMU 4.2 or later", "%s is version %d.%d", path, major, minor)
	}
	return ok("qemu", "program", "%s, version %d.%d", path, major, minor)
}

func judgeAccel(accel string, kvm bool) Check {
	switch {
	case kvm && accel == "kvm":
		if _, err := os.Stat("/dev/kvm"); err != nil {
			return failed("qemu", "acceleration", `load the module (modprobe kvm_intel or kvm_amd), or set machines.accel = "auto"`, "machines.accel is kvm, and there is no /dev/kvm")
		}
		return ok("qemu", "acceleration", "KVM, as configured")
	case kvm:
		return ok("qemu", "acceleration", "KVM")
	case accel == "tcg":
		return ok("qemu", "acceleration", "emulation, as configured")
	}
	return warning("qemu", "acceleration", "is virtualization on in the firmware's setup, are kvm_intel or kvm_amd loaded, and may trayd-vm@.service open /dev/kvm (group kvm)?",
		"there is no KVM: machines of trayd's own are emulated, many times slower")
}

// devices looks for what block storage needs; hosts with plain files need none of it.
func (d *Doctor) devices(ctx context.Context) []Check {
	needed := make(map[string]bool) // by what the configuration says
	for _, p := range d.o.Config().Pools {
		needed["lvm"] = needed["lvm"] || p.Type == "lvm"
		needed["dm"] = needed["dm"] || p.Type == "lvm" || p.Verity
		needed["loop"] = needed["loop"] || p.Verity
	}
	needed["dm"] = needed["dm"] || len(d.o.Config().Volumes) > 0
	var all []Check
	all = append(all, judgeNode("device-mapper", "/dev/mapper/control", "modprobe dm_mod", needed["dm"], openNode("/dev/mapper/control")))
	all = append(all, judgeNode("loop devices", "/dev/loop-control", "modprobe loop", needed["loop"], openNode("/dev/loop-control")))
	path, err := exec.LookPath("lvm")
	switch {
	case err != nil && needed["lvm"]:
		all = append(all, failed("devices", "lvm2", "install it (Debian: apt-get install lvm2)", "a pool is a volume group, and lvm2 is not there"))
	case err != nil:
		all = append(all, skipped("devices", "lvm2", "lvm2 is not there, and no pool needs it (lvm:VG/LV would)"))
	default:
		text, err := firstLine(ctx, path, "version")
		if err != nil {
			all = append(all, failed("devices", "lvm2", "see what it says: `lvm version`", "%s can't be run: %v: %s", path, err, text))
			break
		}
		all = append(all, ok("devices", "lvm2", "%s", strings.Join(strings.Fields(text), " ")))
	}
	return all
}

// openNode tries what trayd does with a device's control.
func openNode(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err == nil {
		f.Close()
	}
	return err
}

func judgeNode(what, path, load string, needed bool, err error) Check {
	switch {
	case err == nil:
		return ok("devices", what, "%s can be used", path)
	case needed:
		return failed("devices", what, "`"+load+"`, and see DeviceAllow= of trayd.service", "the configuration needs it, and %s can't be opened: %v", path, err)
	}
	return skipped("devices", what, "%s can't be opened (%v), and nothing configured needs it", path, err)
}

// clock asks whether the clock follows another: certificates and signatures have their times.
func (d *Doctor) clock(context.Context) []Check {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	if err != nil { // the sandbox keeps all calls that are about clocks
		if _, e := os.Stat(timesync); e == nil {
			state, err = unix.TIME_OK, nil
		}
	}
	return []Check{judgeClock(time.Now(), state, t.Maxerror, err)}
}

// timesync is there once systemd-timesyncd has set the clock.
const timesync = "/run/systemd/timesync/synchronized"

// clockFloor is a time that is past: a clock that is earlier has lost its battery.
var clockFloor = time.Date(2025, 1, 1, 0, 0, 0, 0, time.UTC)

func judgeClock(now time.Time, state int, maxError int64, err error) Check {
	const next = "let a time service set it (Debian: apt-get install systemd-timesyncd or chrony)"
	switch {
	case now.Before(clockFloor):
		return failed("clock", "time", next, "the clock says %s: certificates and signatures are refused", now.Format(time.DateTime))
	case err != nil:
		return skipped("clock", "time", "%s; the kernel doesn't say whether it is synchronised: %v", now.Format(time.DateTime), err)
	case state == unix.TIME_ERROR:
		return warning("clock", "time", next, "the clock says %s and follows no time service", now.Format(time.DateTime))
	}
	if maxError == 0 {
		return ok("clock", "time", "synchronised")
	}
	return ok("clock", "time", "synchronised, to %s", time.Duration(maxError)*time.Microsecond)
}

// sandbox looks at what trayd itself may.
func (d *Doctor) sandbox(context.Context) []Check {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return []Check{skipped("sandbox", "process", "/proc/self/status can't be read: %v", err)}
	}
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return []Check{skipped("sandbox", "descriptors", "%v", err)}
	}
	open, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		open = nil
	}
	return []Check{judgeSandbox(fields(status), os.Getuid()), judgeFiles(len(open), files.Cur)}
}

// fields are those of a file of /proc with a name and a value on each line.
func fields(text []byte) map[string]string {
	all := make(map[string]string)
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(line, ":")
		all[name] = strings.TrimSpace(value)
	}
	return all
}

func judgeSandbox(status map[string]string, uid int) Check {
	const next = "run it as trayd.service (`systemctl enable --now trayd.socket trayd`)"
	filtered := status["Seccomp"] == "2"
	switch {
	case filtered && status["NoNewPrivs"] == "1" && uid != 0:
		return ok("sandbox", "process", "user %d, system calls are filtered, no new privileges", uid)
	case filtered && status["NoNewPrivs"] == "1":
		return warning("sandbox", "process", "see User= of trayd.service", "trayd runs as root, with its system calls filtered")
	case uid == 0:
		return warning("sandbox", "process", next, "trayd runs as root, and not in a sandbox")
	}
	return warning("sandbox", "process", next, "trayd runs as user %d, and not in a sandbox", uid)
}

// fewFiles is the part of the descriptors that should be left.
const fewFiles = 0.9

func judgeFiles(open int, most uint64) Check {
	detail := strconv.Itoa(open) + " of " + strconv.FormatUint(most, 10) + " descriptors are open"
	if float64(open) > fewFiles*float64(most) {
		return failed("sandbox", "descriptors", "raise LimitNOFILE= of trayd.service", "%s: machines and clients are refused soon", detail)
	}
	return ok("sandbox", "descriptors", "%s", detail)
}
