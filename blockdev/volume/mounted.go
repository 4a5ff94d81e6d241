package volume

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// mounted is one line of mountinfo.
type mounted struct {
	device      uint64
	root, point string
	readOnly    bool
	source      string // of an NFS mount: SERVER:/EXPORT
}

// readMounts reads this process's mounts (proc_pid_mountinfo(5)).
func readMounts() ([]mounted, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var all []mounted
	for _, line := range strings.Split(string(b), "\n") {
		f := strings.Fields(line)
		if len(f) < 6 {
			continue
		}
		var major, minor uint32
		if _, err := fmt.Sscanf(f[2], "%d:%d", &major, &minor); err != nil {
			continue
		}
		m := mounted{device: unix.Mkdev(major, minor), root: unescape.Replace(f[3]), point: unescape.Replace(f[4])}
		m.readOnly = strings.HasPrefix(f[5]+",", "ro,")
		// Any number of optional fields, then "-", type, source, options.
		if dash := slices.Index(f[6:], "-"); dash >= 0 && len(f) > 6+dash+2 {
			m.source = unescape.Replace(f[6+dash+2])
		}
		all = append(all, m)
	}
	return all, nil
}

var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// active reports whether something is mounted there.
func (v *mountVolume) active() (bool, error) {
	_, active, err := v.look()
	return active, err
}

// look returns what is mounted there.
func (v *mountVolume) look() (m mounted, active bool, err error) {
	all, err := readMounts()
	if err != nil {
		return m, false, v.failed(err, "let trayd read /proc")
	}
	point := v.point()
	for _, other := range all {
		if other.point == point {
			m, active = other, true // the last one is on top
		}
	}
	return m, active, nil
}

// same says whether what is mounted is of the source that the configuration names: it may
// have been changed since.
func (v *mountVolume) same(ctx context.Context, f FileSystem, m mounted) error {
	v.host.noteHeld(v.ref, false) // used anew: the next release is a first one
	switch v.host.mountedFrom(v.ref) {
	case f.Source:
		return nil
	case "": // mounted by the trayd before
		if same, err := v.isOf(ctx, f, m); err != nil || same {
			if same {
				v.host.noteMounted(v.ref, f.Source)
			}
			return err
		}
	}
	return &Error{
		Ref: v.ref, Reason: Damaged, Detail: "another source is mounted than " + f.Source + ", which the configuration names now",
		Next: "eject its discs everywhere so that it is unmounted, or undo the change of the configuration",
	}
}

// isOf compares a mount with a source.
func (v *mountVolume) isOf(ctx context.Context, f FileSystem, m mounted) (bool, error) {
	if isNFS(f) {
		return strings.TrimRight(m.source, "/") == strings.TrimRight(f.Source, "/"), nil
	}
	device, err := v.find(ctx, f.Source)
	if err != nil {
		return false, err
	}
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil {
		return false, v.absent(f, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		resolved, err := filepath.EvalSymlinks(device)
		return err == nil && unix.Major(m.device) == loopMajor && loopBacking(int(unix.Minor(m.device))) == resolved, nil
	}
	return st.Rdev == m.device, nil
}

func (v *mountVolume) absent(f FileSystem, err error) error {
	return &Error{Ref: v.ref, Reason: NotHere, Detail: fmt.Sprintf("%s is not here: %v", f.Source, err), Next: "attach the disk, or correct the pool's source", Err: err}
}

// mountedFrom is the source of a mount as far as it is known.
func (h *Host) mountedFrom(ref Ref) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.mounted[ref]
}

func (h *Host) noteMounted(ref Ref, source string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mounted[ref] = source
	if source == "" {
		delete(h.mounted, ref)
	}
}

func (h *Host) wasHeld(ref Ref) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.held[ref]
}

func (h *Host) noteHeld(ref Ref, held bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if held {
		h.held[ref] = true
	} else {
		delete(h.held, ref)
	}
}
