package agent

import (
	"slices"
	"time"

	"github.com/trayd/trayd/blockdev"
	"github.com/trayd/trayd/blockdev/volume"
)

// Record is what is durable about one drive of one machine: what we put in and
// what we are about to do. It is written before the first touch and after the
// last; QEMU is asked for everything else.
type Record struct {
	VM    string `json:"vm"`
	Drive string `json:"drive"`
	// Process is the QEMU that the record speaks of. Another process of the same
	// name has none of our discs.
	Process Process `json:"process"`
	// Model and Bus are what the drive is in that process, so that a restart with many
	// machines needn't ask each of them again.
	Model string       `json:"model,omitempty"`
	Bus   blockdev.Bus `json:"bus,omitempty"`
	// Loaded is the disc that we put in and that is in, as far as we know.
	Loaded *Loaded `json:"loaded,omitempty"`
	// Change is what is under way.
	Change *Change `json:"change,omitempty"`
	// Asked is set while a guest may still answer an eject request that nobody
	// wants answered any more. A tray that it opens is closed again.
	Asked *Asked `json:"asked,omitempty"`
	// Releasing are the volumes of earlier discs that this drive doesn't use any more
	// and that are still to be released, unless another drive uses them.
	Releasing []Releasing `json:"releasing,omitempty"`
	// Last is how the last operation ended, for people.
	Last *Outcome `json:"last,omitempty"`
}

// Releasing is a volume that is to be released.
type Releasing struct {
	Volume     volume.Ref `json:"volume"`
	DeviceUUID string     `json:"device_uuid,omitempty"` // see Medium
	Since      time.Time  `json:"since"`
}

// Medium is a disc, as it was when we opened it.
type Medium struct {
	// Name is the medium as it was asked for, Path the file that was opened.
	Name string `json:"name"`
	Path string `json:"path"`
	// Dev, Inode, Size and Modified tell this file from another of that path.
	Dev      uint64    `json:"dev"`
	Inode    uint64    `json:"inode"`
	Size     int64     `json:"size"`
	Modified time.Time `json:"modified"`
	VolumeID string    `json:"volume_id,omitempty"`
	// Volume is what has to be active while the disc is in; nil for a plain file or
	// device. Path, Dev and the others above are known once it has been activated.
	Volume *volume.Ref `json:"volume,omitempty"`
	// DeviceUUID tells the Volume that trayd has activated, or the one that it stands on,
	// from another that has its name by now: device-mapper's name for it, which stays.
	DeviceUUID string `json:"device_uuid,omitempty"`
	// Inside is the file's path in a Volume that is a file system.
	Inside string `json:"inside,omitempty"`
	// Capacity is the disc's exact size in bytes where its device is larger; 0: all of it.
	Capacity int64 `json:"capacity,omitempty"`
	// Foreign is set when somebody else had activated the volume: it is left active.
	Foreign bool `json:"foreign,omitempty"`
}

// same reports whether m and o are the same file with the same contents, as far
// as the file system tells. A volume that is in a drive is the same as long as it has
// the same name, and hasn't been renamed: see Operation.stillNamed.
func (m *Medium) same(o *Medium) bool {
	if m.Volume != nil || o.Volume != nil {
		return m.Volume != nil && o.Volume != nil && *m.Volume == *o.Volume && m.Inside == o.Inside
	}
	return m.Path == o.Path && m.Dev == o.Dev && m.Inode == o.Inode && m.Size == o.Size && m.Modified.Equal(o.Modified)
}

// Loaded is a disc of ours in a drive.
type Loaded struct {
	Medium Medium    `json:"medium"`
	Node   string    `json:"node"` // the node's name says which operation put it there
	Since  time.Time `json:"since"`
}

// Kind is what a change does to the drive.
type Kind string

// The kinds of change. A change of discs is loading too: it ends with the new
// disc in or with the old one.
const (
	Loading  Kind = "loading"
	Ejecting Kind = "ejecting"
)

// Change is an operation that has begun to touch the drive, or is about to.
type Change struct {
	ID    string    `json:"id"`
	Verb  string    `json:"verb"` // what the user said: insert, change, eject
	Kind  Kind      `json:"kind"`
	By    string    `json:"by"` // who asked; ByGuest when the guest did
	Since time.Time `json:"since"`
	// Target and Node are the disc to be loaded and the name of its node.
	Target *Medium `json:"target,omitempty"`
	Node   string  `json:"node,omitempty"`
	// From is what was in the drive at the time: its node, its file, whether
	// the tray was open.
	From Before `json:"from"`
	// Stepwise is set when the change goes through a drive that is empty for a
	// moment, so that an empty drive can be our own doing.
	Stepwise bool `json:"stepwise,omitempty"`
	// Asked is set when the guest has been asked to eject, or is about to be, and
	// has not been seen to answer.
	Asked bool `json:"asked,omitempty"`
}

// Before is what was in the drive before a change.
type Before struct {
	Node     string `json:"node,omitempty"`
	File     string `json:"file,omitempty"`
	TrayOpen bool   `json:"tray_open,omitempty"`
}

// ByGuest is Change.By for an eject that the guest began.
const ByGuest = "guest"

// Asked is a withdrawn eject request.
type Asked struct {
	Operation string `json:"operation"`
	Node      string `json:"node"` // the disc that was in; "" for none
}

// aim gives the change a target that more is known of.
func (r *Record) aim(target *Medium) {
	c := *r.Change
	c.Target = target
	r.Change = &c
}

// setAsked says whether an answer of the guest's is to come.
func (r *Record) setAsked(asked bool) {
	if r.Change != nil && r.Change.Asked != asked {
		c := *r.Change
		c.Asked = asked
		r.Change = &c
	}
}

// empty reports whether the record says nothing that recovery needs.
func (r *Record) empty() bool { return r.idle() && len(r.Releasing) == 0 }

// idle reports whether the record says nothing of QEMU.
func (r *Record) idle() bool {
	return r.Loaded == nil && r.Change == nil && r.Asked == nil
}

// uses lists the media whose volumes have to be active for the record's sake.
func (r *Record) uses() []*Medium {
	var media []*Medium
	if r.Loaded != nil && r.Loaded.Medium.Volume != nil {
		media = append(media, &r.Loaded.Medium)
	}
	if r.Change != nil && r.Change.Target != nil && r.Change.Target.Volume != nil {
		media = append(media, r.Change.Target)
	}
	return media
}

// usesVolume reports whether the record needs the volume active.
func (r *Record) usesVolume(v volume.Ref) bool {
	return slices.ContainsFunc(r.uses(), func(m *Medium) bool { return *m.Volume == v })
}

// releases reports whether the volume is queued for release.
func (r *Record) releases(v volume.Ref) bool {
	return slices.ContainsFunc(r.Releasing, func(q Releasing) bool { return q.Volume == v })
}

// letGo queues for release what the record used before and doesn't use now. Volumes
// that somebody else had activated are left alone.
func (r *Record) letGo(before *Record, now time.Time) {
	r.keep()
	r.Releasing = slices.Clone(r.Releasing)
	for _, m := range before.uses() {
		if !m.Foreign && !r.releases(*m.Volume) && !r.usesVolume(*m.Volume) {
			r.Releasing = append(r.Releasing, Releasing{Volume: *m.Volume, DeviceUUID: m.DeviceUUID, Since: now})
		}
	}
	if len(r.Releasing) == 0 {
		r.Releasing = nil
	}
}

// keep takes off the queue what the record uses again.
func (r *Record) keep() {
	r.Releasing = slices.DeleteFunc(slices.Clone(r.Releasing), func(q Releasing) bool { return r.usesVolume(q.Volume) })
	if len(r.Releasing) == 0 {
		r.Releasing = nil
	}
}

// unsure reports whether nodes and descriptors of ours may lie outside the drive: a
// change is or was under way, or our disc was taken out by somebody else, who leaves
// behind a node that blockdev-add made.
func (r *Record) unsure(node string) bool {
	return r.Change != nil || r.Asked != nil || r.Loaded != nil && r.Loaded.Node != node
}

// recordKey is the record's key in the journal.
func recordKey(vm, drive string) string { return recordPrefix + vm + "/" + drive }

const recordPrefix = "drive/"
