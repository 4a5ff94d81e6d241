package volume

import (
	"context"
	"sync"
)

// Options is what a Host knows besides what the kernel and lvm2 tell it.
type Options struct {
	// DM defines the volumes of kind DM.
	DM []Definition
	// Mounts are the file systems of kind Mount.
	Mounts []FileSystem
	// Dir is the directory beneath which Mounts are mounted, each in one of its name.
	Dir string
}

// Definition is a device-mapper volume: either Linear or Verity.
type Definition struct {
	Name   string
	Linear []Extent
	Verity *Verity
}

// Extent is a piece of a device, or of a file, which a loop device makes one. Bytes,
// in multiples of 512 (a sector).
type Extent struct {
	Device string
	Start  int64
	Length int64 // 0: to the device's end
}

// Verity is a device whose blocks are checked on every read against a tree of hashes,
// as veritysetup(8) makes it.
type Verity struct {
	Data, Hash string // devices or files
	HashOffset int64  // of the superblock in Hash, in bytes
	RootHash   string // in hexadecimal
}

// FileSystem is one that is mounted read-only while something in it is used.
type FileSystem struct {
	Name    string
	Source  string // a device, LABEL=…, UUID=… or SERVER:/EXPORT
	Type    string // "" finds out
	Options string // as mount(8) takes them
}

// Host is the volumes of this host. Its methods are safe for concurrent use.
type Host struct {
	mark string

	mu      sync.Mutex // guards below
	options Options
}

// NewHost returns a Host. mark is in the uuids of the devices that it makes: they are
// told from strangers' by it, also after a restart. It is letters and digits.
func NewHost(mark string, o Options) *Host { return &Host{mark: mark, options: o} }

// Configure takes new settings. Active volumes stay as they are.
func (h *Host) Configure(o Options) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.options = o
}

// Volume returns the volume of a reference, active or not. It asks nobody whether the
// volume exists: Activate does. The error is an *Error for a name that can't be one.
func (h *Host) Volume(ref Ref) (Volume, error) {
	return nil, &Error{Ref: ref, Reason: BadName, Detail: "there is no kind of volume " + string(ref.Kind), Next: "use lvm:VG/LV, dm:NAME or a path"}
}

// Orphans lists the volumes that are active and carry this host's mark, whoever may be
// using them.
func (h *Host) Orphans(context.Context) ([]Ref, error) { return nil, nil }

// LVInfo is what lvm2 says of a logical volume.
type LVInfo struct {
	Name       string
	Size       int64 // bytes
	Active     bool
	Incomplete bool // made by CreateLV, and FinishLV was not called
}
