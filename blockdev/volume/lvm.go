package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// lvmVolume is a logical volume. lvm2's own tools activate and deactivate it: their
// locks and their metadata are theirs. Whether it is active and held is asked of
// device-mapper, which takes microseconds where lvs takes a scan of the disks.
type lvmVolume struct {
	host   *Host
	ref    Ref
	vg, lv string
}

func (h *Host) lvmVolume(ref Ref) (*lvmVolume, error) {
	vg, lv, ok := strings.Cut(ref.Name, "/")
	if !ok {
		return nil, badName(ref, "a logical volume is written VG/LV")
	}
	v := &lvmVolume{h, ref, vg, lv}
	if why := wrongVG(vg); why != "" {
		return nil, badName(ref, "the volume group's name "+why)
	}
	if why := wrongLV(lv); why != "" {
		return nil, badName(ref, "the logical volume's name "+why)
	}
	if len(v.device()) >= unix.DM_NAME_LEN {
		return nil, badName(ref, "both names together are too long for device-mapper, which takes 127 bytes with each hyphen twice")
	}
	return v, nil
}

// wrongVG says what is wrong with a name by lvm(8), "Valid names"; "" is nothing.
func wrongVG(name string) string {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+_.-"
	switch {
	case name == "":
		return "is missing"
	case strings.Trim(name, letters) != "":
		return "may have letters, digits, '+', '_', '.' and '-' only"
	case name[0] == '-':
		return "can't begin with '-'"
	case name == "." || name == "..":
		return "can't be . or .."
	case len(name) > 127:
		return "can't be longer than 127 bytes"
	}
	return ""
}

// wrongLV is the same for a logical volume. The reserved names are those of lvm2's
// inner volumes: a pool's metadata, a mirror's legs.
func wrongLV(name string) string {
	if why := wrongVG(name); why != "" {
		return why
	}
	for _, prefix := range []string{"pvmove", "snapshot"} {
		if strings.HasPrefix(name, prefix) {
			return "begins with " + prefix + ", which lvm2 keeps for itself"
		}
	}
	for _, part := range []string{
		"_cdata", "_cmeta", "_corig", "_cpool", "_cvol", "_gimage", "_imeta", "_iorig", "_mimage", "_mlog", "_pmspare",
		"_rimage", "_rmeta", "_tdata", "_tmeta", "_vdata", "_vorigin", "_wcorig",
	} {
		if strings.Contains(name, part) {
			return "contains " + part + ", which lvm2 keeps for its inner volumes"
		}
	}
	return ""
}

func (v *lvmVolume) Ref() Ref { return v.ref }

// device is the volume's name in device-mapper.
func (v *lvmVolume) device() string {
	double := strings.NewReplacer("-", "--")
	return double.Replace(v.vg) + "-" + double.Replace(v.lv)
}

// look returns the volume's device if it is active.
func (v *lvmVolume) look() (dmDevice, bool, error) {
	d, there, err := v.find()
	return d, there && d.Live, err
}

func (v *lvmVolume) ours(d dmDevice) error {
	if !strings.HasPrefix(d.UUID, "LVM-") {
		return v.failed(fmt.Sprintf("the device-mapper device %s is none of lvm2's: its uuid is %q", d.Name, d.UUID), nil)
	}
	return nil
}

func (v *lvmVolume) failed(detail string, err error) error {
	e := &Error{Ref: v.ref, Reason: Failed, Detail: detail, Next: fmt.Sprintf("see `lvs %s` and `dmsetup info %s`", v.ref.Name, v.device()), Err: err}
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		e.Next = "let trayd use device-mapper: CAP_SYS_ADMIN and " + dmControl
	}
	return e
}

func (v *lvmVolume) State(ctx context.Context) (State, error) {
	if err := v.host.alone(ctx, v.ref); err != nil {
		return State{}, err
	}
	d, ok, err := v.look()
	if err != nil || !ok {
		return State{}, err
	}
	return State{Active: true, Held: held(d), Renamed: v.other(d)}, nil
}

// suitable selects what may be activated, so that one command both asks and acts: an
// ordinary volume (linear or striped: -, raid: r or R, with snapshots of it: o) that is
// not one of lvm2's inner ones, in a group that is whole and not exported. What isn't
// selected is left alone, and lvchange ends with success all the same.
const suitable = `lv_role=public && lv_attr=~"^[-rRo]" && vg_partial=0 && vg_exported=0`

