package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// The names and uuids of the devices that a Host makes. The uuid says whose a device is:
// the mark has no hyphen, so that what follows it is the volume's name.
const (
	dmNamePrefix = "trayd-"
	dmUUIDPrefix = "TRAYD-"
)

// dmVolume is a device-mapper device that the configuration defines.
type dmVolume struct {
	host *Host
	ref  Ref
}

func (h *Host) dmVolume(ref Ref) (*dmVolume, error) {
	v := &dmVolume{h, ref}
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."
	switch {
	case ref.Name == "" || strings.Trim(ref.Name, letters) != "":
		return nil, badName(ref, "its name has to be letters, digits, '-', '_' and '.'")
	case len(v.device()) >= unix.DM_NAME_LEN, len(v.uuid()) >= unix.DM_UUID_LEN-1:
		// The kernel, and with it other libraries, would cut it.
		return nil, badName(ref, "its name is too long for device-mapper, which takes 127 bytes with trayd's prefix")
	}
	return v, nil
}

func badName(ref Ref, detail string) error {
	return &Error{Ref: ref, Reason: BadName, Detail: detail, Next: "see the name again"}
}

func (v *dmVolume) Ref() Ref       { return v.ref }
func (v *dmVolume) device() string { return dmNamePrefix + v.ref.Name }
func (v *dmVolume) uuid() string   { return dmUUIDPrefix + v.host.mark + "-" + v.ref.Name }

// look returns the device if it is there. One of this name that somebody else made is an
// error.
func (v *dmVolume) look() (dmDevice, bool, error) {
	d, ok, err := dmStatus(v.device())
	switch {
	case err != nil:
		return d, false, v.failed(err)
	case ok && d.UUID != v.uuid():
		return d, false, &Error{
			Ref: v.ref, Reason: Failed, Detail: fmt.Sprintf("the device-mapper device %s belongs to somebody else: its uuid is %q", d.Name, d.UUID),
			Next: "see `dmsetup info " + d.Name + "`, and remove or rename it",
		}
	}
	return d, ok, nil
}

func (v *dmVolume) failed(err error) error {
	e := &Error{Ref: v.ref, Reason: Failed, Detail: err.Error(), Next: "see the kernel's log (`dmesg`)", Err: err}
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		e.Next = "let trayd use device-mapper: CAP_SYS_ADMIN and " + dmControl
	}
	return e
}

func (v *dmVolume) State(context.Context) (State, error) {
	d, ok, err := v.look()
	if err != nil || !ok || !d.Live {
		return State{}, err
	}
	return State{Active: true, Held: held(d)}, nil
}

// held reports whether anybody else has the device open.
func held(d dmDevice) bool { return d.Open > 0 && d.Open > ownOpens(d.rdev()) }

func (v *dmVolume) Activate(ctx context.Context) (bool, error) {
	made := false
	err := v.host.do(ctx, v.ref, func(ctx context.Context) error { return v.activate(ctx, &made) }, func() {
		if made {
			_ = v.remove(context.Background())
		}
	})
	return err == nil && made, err
}

func (v *dmVolume) activate(ctx context.Context, made *bool) error {
	definition, ok := v.host.definition(v.ref.Name)
	if !ok {
		return &Error{Ref: v.ref, Reason: Undefined, Detail: "the configuration defines no such volume", Next: "add a [[volume]] of this name, or use one that is there"}
	}
	d, there, err := v.look()
	if err != nil {
		return err
	}
	t, err := v.table(ctx, definition)
	if err != nil {
		return err
	}
	defer t.close()
	if there && d.Live && !d.Suspended {
		_, live, _, err := dmTable(v.device())
		if err != nil {
			return v.failed(err)
		}
		if !t.matches(live) {
			return &Error{
				Ref: v.ref, Reason: Damaged, Detail: "its device is active with another table than the configuration says now",
				Next: "eject the disc everywhere so that it is turned off, or undo the change of the configuration",
			}
		}
		return nil
	}
	if _, err := os.Stat(dmControl); err != nil {
		return &Error{Ref: v.ref, Reason: NotHere, Detail: "this host has no device-mapper: " + err.Error(), Next: "load the kernel module dm-mod, and let trayd see " + dmControl, Err: err}
	}
	if there { // what a crash left between making and starting it
		if err := v.remove(ctx); err != nil {
			return err
		}
	}
	if err := t.attach(ctx); err != nil {
		return v.failed(err)
	}
	*made = true
	if err := v.create(ctx, t); err != nil {
		_ = v.remove(context.WithoutCancel(ctx)) // by its uuid: another of this name may have been quicker
		return err
	}
	return nil
}

