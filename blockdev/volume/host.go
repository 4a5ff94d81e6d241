package volume

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// Options is what a Host knows besides what the kernel and lvm2 tell it.
type Options struct {
	// DM defines the volumes of kind DM, Also those that DM doesn't have; it may be nil.
	DM   []Definition
	Also func(name string) (Definition, bool)
	// Mounts are the file systems of kind Mount.
	Mounts []FileSystem
	// Dir is the directory beneath which Mounts are mounted, in MARK/NAME.
	Dir string
	// Resolve finds a server's addresses, and Uevents opens the socket of ListenUevents, in a
	// process that can't; nil does it here.
	Resolve func(ctx context.Context, name string) ([]netip.Addr, error)
	Uevents func(ctx context.Context) (*os.File, error)
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
	// Under is the volume whose device Data and Hash are; nil: they are paths. Whoever
	// activates this one activates Under first, and releases it afterwards.
	Under      *Ref
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
	mark    string
	isAlone atomic.Bool                    // see alone
	onTool  func(command string, o output) // a test listens

	mu      sync.Mutex // guards below
	options Options
	turns   map[Ref]chan struct{} // see do
	mounted map[Ref]string        // the source of each mount that is known to be of it
	held    map[Ref]bool          // mounts whose last Release found them held
	uuids   map[Ref]string        // see DeviceUUID
}

// NewHost returns a Host. mark is in the uuids of the devices that it makes: they are
// told from strangers' by it, also after a restart. It is letters and digits.
func NewHost(mark string, o Options) *Host {
	return &Host{mark: mark, options: o, turns: make(map[Ref]chan struct{}), mounted: make(map[Ref]string), held: make(map[Ref]bool), uuids: make(map[Ref]string)}
}

// Configure takes new settings. Active volumes stay as they are.
func (h *Host) Configure(o Options) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.options = o
}

// Volume returns the volume of a reference, active or not. It asks nobody whether the
// volume exists: Activate does. The error is an *Error for a name that can't be one.
func (h *Host) Volume(ref Ref) (Volume, error) {
	switch ref.Kind {
	case LVM:
		return orError[*lvmVolume](h.lvmVolume(ref))
	case DM:
		return orError[*dmVolume](h.dmVolume(ref))
	case Mount:
		return orError[*mountVolume](h.mountVolume(ref))
	case Loop, Block, File:
		if !filepath.IsAbs(ref.Name) || filepath.Clean(ref.Name) != ref.Name || strings.ContainsRune(ref.Name, 0) {
			return nil, badName(ref, "its name has to be an absolute path, without . and ..")
		}
		if ref.Kind == Loop {
			return &loopVolume{h, ref}, nil
		}
		return &plainVolume{ref}, nil
	}
	return nil, &Error{Ref: ref, Reason: BadName, Detail: "there is no kind of volume " + string(ref.Kind), Next: "use lvm:VG/LV, dm:NAME or a path"}
}

// orError keeps a nil pointer from becoming a Volume that isn't nil.
func orError[V Volume](v V, err error) (Volume, error) {
	if err != nil {
		return nil, err
	}
	return v, nil
}

// Orphans lists the volumes that are active and carry this host's mark, whoever may be
// using them: device-mapper devices by their uuid, loop devices by their lo_file_name,
// and what is mounted beneath Options.Dir.
func (h *Host) Orphans(context.Context) ([]Ref, error) {
	var refs []Ref
	for _, d := range h.ours() {
		refs = append(refs, h.refOf(d))
	}
	minors, err := loops(h.mark, func(string) bool { return true })
	for minor := range minors {
		refs = append(refs, Ref{Kind: Loop, Name: loopBacking(minor)})
	}
	mounts, e := h.mounts()
	for _, name := range mounts {
		refs = append(refs, Ref{Kind: Mount, Name: name})
	}
	slices.SortFunc(refs, func(a, b Ref) int { return strings.Compare(a.String(), b.String()) })
	return refs, errors.Join(err, e)
}

// ours are the device-mapper devices that carry this host's mark.
func (h *Host) ours() []dmDevice {
	names, _ := dmNames(dmNamePrefix) // no device-mapper: no devices
	var all []dmDevice
	for _, name := range names {
		d, ok, err := dmStatus(name)
		if err == nil && ok && strings.HasPrefix(d.UUID, h.uuidPrefix()) && dmNamePrefix+d.UUID[len(h.uuidPrefix()):] == name {
			all = append(all, d)
		}
	}
	return all
}

func (h *Host) uuidPrefix() string { return dmUUIDPrefix + h.mark + "-" }

// refOf is the volume of a device of ours.
func (h *Host) refOf(d dmDevice) Ref {
	return Ref{Kind: DM, Name: strings.TrimPrefix(d.UUID, h.uuidPrefix())}
}

func (h *Host) definition(name string) (Definition, bool) {
	h.mu.Lock()
	o := h.options
	h.mu.Unlock()
	for _, d := range o.DM {
		if d.Name == name {
			return d, true
		}
	}
	if o.Also != nil {
		return o.Also(name)
	}
	return Definition{}, false
}

// Under is the volume that has to be active as long as one of kind DM is; nil for most.
func (h *Host) Under(ref Ref) *Ref {
	if ref.Kind != DM {
		return nil
	}
	if d, ok := h.definition(ref.Name); ok && d.Verity != nil {
		return d.Verity.Under
	}
	return nil
}

func (h *Host) fileSystem(name string) (FileSystem, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, f := range h.options.Mounts {
		if f.Name == name {
			return f, true
		}
	}
	return FileSystem{}, false
}

// dir is the directory of this host's mounts: a mount bears no mark but its place.
func (h *Host) dir() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.options.Dir == "" {
		return ""
	}
	return filepath.Join(h.options.Dir, h.mark)
}