// lvmConfig goes with each command. Nothing of ours is monitored by dmeventd, which
// lvm2 would start as a child of this process; nothing that only looks or activates
// writes a backup of the metadata; and we do the waiting ourselves, for milliseconds and
// not for 5 s.
const lvmConfig = `activation{monitoring=0 retry_deactivation=0} backup{backup=0 archive=0}`

func (v *lvmVolume) Activate(ctx context.Context) (bool, error) {
	made := false
	err := v.host.do(ctx, v.ref, func(ctx context.Context) error { return v.activate(ctx, &made) }, func() {
		if made {
			_ = v.release(context.Background())
		}
	})
	return err == nil && made, err
}

func (v *lvmVolume) activate(ctx context.Context, made *bool) error {
	if err := v.inUse(ctx); err != nil {
		return err
	}
	if _, active, err := v.check(); active || err != nil {
		return err // whoever activated it
	}
	// Read-only without a change of the metadata: this command alone sees the list.
	config := strings.Replace(lvmConfig, "activation{", fmt.Sprintf("activation{read_only_volume_list=[%q] ", v.ref.Name), 1)
	o, err := v.turnOn(ctx, config, "lvchange", "--activate", "y", "--poll", "n", "--select", suitable, v.ref.Name)
	if err == nil && o.code == 0 {
		var d dmDevice
		var active bool
		d, active, err = v.check()
		switch {
		case err != nil || !active:
		case v.other(d) == "":
			v.host.Adopt(v.ref, d.UUID) // where lvm2's log didn't tell
			*made = true
			return nil
		default:
			err = v.renamed(d)
		}
	}
	clean := context.WithoutCancel(ctx)
	if _, there, e := v.find(); e == nil && there {
		_ = v.release(clean) // as it was before; what is held open is its caller's to release
	} else {
		v.forget()
	}
	var refused *Error
	switch {
	case errors.As(err, &refused):
		return err
	case err != nil:
		return v.host.lvmError(v.ref, "lvchange", o, err)
	}
	return v.diagnose(ctx, o)
}

// check reports whether the volume is active. One of a kind that wouldn't be activated
// is refused when it is active, too: its table says what it is.
func (v *lvmVolume) check() (d dmDevice, active bool, err error) {
	d, there, err := v.find()
	if err != nil || !there {
		return d, false, err
	}
	d, table, there, err := dmTableOf("", d.UUID)
	if err != nil {
		return d, false, v.failed(err.Error(), err)
	}
	if !there {
		return d, false, nil
	}
	for _, t := range table {
		switch t.Type {
		case "linear", "striped", "raid", "mirror", "snapshot-origin":
		case "snapshot", "snapshot-merge":
			return d, false, v.isSnapshot()
		case "thin", "thin-pool":
			return d, false, v.isThin()
		default:
			return d, false, v.isOther(t.Type)
		}
	}
	return d, d.Live, nil
}

func (v *lvmVolume) isSnapshot() error {
	return &Error{Ref: v.ref, Reason: Snapshot, Detail: "it is a snapshot, which is lost when its space runs out", Next: "copy it to an ordinary logical volume"}
}

func (v *lvmVolume) isThin() error {
	return &Error{Ref: v.ref, Reason: Thin, Detail: "it is of a thin pool, and activating it would write to the pool", Next: "copy it to an ordinary logical volume"}
}

func (v *lvmVolume) isOther(kind string) error {
	return &Error{Ref: v.ref, Reason: Failed, Detail: "it is a " + kind + " volume; linear, striped and raid volumes can hold discs", Next: "copy it to an ordinary logical volume"}
}

