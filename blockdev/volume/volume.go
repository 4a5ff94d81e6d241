// Package volume turns the storage that holds discs on and off: logical volumes,
// device-mapper devices, loop devices, mounted file systems, and plain files and
// devices, which need neither.
//
// It knows nothing of drives, of machines, and of who uses a volume: its caller counts
// the users, calls Activate before the first and Release after the last, and keeps a
// Ref durable in between.
//
// # How it asks
//
// Whether a volume is active, whose it is and whether it is held open is asked of the
// kernel each time, by device-mapper's ioctls and by sysfs; nothing is remembered but what
// a renaming would hide, the uuid of a logical volume's device. What this package makes
// carries its Host's mark: a device-mapper device in its uuid (TRAYD-MARK-NAME), a loop
// device in its lo_file_name, a mount in its place. lvm2 is run once to activate a logical
// volume and once to deactivate it; only when that fails are its reports read.
//
// # What it needs
//
//   - device-mapper, logical volumes: CAP_SYS_ADMIN, /dev/mapper/control, and the kernel's
//     /dev with all its block devices (not systemd's PrivateDevices=; with DeviceAllow=
//     both of them "rw": a table that is loaded is checked for it, read-only or not)
//   - logical volumes, for another user than root: CAP_DAC_OVERRIDE, CAP_FOWNER (lvm2
//     opens disks with O_NOATIME), and /run/lock/lvm, which is lvm2's and has to be
//     writable; CAP_SYS_NICE and @resources aren't needed
//   - loop devices: /dev/loop-control, Linux 5.8
//   - mounts: CAP_SYS_ADMIN, mount(2) and umount2(2) (@mount), and a mount namespace that
//     outlives this process and that others see: not PrivateMounts=
//   - the names of holders: CAP_SYS_PTRACE; what Watch hears at once: AF_NETLINK, or
//     Options.Uevents
package volume

import (
	"context"
	"fmt"
	"os"
	"strings"
)

// Kind is a way of holding a disc.
type Kind string

// The kinds.
const (
	LVM   Kind = "lvm"   // a logical volume; Name is VG/LV
	DM    Kind = "dm"    // a device-mapper volume that the configuration defines; Name is its name
	Loop  Kind = "loop"  // a file that has to be a block device; Name is its path
	Mount Kind = "mount" // a file system that is mounted while it is used; Name is the pool's
	Block Kind = "block" // a block device as it is; Name is its path
	File  Kind = "file"  // a file as it is; Name is its path
)

// Ref names a volume. It is what a record keeps, and all that Release needs: a volume
// that the configuration no longer defines can still be released.
type Ref struct {
	Kind Kind   `json:"kind"`
	Name string `json:"name"`
}

// String is the reference as people write it: lvm:vg0/debian.
func (r Ref) String() string { return string(r.Kind) + ":" + r.Name }

// ParseRef is the reverse of String.
func ParseRef(s string) (Ref, error) {
	kind, name, ok := strings.Cut(s, ":")
	if !ok || name == "" {
		return Ref{}, fmt.Errorf("%q is no volume: write KIND:NAME, such as lvm:vg0/debian", s)
	}
	return Ref{Kind: Kind(kind), Name: name}, nil
}

// Volume is one volume of this host. Its methods may be called at any time, by one
// caller at a time for one Ref.
type Volume interface {
	Ref() Ref
	// Activate makes the volume readable. An active one is a success, whoever
	// activated it: made is false then. After an error it is as it was before; if ctx
	// ended and lvm2 or the kernel hangs, it will be when that ends, and until then all
	// other calls wait.
	Activate(ctx context.Context) (made bool, err error)
	// Open opens the active volume for reading: its device by number, never by a
	// link that udev makes. rel names a file inside a Mount, beneath which it stays,
	// and is "" for all others.
	Open(ctx context.Context, rel string) (*os.File, error)
	// Release deactivates the volume. One that isn't active, or doesn't exist any
	// more, is a success. One that somebody holds open stays active, after a bounded
	// wait for those who hold it for a moment only, and the error is a *BusyError.
	Release(ctx context.Context) error
	// State looks at the volume; it takes microseconds.
	State(ctx context.Context) (State, error)
	// Holders are those who hold the active volume open, this process left out.
	Holders(ctx context.Context) ([]Holder, error)
}

// State is what the kernel says of a volume.
type State struct {
	Active bool
	// Held is set when somebody, this process left out as far as that can be told, holds
	// it open. Nothing is said of a Mount: only the attempt to end it tells. Of a Loop it
	// is said once a Release was tried, and it goes by itself when it is held no more.
	// Files and Blocks have nothing to release.
	Held bool
	// Renamed is what an active logical volume that this Host activated is called now, VG/LV,
	// where that isn't its Ref's name.
	Renamed string
}

// Holder is who holds a volume open: a process, a device above, or a mount.
type Holder struct {
	PID  int    `json:"pid,omitempty"`
	Name string `json:"name"` // the process's or the device's
}

func (h Holder) String() string {
	if h.PID == 0 {
		return h.Name
	}
	return fmt.Sprintf("%s (pid %d)", h.Name, h.PID)
}

// BusyError is a volume that can't be released since it is held open.
type BusyError struct {
	Ref     Ref
	Holders []Holder // as far as the kernel tells
}

func (e *BusyError) Error() string {
	if len(e.Holders) == 0 {
		return fmt.Sprintf("volume %s is held open, the kernel doesn't say by whom", e.Ref)
	}
	var who []string
	for _, h := range e.Holders {
		who = append(who, h.String())
	}
	return fmt.Sprintf("volume %s is held open by %s", e.Ref, strings.Join(who, ", "))
}

// Reason is why a volume can't be used.
type Reason string

// The reasons.
const (
	NoSuchGroup  Reason = "no-such-volume-group"
	NoSuchVolume Reason = "no-such-volume"
	PartialGroup Reason = "partial-volume-group"  // physical volumes are missing
	Exported     Reason = "exported-volume-group" // vgexport
	Snapshot     Reason = "snapshot"              // its origin changes beneath it
	Thin         Reason = "thin-volume"           // would activate its pool, which writes
	BadName      Reason = "bad-name"
	Undefined    Reason = "undefined" // the configuration defines no such volume
	Damaged      Reason = "damaged"   // a table that doesn't fit its devices, a wrong root hash
	NotHere      Reason = "not-here"  // the host lacks what it needs: lvm2, device-mapper, the device
	NoSpace      Reason = "no-space"
	Failed       Reason = "failed" // the tool's or the kernel's own words say why
)

// Error is a volume that can't be used, and why.
type Error struct {
	Ref    Ref
	Reason Reason
	Detail string // one sentence
	Next   string // what to do
	Err    error
}

func (e *Error) Error() string { return fmt.Sprintf("volume %s: %s", e.Ref, e.Detail) }

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }
