package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
)

// incompleteTag is on a logical volume from CreateLV to FinishLV. It has the mark, so
// that no other trayd with the same volume group takes it for its own.
func (h *Host) incompleteTag() string { return "trayd.incomplete." + h.mark }

// LVInfo is what lvm2 says of a logical volume.
type LVInfo struct {
	Name       string
	UUID       string
	Size       int64 // bytes
	Active     bool
	Open       bool
	Incomplete bool // made by CreateLV, and FinishLV was not called
	Tags       []string
}

// GroupSpace is a volume group's, in bytes.
type GroupSpace struct {
	Size, Free int64
	Extent     int64 // what a logical volume's size is a multiple of
}

// lvm runs one of lvm2's commands. A test sees how long they took.
func (h *Host) lvm(ctx context.Context, command string, args ...string) (output, error) {
	o, err := h.runTool(ctx, command, args...)
	if h.onTool != nil {
		h.onTool(command, o)
	}
	return o, err
}

// report runs one of lvm2's reporting commands and reads its JSON. What it reports on
// and isn't there makes the list empty.
func (h *Host) report(ctx context.Context, into any, command string, args ...string) (output, error) {
	o, err := h.lvm(ctx, command, append([]string{"--config", lvmConfig, "--reportformat", "json", "--units", "b", "--nosuffix"}, args...)...)
	if err != nil {
		return o, err
	}
	var all struct {
		Report []json.RawMessage `json:"report"`
	}
	err = json.Unmarshal(o.stdout, &all)
	if err == nil && len(all.Report) > 0 {
		err = json.Unmarshal(all.Report[0], into)
	}
	if err != nil {
		err = fmt.Errorf("no report (%s): %w", o.words(), err)
	}
	return o, err
}

// lvOf checks the names of a logical volume.
func (h *Host) lvOf(vg, lv string) (*lvmVolume, error) {
	return h.lvmVolume(Ref{Kind: LVM, Name: vg + "/" + lv})
}

// Space asks how much room a volume group has. The error is an *Error: NoSuchGroup,
// Exported, PartialGroup (nothing can be made in such ones), NotHere or Failed.
func (h *Host) Space(ctx context.Context, vg string) (GroupSpace, error) {
	ref := Ref{Kind: LVM, Name: vg}
	if why := wrongVG(vg); why != "" {
		return GroupSpace{}, badName(ref, "the volume group's name "+why)
	}
	var space GroupSpace
	err := h.do(ctx, ref, func(ctx context.Context) (err error) {
		space, err = h.space(ctx, ref)
		return err
	}, nil)
	if err != nil {
		return GroupSpace{}, err
	}
	return space, nil
}

func (h *Host) space(ctx context.Context, ref Ref) (GroupSpace, error) {
	var groups struct {
		VG []struct {
			Size     string `json:"vg_size"`
			Free     string `json:"vg_free"`
			Extent   string `json:"vg_extent_size"`
			Partial  string `json:"vg_partial"`
			Exported string `json:"vg_exported"`
		} `json:"vg"`
	}
	vg := ref.Name
	o, err := h.report(ctx, &groups, "vgs", "--options", "vg_size,vg_free,vg_extent_size,vg_partial,vg_exported", vg)
	switch {
	case err != nil:
		return GroupSpace{}, h.lvmError(ref, "vgs", o, err)
	case len(groups.VG) == 0:
		return GroupSpace{}, &Error{Ref: ref, Reason: NoSuchGroup, Detail: fmt.Sprintf("there is no volume group %s here", vg), Next: "see the name again in `vgs`, or attach its disks"}
	}
	g := groups.VG[0]
	switch {
	case g.Exported != "":
		return GroupSpace{}, &Error{Ref: ref, Reason: Exported, Detail: fmt.Sprintf("volume group %s is exported", vg), Next: fmt.Sprintf("`vgimport %s`, if no other host uses it", vg)}
	case g.Partial != "":
		return GroupSpace{}, &Error{Ref: ref, Reason: PartialGroup, Detail: fmt.Sprintf("volume group %s lacks some of its physical volumes", vg), Next: "attach them; `pvs` shows which are missing"}
	}
	var space GroupSpace
	var errs [3]error
	space.Size, errs[0] = strconv.ParseInt(g.Size, 10, 64)
	space.Free, errs[1] = strconv.ParseInt(g.Free, 10, 64)
	space.Extent, errs[2] = strconv.ParseInt(g.Extent, 10, 64)
	if err := errors.Join(errs[:]...); err != nil {
		return GroupSpace{}, h.lvmError(ref, "vgs", o, err)
	}
	return space, nil
}

// CreateLV makes a logical volume of at least size bytes, rounded up to the group's
// extents. It is active, writable until it is released, and tagged as incomplete until
// FinishLV: what an interrupted one left is known by that. Nothing is zeroed. When ctx
// ends, what was made is removed, within seconds after the return at the latest. The
// error is an *Error, for lack of room with the Reason NoSpace and the figures.
func (h *Host) CreateLV(ctx context.Context, vg, lv string, size int64) error {
	v, err := h.lvOf(vg, lv)
	if err != nil {
		return err
	}
	if size <= 0 {
		return badName(v.ref, fmt.Sprintf("it can't have %d bytes", size))
	}
	made := false
	return h.do(ctx, v.ref, func(ctx context.Context) error {
		err := v.create(ctx, size)
		made = err == nil
		return err
	}, func() {
		if made {
			_ = v.delete(context.Background())
		}
	})
}

func (v *lvmVolume) create(ctx context.Context, size int64) error {
	if err := v.inUse(ctx); err != nil {
		return err
	}
	args := []string{
		"--yes", "--activate", "y", "--addtag", v.host.incompleteTag(), "--type", "linear",
		// Whatever lies there is overwritten. Both would need the link that udev makes.
		"--wipesignatures", "n", "--zero", "n",
		// lvm2 rounds up to extents, but wants to be given sectors.
		"--size", strconv.FormatInt((size+sector-1)/sector, 10) + "s", "--name", v.lv,
	}
	// Not at each boot: it is active while it is used. lvm2 before 2.03.12 doesn't know
	// the option, and says so by this exit status before it does anything.
	const wrongUsage = 3
	o, err := v.turnOn(ctx, lvmConfig, "lvcreate", slices.Concat(args, []string{"--setautoactivation", "n", v.vg})...)
	if err == nil && o.code == wrongUsage {
		o, err = v.turnOn(ctx, lvmConfig, "lvcreate", append(args, v.vg)...)
	}
	clean := context.WithoutCancel(ctx)
	if err == nil && o.code == 0 {
		if d, there, err := v.find(); err == nil && there && v.other(d) != "" {
			_ = v.release(clean) // under its new name it is still tagged as incomplete
			return v.renamed(d)
		}
		return nil
	}
	if ctx.Err() != nil { // it may have been made
		if list, e := v.host.list(clean, v.vg); e == nil && slices.ContainsFunc(list, func(i LVInfo) bool { return i.Name == v.lv && i.Incomplete }) {
			_ = v.delete(clean)
		}
	}
	if err != nil {
		return v.host.lvmError(v.ref, "lvcreate", o, err)
	}
	space, err := v.host.space(ctx, Ref{Kind: LVM, Name: v.vg})
	if err != nil {
		return err
	}
	if need := (size + space.Extent - 1) / space.Extent * space.Extent; need > space.Free {
		return &Error{
			Ref: v.ref, Reason: NoSpace, Detail: fmt.Sprintf("it needs %d MiB, volume group %s has %d MiB free", (need+1<<20-1)>>20, v.vg, space.Free>>20),
			Next: "remove what isn't needed, or extend the group (`vgextend`)",
		}
	}
	return v.host.lvmError(v.ref, "lvcreate", o, nil)
}

// OpenForWriting opens a logical volume that CreateLV made and FinishLV hasn't finished,
// and activates it if it was released, or the host was started anew.
func (h *Host) OpenForWriting(ctx context.Context, vg, lv string) (*os.File, error) {
	v, err := h.lvOf(vg, lv)
	if err != nil {
		return nil, err
	}
	list, err := h.ListLVs(ctx, vg)
	if err != nil {
		return nil, err
	}
	for _, i := range list {
		if i.Name != lv || !i.Incomplete {
			continue
		}
		if !i.Active {
			err := h.do(ctx, v.ref, v.activateWritable, func() { _ = v.release(context.Background()) })
			if err != nil {
				return nil, err
			}
		}
		// Another may have its name since the list was made, or have had it before.
		d, _, err := v.look()
		if err != nil {
			return nil, err
		}
		if !strings.HasSuffix(d.UUID, strings.ReplaceAll(i.UUID, "-", "")) {
			if !i.Active {
				_ = v.Release(ctx) // as it was before
			}
			return nil, &Error{Ref: v.ref, Reason: NoSuchVolume, Detail: "somebody has given its name to another volume", Next: fmt.Sprintf("see both in `lvs %s`", vg)}
		}
		return v.open(ctx, "", os.O_RDWR)
	}
	return nil, &Error{Ref: v.ref, Reason: NoSuchVolume, Detail: "there is no such volume that is still to be written", Next: "make it first"}
}

func (v *lvmVolume) activateWritable(ctx context.Context) error {
	if err := v.inUse(ctx); err != nil {
		return err
	}
	o, err := v.turnOn(ctx, lvmConfig, "lvchange", "--activate", "y", "--poll", "n", v.ref.Name)
	if err == nil && o.code == 0 {
		return nil
	}
	if err != nil {
		return v.host.lvmError(v.ref, "lvchange", o, err)
	}
	return v.diagnose(ctx, o)
}

