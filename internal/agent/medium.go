package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/blockdev/volume"
	"github.com/trayd/trayd/internal/library"
	"github.com/trayd/trayd/iso"
)

// source is where a medium's name leads: to a file or device that is opened at once,
// or to a volume that has to be active first.
type source struct {
	file   *os.File
	medium *Medium
	volume volume.Volume  // nil for a plain file or device
	place  *library.Place // of an image of the library; nil for others
}

// open finds and opens what a medium's name means, as far as nothing has to be turned
// on for it.
func (a *Agent) openMedium(name string, o *Options, validate bool) (source, error) {
	kind, rest, ok := strings.Cut(name, ":")
	switch {
	case name == "":
		return source{}, newError(BadRequest, "name a medium: the path of an ISO file beneath "+list(o.MediaRoots)+", or a volume such as lvm:VG/LV", "no medium was named")
	case !ok, strings.Contains(kind, "/"):
	case kind == string(volume.LVM), kind == string(volume.DM):
		return a.openVolume(name, volume.Ref{Kind: volume.Kind(kind), Name: rest}, "")
	case kind == string(volume.Loop):
		f, path, err := openBeneathRoots(rest, o.MediaRoots)
		if err != nil {
			return source{}, err
		}
		defer f.Close()
		if _, err := identify(f, name, path); err != nil {
			return source{}, err
		}
		// By its own path: a link may be gone when the volume is to be released.
		if path, err = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd())); err != nil {
			return source{}, mediumError(name, err)
		}
		return a.openVolume(name, volume.Ref{Kind: volume.Loop, Name: path}, "")
	case kind == string(volume.Block):
		return a.openFile(name, rest, o.MediaRoots, validate)
	case kind == "image":
		place, err := a.images.Find(rest)
		return a.openPlace(name, place, err, validate)
	case kind == "pdiv":
		place, err := a.images.FindPDIV(rest)
		return a.openPlace(name, place, err, validate)
	}
	return a.openFile(name, name, o.MediaRoots, validate)
}

// openFile opens a file or a device beneath one of the roots, and says what it is. A
// relative path is looked for in every root.
//
// Neither ".." nor a symbolic link leads out of the roots, not even one that is exchanged
// meanwhile.
// What is inspected is the descriptor that QEMU gets.
func (a *Agent) openFile(name, path string, roots []string, validate bool) (source, error) {
	f, path, err := openBeneathRoots(path, roots)
	if err != nil {
		return source{}, err
	}
	m, err := inspect(f, name, path, 0, validate, &a.prober)
	if err != nil {
		f.Close()
		return source{}, err
	}
	return source{file: f, medium: m}, nil
}

// openPlace opens an image where the library says that it lies.
func (a *Agent) openPlace(name string, p library.Place, err error, validate bool) (source, error) {
	switch {
	case err != nil:
		return source{}, imageError(name, err)
	case p.Volume == nil:
		src, err := a.openKnown(name, p, validate)
		src.place = &p
		return src, err
	}
	src, err := a.openVolume(name, *p.Volume, p.Inside)
	if err == nil {
		src.medium.Capacity, src.place = p.Size, &p
	}
	return src, err
}

// openKnown is openFile for an image, which was inspected when it was added: as long as the
// file is the one that it was then it isn't read again.
func (a *Agent) openKnown(name string, p library.Place, validate bool) (source, error) {
	f, path, err := openBeneathRoots(p.Path, []string{p.Root})
	if err != nil {
		return source{}, err
	}
	var m *Medium
	if p.Known != nil && p.Known.Seen.Is(f) {
		if m, err = identify(f, name, path); err == nil {
			m.VolumeID = p.Known.VolumeID
		}
	} else {
		m, err = inspect(f, name, path, 0, validate, &a.prober)
	}
	if err != nil {
		f.Close()
		return source{}, err
	}
	return source{file: f, medium: m}, nil
}

// openVolume finds a volume. What it holds is known once it is active.
func (a *Agent) openVolume(name string, ref volume.Ref, inside string) (source, error) {
	v, err := a.volumes.storage.Volume(ref)
	if err != nil {
		return source{}, volumeError(name, err)
	}
	return source{volume: v, medium: &Medium{Name: name, Volume: &ref, Inside: inside}}, nil
}