// diagnose finds out why lvchange didn't activate the volume. tried is how that ended.
func (v *lvmVolume) diagnose(ctx context.Context, tried output) error {
	var groups struct {
		VG []struct {
			Partial  string `json:"vg_partial"`
			Exported string `json:"vg_exported"`
		} `json:"vg"`
	}
	o, err := v.host.report(ctx, &groups, "vgs", "--options", "vg_partial,vg_exported", v.vg)
	switch {
	case err != nil:
		return v.host.lvmError(v.ref, "vgs", o, err)
	case len(groups.VG) == 0:
		return &Error{Ref: v.ref, Reason: NoSuchGroup, Detail: fmt.Sprintf("there is no volume group %s here", v.vg), Next: "see the name again in `vgs`, or attach its disks"}
	case groups.VG[0].Exported != "":
		return &Error{Ref: v.ref, Reason: Exported, Detail: fmt.Sprintf("volume group %s is exported", v.vg), Next: fmt.Sprintf("`vgimport %s`, if no other host uses it", v.vg)}
	}
	var volumes struct {
		LV []struct {
			Attr   string `json:"lv_attr"`
			Role   string `json:"lv_role"`
			Layout string `json:"lv_layout"`
		} `json:"lv"`
	}
	o, err = v.host.report(ctx, &volumes, "lvs", "--all", "--options", "lv_attr,lv_role,lv_layout", v.ref.Name)
	switch {
	case err != nil:
		return v.host.lvmError(v.ref, "lvs", o, err)
	case len(volumes.LV) == 0:
		return &Error{Ref: v.ref, Reason: NoSuchVolume, Detail: fmt.Sprintf("volume group %s has no logical volume %s", v.vg, v.lv), Next: fmt.Sprintf("see the name again in `lvs %s`", v.vg)}
	}
	lv := volumes.LV[0]
	switch {
	case strings.Contains(lv.Role, "thicksnapshot"):
		return v.isSnapshot()
	case strings.Contains(lv.Layout, "thin"):
		return v.isThin()
	case !strings.Contains(lv.Role, "public") || !strings.ContainsAny(lv.Attr[:min(1, len(lv.Attr))], "-rRo"):
		return v.isOther(lv.Layout)
	case groups.VG[0].Partial != "":
		return &Error{Ref: v.ref, Reason: PartialGroup, Detail: fmt.Sprintf("volume group %s lacks some of its physical volumes", v.vg), Next: "attach them; `pvs` shows which are missing"}
	}
	return v.host.lvmError(v.ref, "lvchange", tried, nil)
}

func (v *lvmVolume) Open(ctx context.Context, rel string) (*os.File, error) {
	return v.open(ctx, rel, os.O_RDONLY)
}

func (v *lvmVolume) open(ctx context.Context, rel string, flags int) (*os.File, error) {
	if rel != "" {
		return nil, noFiles(v.ref, rel)
	}
	d, active, err := v.look()
	if err != nil {
		return nil, err
	}
	if !active {
		return nil, inactive(v.ref)
	}
	f, err := openNumber(ctx, d.Major, d.Minor, flags)
	if err != nil {
		return nil, unopened(v.ref, err)
	}
	return f, nil
}

func (v *lvmVolume) Release(ctx context.Context) error { return v.host.do(ctx, v.ref, v.release, nil) }

// release deactivates the volume, once nobody has it open.
func (v *lvmVolume) release(ctx context.Context) error {
	for again := true; ; again = false {
		d, there, err := v.idle(ctx, v.find)
		switch {
		case err != nil && ctx.Err() != nil:
			return late(v.ref, err)
		case err != nil:
			return err
		case !there:
			v.forget()
			return nil
		case d.Open > 0:
			return busy(ctx, v.ref, d.rdev())
		}
		o, err := v.turnOff(ctx, d)
		if err != nil {
			return v.host.lvmError(v.ref, "lvchange", o, err)
		}
		d, there, err = v.find()
		switch {
		case err != nil:
			return err
		case !there:
			v.forget()
			return nil
		case again: // somebody was quicker, most likely; for a moment only, then
		case d.Open > 0:
			return busy(ctx, v.ref, d.rdev())
		case o.code == 0:
			return v.failed("lvm2 has no logical volume any more for the device "+d.Name, nil)
		default:
			return v.host.lvmError(v.ref, "lvchange", o, nil)
		}
	}
}

// idle waits until nobody has the volume's device open.
func (v *lvmVolume) idle(ctx context.Context, find func() (dmDevice, bool, error)) (d dmDevice, there bool, err error) {
	err = await(ctx, releaseWait, func() (bool, error) {
		d, there, err = find()
		return err != nil || !there || d.Open == 0, err
	})
	return d, there, err
}

func (v *lvmVolume) Holders(ctx context.Context) ([]Holder, error) {
	d, active, err := v.look()
	if err != nil || !active {
		return nil, err
	}
	return deviceHolders(ctx, d.rdev()), nil
}

// lvmError is what a command of lvm2 that failed says.
func (h *Host) lvmError(ref Ref, command string, o output, err error) error {
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return &Error{Ref: ref, Reason: NotHere, Detail: "this host has no lvm2: " + err.Error(), Next: "install the package lvm2", Err: err}
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return late(ref, err)
	case err != nil:
		return &Error{Ref: ref, Reason: Failed, Detail: fmt.Sprintf("%s: %v", command, err), Next: "see whether lvm2 is whole", Err: err}
	}
	return &Error{Ref: ref, Reason: Failed, Detail: fmt.Sprintf("%s says: %s", command, o.words()), Next: "see `lvs` and the kernel's log (`dmesg`)"}
}
