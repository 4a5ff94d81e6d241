package machine

import (
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// Host is what this host's QEMU can do.
type Host struct {
	QEMU string // its path
	KVM  bool   // the processor's virtualization can be used
	// FirmwareDirs are where the descriptions of firmware are looked for, the first first.
	FirmwareDirs []string
}

// NoQEMUError is a host without QEMU.
type NoQEMUError struct {
	Name string
	Err  error
}

func (e *NoQEMUError) Error() string { return fmt.Sprintf("QEMU (%s) is not there: %v", e.Name, e.Err) }

// Next is what to do about it.
func (e *NoQEMUError) Next() string {
	return "install it (Debian: apt-get install qemu-system-x86), or set machines.qemu in trayd.toml"
}

// FindHost looks at this host. qemu is a path, or a name that is looked for in PATH; accel
// is "auto", "kvm" or "tcg".
func FindHost(qemu, accel string) (*Host, error) {
	path, err := exec.LookPath(qemu)
	if err != nil {
		return nil, &NoQEMUError{qemu, err}
	}
	h := &Host{QEMU: path, FirmwareDirs: firmwareDirs()}
	switch accel {
	case "kvm":
		h.KVM = true
	case "auto":
		h.KVM = canKVM()
	}
	return h, nil
}

// kvmCreateVM is the ioctl that fails where /dev/kvm is there and the processor's
// virtualization isn't: _IO(0xAE, 0x01) of linux/kvm.h.
const kvmCreateVM = 0xae01

// canKVM tries to make a virtual machine: a /dev/kvm that opens may still be of no use. So is
// one without the kernel's part for the processor's virtualization, which some sandboxes of
// containers emulate. (/proc/cpuinfo isn't there in a unit with ProcSubset=pid.)
func canKVM() bool {
	if !isDir("/sys/module/kvm_intel") && !isDir("/sys/module/kvm_amd") {
		return false
	}
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), kvmCreateVM, 0)
	if errno != 0 {
		return false
	}
	unix.Close(int(fd))
	return true
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}