// FinishLV takes the tag off a logical volume that is written and verified. The volume
// stays active. One that is finished already is a success.
func (h *Host) FinishLV(ctx context.Context, vg, lv string) error {
	v, err := h.lvOf(vg, lv)
	if err != nil {
		return err
	}
	return h.do(ctx, v.ref, func(ctx context.Context) error {
		o, err := h.lvm(ctx, "lvchange", "--config", lvmConfig, "--deltag", h.incompleteTag(), v.ref.Name)
		if err == nil && o.code == 0 {
			return nil
		}
		if err != nil {
			return h.lvmError(v.ref, "lvchange", o, err)
		}
		return v.diagnose(ctx, o)
	}, nil)
}

// RemoveLV removes a logical volume, and what is on it. One that isn't there is a
// success; one that somebody has open stays, and the error is a *BusyError.
func (h *Host) RemoveLV(ctx context.Context, vg, lv string) error {
	v, err := h.lvOf(vg, lv)
	if err != nil {
		return err
	}
	return h.do(ctx, v.ref, v.delete, nil)
}

// delete removes the volume that has the name now, once nobody has it open; lvremove
// deactivates it itself. One that this Host has activated and somebody has renamed is only
// turned off, and what has its name is left alone.
func (v *lvmVolume) delete(ctx context.Context) error {
	if d, there, err := v.find(); err == nil && there && v.other(d) != "" {
		return v.inUse(ctx)
	}
	d, there, err := v.idle(ctx, v.named)
	switch {
	case err != nil && ctx.Err() != nil:
		return late(v.ref, err)
	case err != nil:
		return err
	case there && d.Open > 0:
		return busy(ctx, v.ref, d.rdev())
	}
	o, err := v.host.lvm(ctx, "lvremove", "--config", lvmConfig, "--yes", v.ref.Name)
	if err != nil {
		return v.host.lvmError(v.ref, "lvremove", o, err)
	}
	if o.code == 0 {
		return nil
	}
	list, err := v.host.list(ctx, v.vg)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(list, func(i LVInfo) bool { return i.Name == v.lv }) {
		return nil
	}
	if d, there, err := v.named(); err == nil && there && d.Open > 0 { // somebody was quicker
		return busy(ctx, v.ref, d.rdev())
	}
	return v.host.lvmError(v.ref, "lvremove", o, nil)
}

// ListLVs lists a volume group's logical volumes, lvm2's inner ones left out.
func (h *Host) ListLVs(ctx context.Context, vg string) ([]LVInfo, error) {
	ref := Ref{Kind: LVM, Name: vg}
	if why := wrongVG(vg); why != "" {
		return nil, badName(ref, "the volume group's name "+why)
	}
	var list []LVInfo
	err := h.do(ctx, ref, func(ctx context.Context) (err error) {
		list, err = h.list(ctx, vg)
		return err
	}, nil)
	if err != nil {
		return nil, err // and not a list that is still being made
	}
	return list, nil
}

func (h *Host) list(ctx context.Context, vg string) ([]LVInfo, error) {
	ref := Ref{Kind: LVM, Name: vg}
	var volumes struct {
		LV []struct {
			Name string `json:"lv_name"`
			UUID string `json:"lv_uuid"`
			Size string `json:"lv_size"`
			Attr string `json:"lv_attr"`
			Tags string `json:"lv_tags"`
		} `json:"lv"`
	}
	o, err := h.report(ctx, &volumes, "lvs", "--options", "lv_name,lv_uuid,lv_size,lv_attr,lv_tags", vg)
	if err != nil {
		return nil, h.lvmError(ref, "lvs", o, err)
	}
	if o.code != 0 {
		if _, err := h.space(ctx, ref); err != nil {
			return nil, err
		}
		return nil, h.lvmError(ref, "lvs", o, nil)
	}
	var list []LVInfo
	for _, lv := range volumes.LV {
		size, err := strconv.ParseInt(lv.Size, 10, 64)
		if err != nil {
			return nil, h.lvmError(ref, "lvs", o, err)
		}
		i := LVInfo{Name: lv.Name, UUID: lv.UUID, Size: size}
		// lvs(8), "The lv_attr bits": the fifth is the state, the sixth whether it is open.
		if len(lv.Attr) > 5 {
			i.Active, i.Open = lv.Attr[4] == 'a', lv.Attr[5] == 'o'
		}
		if lv.Tags != "" {
			i.Tags = strings.Split(lv.Tags, ",")
		}
		i.Incomplete = slices.Contains(i.Tags, h.incompleteTag())
		list = append(list, i)
	}
	return list, nil
}