// create makes the device of the table, and reads from it where that tells something.
func (v *dmVolume) create(ctx context.Context, t *table) error {
	if err := dmCreate(v.device(), v.uuid()); err != nil {
		return v.failed(fmt.Errorf("its device can't be made: %w", err))
	}
	if err := dmLoad(v.device(), t.targets); err != nil {
		kind := t.targets[0].Type
		e := &Error{Ref: v.ref, Reason: Damaged, Detail: fmt.Sprintf("the kernel refuses its table: %v", err), Next: "the kernel's log (`dmesg`) says what is wrong with it", Err: err}
		if _, there := targetVersion(kind); !there {
			e.Reason, e.Next = NotHere, "load the kernel module dm-"+kind
		}
		return e
	}
	if err := dmResume(v.device()); err != nil {
		return v.failed(fmt.Errorf("its device can't be started: %w", err))
	}
	f, err := v.Open(ctx, "")
	if err != nil {
		return err
	}
	defer f.Close()
	if t.verity {
		// Every read needs the whole way from the block up to the root hash.
		if _, err := f.ReadAt(make([]byte, sector), 0); err != nil {
			return &Error{
				Ref: v.ref, Reason: Damaged, Detail: "its first block doesn't match the root hash: that is of another volume, or the data is damaged",
				Next: "see with `veritysetup verify` which, and correct root_hash or copy the data anew", Err: err,
			}
		}
	}
	return nil
}

// targetVersion asks whether the kernel has a target; it loads the module if it can.
func targetVersion(kind string) (version [3]uint32, ok bool) {
	_, data, err := dmCall(unix.DM_GET_TARGET_VERSION, 0, 0, kind, "", 0, nil)
	return version, err == nil && len(data) > 0
}

func (v *dmVolume) Open(ctx context.Context, rel string) (*os.File, error) {
	d, ok, err := v.look()
	if err != nil {
		return nil, err
	}
	if !ok || !d.Live {
		return nil, inactive(v.ref)
	}
	if rel != "" {
		return nil, noFiles(v.ref, rel)
	}
	f, err := openNumber(ctx, d.Major, d.Minor, os.O_RDONLY)
	if err != nil {
		return nil, unopened(v.ref, err)
	}
	return f, nil
}

func inactive(ref Ref) error {
	return &Error{Ref: ref, Reason: NotHere, Detail: "it is not active", Next: "activate it first"}
}

func noFiles(ref Ref, rel string) error {
	return badName(ref, fmt.Sprintf("it is one disc and has no file %q inside", rel))
}

func unopened(ref Ref, err error) error {
	return &Error{Ref: ref, Reason: NotHere, Detail: "its device can't be opened: " + err.Error(), Next: "let trayd see the kernel's /dev and read block devices", Err: err}
}

func (v *dmVolume) Release(ctx context.Context) error { return v.host.do(ctx, v.ref, v.remove, nil) }

// remove removes the device, once nobody has it open.
func (v *dmVolume) remove(ctx context.Context) error {
	const tries = 5
	for try := 1; ; try++ {
		var d dmDevice
		var there bool
		err := await(ctx, releaseWait, func() (bool, error) {
			var err error
			d, there, err = v.look()
			return err != nil || !there || d.Open == 0, err
		})
		switch {
		case err != nil && ctx.Err() != nil:
			return late(v.ref, err)
		case err != nil:
			return err
		case !there:
			return nil
		case d.Open > 0:
			return busy(ctx, v.ref, d.rdev())
		}
		err = dmRemove(v.device())
		if errors.Is(err, unix.EBUSY) && try < tries {
			continue // somebody was quicker: wait for them as for the others
		}
		if err != nil && !errors.Is(err, unix.ENXIO) {
			return v.failed(fmt.Errorf("its device can't be removed: %w", err))
		}
		return nil
	}
}

// busy is the error of a device that is held open.
func busy(ctx context.Context, ref Ref, rdev uint64) error {
	return &BusyError{Ref: ref, Holders: deviceHolders(ctx, rdev)}
}

func (v *dmVolume) Holders(ctx context.Context) ([]Holder, error) {
	d, ok, err := v.look()
	if err != nil || !ok {
		return nil, err
	}
	return deviceHolders(ctx, d.rdev()), nil
}