func openBeneathRoots(name string, roots []string) (*os.File, string, error) {
	if !filepath.IsAbs(name) {
		return openInSomeRoot(name, roots)
	}
	path := filepath.Clean(name)
	for range 2 {
		root, rel, ok := rootOf(path, roots)
		if !ok {
			return nil, "", outsideRoots(name, roots)
		}
		f, err := volume.OpenBeneath(root, rel)
		switch {
		case err == nil:
			return f, path, nil
		case !errors.Is(err, unix.EXDEV):
			return nil, "", mediumError(name, err)
		}
		// A link led out of this root. It may lead into another root, or be an
		// absolute link to a place in the same one: follow it by name once, and
		// let OpenBeneath judge the place where it ends.
		resolved, err := filepath.EvalSymlinks(path)
		if err != nil {
			return nil, "", mediumError(name, err)
		}
		if resolved == path {
			break
		}
		path = resolved
	}
	return nil, "", outsideRoots(name, roots)
}

// openInSomeRoot opens a relative name in the one root that has it.
func openInSomeRoot(name string, roots []string) (*os.File, string, error) {
	if !filepath.IsLocal(name) {
		return nil, "", outsideRoots(name, roots)
	}
	var found []string
	for _, root := range roots {
		if _, err := os.Lstat(filepath.Join(root, name)); err == nil {
			found = append(found, filepath.Join(root, name))
		}
	}
	switch len(found) {
	case 0:
		return nil, "", newError(NoSuchMedium, "give the file's whole path, or put it beneath a media root",
			"no medium %s in %s", name, list(roots))
	case 1:
		return openBeneathRoots(found[0], roots)
	}
	return nil, "", newError(BadRequest, "give the whole path of the one you mean",
		"medium %s is in several places: %s", name, strings.Join(found, ", "))
}

// rootOf finds the innermost root that a clean, absolute path lies beneath.
func rootOf(path string, roots []string) (root, rel string, ok bool) {
	for _, r := range roots {
		r = filepath.Clean(r)
		rest, err := filepath.Rel(r, path)
		if err == nil && filepath.IsLocal(rest) && rest != "." && len(r) > len(root) {
			root, rel, ok = r, rest, true
		}
	}
	if ok {
		return root, rel, ok
	}
	// A root may itself be reached by a link, such as /srv -> /data/srv. The others are
	// not looked at unless they must be: one may be on a file system that doesn't answer.
	for _, r := range roots {
		if real, err := filepath.EvalSymlinks(r); err == nil && real != r {
			rest, err := filepath.Rel(real, path)
			if err == nil && filepath.IsLocal(rest) && rest != "." && len(real) > len(root) {
				root, rel, ok = real, rest, true
			}
		}
	}
	return root, rel, ok
}

// identify says which file or device is open, and refuses what can't be a disc.
func identify(f *os.File, name, path string) (*Medium, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, mediumError(name, err)
	}
	m := &Medium{Name: name, Path: path, Size: st.Size(), Modified: st.ModTime().UTC()}
	switch {
	case st.IsDir():
		return nil, newError(Unreadable, "name the ISO file itself", "medium %s is a directory", name)
	case st.Mode().Type() == fs.ModeDevice: // a block device: its size is where it ends
		if m.Size, err = f.Seek(0, io.SeekEnd); err != nil {
			return nil, mediumError(name, err)
		}
	case !st.Mode().IsRegular():
		return nil, newError(Unreadable, "use a regular file or a block device", "medium %s is neither a regular file nor a block device (%s)", name, st.Mode().Type())
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		m.Dev, m.Inode = sys.Dev, sys.Ino
	}
	return m, nil
}

// inspect says what an open file is, and refuses what is no disc. capacity is the disc's
// exact size where its device is larger; 0 takes all of it.
func inspect(f *os.File, name, path string, capacity int64, validate bool, prober *iso.Prober) (*Medium, error) {
	m, err := identify(f, name, path)
	if err != nil {
		return nil, err
	}
	if 0 < capacity && capacity < m.Size {
		m.Size, m.Capacity = capacity, capacity
	}
	info, err := prober.Probe(f, m.Size)
	m.VolumeID = info.VolumeID
	if err == nil || !validate {
		return m, nil
	}
	var cut *iso.TruncatedError
	switch {
	case errors.As(err, &cut):
		return nil, newError(Truncated, "download it again and compare its checksum", "medium %s is %w", name, err)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EIO):
		return nil, mediumError(name, err)
	}
	return nil, newError(NotADisc, "use an ISO 9660 or UDF image; root may insert it all the same with --no-validate",
		"medium %s: %w", name, err)
}

// inspectVolume opens and inspects the disc on an active volume. target is what is known
// of it before; the file is the caller's to close.
func (a *Agent) inspectVolume(ctx context.Context, v volume.Volume, target *Medium, validate bool) (*os.File, *Medium, error) {
	f, err := v.Open(ctx, target.Inside)
	if err != nil {
		return nil, nil, volumeError(target.Name, err)
	}
	type inspected struct {
		medium *Medium
		err    error
	}
	seen := make(chan inspected, 1)
	go func() {
		m, err := inspect(f, target.Name, f.Name(), target.Capacity, validate, &a.prober)
		seen <- inspected{m, err}
	}()
	select {
	case got := <-seen:
		if got.err != nil {
			f.Close()
			return nil, nil, got.err
		}
		m := got.medium
		m.Volume, m.Inside, m.Foreign = target.Volume, target.Inside, target.Foreign
		if !m.Foreign {
			m.DeviceUUID = a.volumes.deviceUUID(*m.Volume)
		}
		return f, m, nil
	case <-ctx.Done(): // a device that doesn't answer can't be waited for; it closes when it does
		go func() { <-seen; f.Close() }()
		return nil, nil, newError(Unreadable, "is its device still there? nothing was changed in the machine",
			"medium %s could not be read within %s", target.Name, activateLimit)
	}
}

// complete fills in what a record doesn't say of its disc when trayd died between the
// disc's inspection and the outcome. What can't be found out now stays unknown: the
// disc is in all the same.
func (a *Agent) complete(ctx context.Context, in *Loaded) *Loaded {
	if in == nil || in.Medium.Volume == nil || in.Medium.Path != "" {
		return in
	}
	v, err := a.volumes.storage.Volume(*in.Medium.Volume)
	if err != nil {
		return in
	}
	f, m, err := a.inspectVolume(ctx, v, &in.Medium, false)
	if err != nil {
		a.log.Warn("the disc that was found in the drive can't be inspected", "medium", in.Medium.Name, "error", err)
		return in
	}
	f.Close()
	known := *in
	known.Medium = *m
	return &known
}

// imageError is the error of an image that can't be had.
func imageError(name string, err error) error {
	var e *library.Error
	if !errors.As(err, &e) {
		return newError(Unreadable, "see `trayctl image ls`", "medium %s: %w", name, err)
	}
	code := e.Code
	switch code {
	case library.NoSuchPool:
		code = NoSuchMedium
	case NoSuchMedium, BadRequest, ImageInUse, ImageNotReady, NotADisc, NotADisk:
	default:
		code = Unreadable
	}
	return newError(code, e.Next, "medium %s: %w", name, err)
}

// volumeCodes are those of the reasons why a volume can't be used; all others are
// Unreadable.
var volumeCodes = map[volume.Reason]Code{
	volume.NoSuchGroup:  NoSuchGroup,
	volume.NoSuchVolume: NoSuchVolume,
	volume.Undefined:    NoSuchVolume,
	volume.PartialGroup: GroupPartial,
	volume.Exported:     GroupExported,
	volume.Snapshot:     VolumeSnapshot,
	volume.Thin:         VolumeThin,
	volume.BadName:      BadRequest,
}

// volumeError is the error of a medium whose volume can't be had.
func volumeError(name string, err error) error {
	var e *volume.Error
	if !errors.As(err, &e) {
		return newError(Unreadable, "see `trayctl volumes`", "medium %s can't be activated: %w", name, err)
	}
	code, ok := volumeCodes[e.Reason]
	if !ok {
		code = Unreadable
	}
	if e.Ref.String() == name {
		return newError(code, e.Next, "medium %s: %s", name, e.Detail)
	}
	return newError(code, e.Next, "medium %s: %w", name, err)
}

func mediumError(name string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return newError(NoSuchMedium, "check the path on the host where trayd runs", "no medium %s: %w", name, err)
	case errors.Is(err, fs.ErrPermission):
		return newError(Unreadable, "let the user that trayd runs as read the file and its directories", "medium %s can't be opened: %w", name, err)
	case errors.Is(err, syscall.ELOOP):
		return newError(Unreadable, "mend the symbolic link", "medium %s can't be opened: %w", name, err)
	}
	return newError(Unreadable, "see that the file can be read on the host", "medium %s can't be read: %w", name, err)
}

func outsideRoots(name string, roots []string) error {
	return newError(OutsideRoots, "move it beneath a media root, or add its directory to media_roots in trayd.toml",
		"medium %s is outside the media roots (%s)", name, list(roots))
}

func list(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}
