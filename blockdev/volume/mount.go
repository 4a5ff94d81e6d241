package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/u-root/u-root/pkg/mount"
	"golang.org/x/sys/unix"
)

// mountVolume is a file system that is mounted read-only beneath Options.Dir.
type mountVolume struct {
	host *Host
	ref  Ref
}

func (h *Host) mountVolume(ref Ref) (*mountVolume, error) {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."
	if ref.Name == "" || strings.Trim(ref.Name, letters) != "" || strings.HasPrefix(ref.Name, ".") || len(ref.Name) > 255 {
		return nil, badName(ref, "its name has to be letters, digits, '-', '_' and '.', and not begin with '.'")
	}
	return &mountVolume{h, ref}, nil
}

func (v *mountVolume) Ref() Ref { return v.ref }

// point is where it is mounted. Options.Dir may be a link: mountinfo knows none.
func (v *mountVolume) point() string {
	dir := v.host.dir()
	if resolved, err := filepath.EvalSymlinks(dir); err == nil {
		dir = resolved
	}
	return filepath.Join(dir, v.ref.Name)
}

// mounts are the names of what is mounted beneath Options.Dir.
func (h *Host) mounts() ([]string, error) {
	if h.dir() == "" {
		return nil, nil
	}
	all, err := readMounts()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, m := range all {
		v := &mountVolume{h, Ref{Kind: Mount, Name: filepath.Base(m.point)}}
		if m.point == v.point() {
			names = append(names, v.ref.Name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

func (v *mountVolume) failed(err error, next string) error {
	return &Error{Ref: v.ref, Reason: Failed, Detail: err.Error(), Next: next, Err: err}
}

func (v *mountVolume) State(context.Context) (State, error) {
	active, err := v.active()
	return State{Active: active}, err
}

func (v *mountVolume) Activate(ctx context.Context) (bool, error) {
	made := false
	err := v.host.do(ctx, v.ref, func(ctx context.Context) error { return v.activate(ctx, &made) }, func() {
		if made {
			_ = v.release(context.Background())
		}
	})
	return err == nil && made, err
}

func (v *mountVolume) activate(ctx context.Context, made *bool) error {
	m, active, err := v.look()
	if err != nil {
		return err
	}
	f, ok := v.host.fileSystem(v.ref.Name)
	if active && ok {
		return v.same(ctx, f, m)
	}
	if !ok {
		return &Error{Ref: v.ref, Reason: Undefined, Detail: "the configuration defines no such pool of type mount", Next: "add a [[pool]] of this name, or use one that is there"}
	}
	if v.host.dir() == "" {
		return &Error{Ref: v.ref, Reason: Undefined, Detail: "there is no directory to mount it in", Next: "correct the configuration"}
	}
	flags, data := mountOptions(f.Options)
	point := v.point()
	if err := os.MkdirAll(point, 0o700); err != nil {
		return v.failed(err, "let trayd write to "+v.host.dir())
	}
	if isNFS(f) {
		err = v.mountNFS(ctx, f, point, flags, data)
	} else {
		err = v.mountDevice(ctx, f, point, flags, data)
	}
	if err != nil {
		_ = os.Remove(point) // only an empty directory goes
		return err
	}
	*made = true
	v.host.noteMounted(v.ref, f.Source)
	return nil
}

// restricted is how everything is mounted, whatever the options say: what is on a
// removable disk is read as discs, and nothing else.
const restricted = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// mountOptions splits options as mount(8) takes them into flags and what the file
// system gets. Those that ask for less than restricted don't get it, those that are for
// mount(8) and systemd alone are dropped.
func mountOptions(s string) (flags uintptr, data string) {
	known := map[string]uintptr{
		"noatime": unix.MS_NOATIME, "nodiratime": unix.MS_NODIRATIME, "relatime": unix.MS_RELATIME, "strictatime": unix.MS_STRICTATIME,
		"lazytime": unix.MS_LAZYTIME, "sync": unix.MS_SYNCHRONOUS, "dirsync": unix.MS_DIRSYNC, "silent": unix.MS_SILENT,
	}
	for _, word := range []string{
		"", "ro", "rw", "defaults", "suid", "nosuid", "dev", "nodev", "exec", "noexec", "auto", "noauto", "user", "nouser", "users",
		"owner", "group", "_netdev", "nofail", "async", "atime", "diratime", "loud", "loop",
	} {
		known[word] = 0
	}
	flags = restricted
	var rest []string
	for _, word := range strings.Split(s, ",") {
		flag, ok := known[strings.TrimSpace(word)]
		switch {
		case ok:
			flags |= flag
		case strings.HasPrefix(word, "x-"), strings.HasPrefix(word, "X-"), strings.HasPrefix(word, "comment="):
		default:
			rest = append(rest, strings.TrimSpace(word))
		}
	}
	return flags, strings.Join(rest, ",")
}

// mountDevice mounts a block device, or a file by a loop device that goes away with the
// mount.
func (v *mountVolume) mountDevice(ctx context.Context, f FileSystem, point string, flags uintptr, data string) error {
	device, err := v.find(ctx, f.Source)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil {
		return v.absent(f, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		file, err := openFile(Ref{Kind: File, Name: device})
		if err != nil {
			return v.failed(err, "let trayd read it")
		}
		defer file.Close()
		loop, minor, err := attachLoop(ctx, file, v.host.mark, true)
		if err != nil {
			return v.failed(err, "let trayd use /dev/loop-control and the loop devices")
		}
		defer loop.Close()
		device = fmt.Sprintf("/dev/loop%d", minor)
	}
	if f.Type != "" {
		_, err = mount.Mount(device, point, f.Type, data, flags)
	} else if _, err = mount.TryMount(device, point, data, flags); err != nil && !errors.Is(err, unix.EBUSY) {
		// u-root knows some file systems by their magic numbers; blkid knows the others.
		if o, e := v.host.runTool(ctx, "blkid", "--probe", "--output", "value", "--match-tag", "TYPE", device); e == nil && o.code == 0 {
			_, err = mount.Mount(device, point, strings.TrimSpace(string(o.stdout)), data, flags)
		}
	}
	if errors.Is(err, unix.EBUSY) {
		if other := v.mountedWritable(st.Rdev); other != "" {
			err = bindReadOnly(other, point, flags)
		}
	}
	if err != nil {
		return v.refused(f, err)
	}
	return nil
}

func (v *mountVolume) refused(f FileSystem, err error) error {
	e := &Error{
		Ref: v.ref, Reason: Failed, Detail: fmt.Sprintf("%s can't be mounted: %v", f.Source, err),
		Next: "see the kernel's log (`dmesg`), and the pool's fstype and options", Err: err,
	}
	switch {
	case errors.Is(err, unix.ENODEV):
		e.Reason, e.Next = NotHere, "see the pool's fstype again, or load the kernel's module for it"
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		e.Next = "let trayd mount file systems (CAP_SYS_ADMIN), and read " + f.Source
	}
	return e
}

// mountedWritable is where somebody else has mounted a device. The kernel doesn't mount
// one read-only that it has writable, but it shows that mount at a second place.
func (v *mountVolume) mountedWritable(rdev uint64) string {
	all, _ := readMounts() // then it stays busy
	for _, m := range all {
		if m.device == rdev && m.root == "/" {
			return m.point
		}
	}
	return ""
}

func bindReadOnly(from, point string, flags uintptr) error {
	if _, err := mount.Mount(from, point, "", "", unix.MS_BIND); err != nil {
		return err
	}
	// A bind mount takes its flags only when it is mounted a second time.
	const perMount = restricted | unix.MS_NOATIME | unix.MS_NODIRATIME | unix.MS_RELATIME
	if _, err := mount.Mount("none", point, "", "", unix.MS_REMOUNT|unix.MS_BIND|flags&perMount); err != nil {
		return errors.Join(err, mount.Unmount(point, false, false))
	}
	return nil
}

// find is the device of a source.
func (v *mountVolume) find(ctx context.Context, source string) (string, error) {
	tag, value, ok := strings.Cut(source, "=")
	if !ok || strings.HasPrefix(source, "/") {
		return source, nil
	}
	value = strings.Trim(value, `"`)
	by := map[string]string{"LABEL": "by-label", "UUID": "by-uuid", "PARTLABEL": "by-partlabel", "PARTUUID": "by-partuuid"}[tag]
	if by == "" || value == "" {
		return "", &Error{Ref: v.ref, Reason: BadName, Detail: fmt.Sprintf("%q is no source", source), Next: "use a device, LABEL=..., UUID=... or server:/export"}
	}
	// blkid reads the superblocks now; udev's links are of the time when it looked.
	if o, err := v.host.runTool(ctx, "blkid", "--cache-file", "/dev/null", "--list-one", "--match-token", tag+"="+value, "--output", "device"); err == nil && o.code == 0 {
		if device := strings.TrimSpace(string(o.stdout)); device != "" {
			return device, nil
		}
	}
	if err := ctx.Err(); err != nil {
		return "", late(v.ref, err)
	}
	if device, err := filepath.EvalSymlinks(filepath.Join("/dev/disk", by, udevName(value))); err == nil {
		return device, nil
	}
	return "", &Error{Ref: v.ref, Reason: NotHere, Detail: "no disk here has " + source, Next: "attach the disk; `blkid` shows those that there are"}
}

// udevName writes a label as udev names a link.
func udevName(s string) string {
	const plain = "#+-.:=@_/"
	var b strings.Builder
	for _, c := range []byte(s) {
		if c >= 0x80 || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c != '/' && strings.IndexByte(plain, c) >= 0 {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, `\x%02x`, c)
		}
	}
	return b.String()
}

func (v *mountVolume) Open(ctx context.Context, rel string) (*os.File, error) {
	active, err := v.active()
	if err != nil {
		return nil, err
	}
	if !active {
		return nil, inactive(v.ref)
	}
	if rel == "" || filepath.IsAbs(rel) {
		return nil, badName(v.ref, fmt.Sprintf("%q is no file inside it", rel))
	}
	var f *os.File
	err = v.host.do(ctx, v.ref, func(context.Context) (err error) { // a server may not answer
		f, err = openInside(v.point(), rel)
		return err
	}, func() { f.Close() })
	if err != nil {
		var e *Error
		if errors.As(err, &e) {
			return nil, err
		}
		next := "see the file's name again"
		if !errors.Is(err, fs.ErrNotExist) {
			next = "let trayd read it; links that lead elsewhere are not followed"
		}
		return nil, &Error{Ref: v.ref, Reason: NoSuchVolume, Detail: fmt.Sprintf("the file %s can't be opened: %v", rel, err), Next: next, Err: err}
	}
	return f, nil
}

// openInside opens a regular file that lies beneath dir in the same mount, wherever links say
// that it lies.
func openInside(dir, rel string) (*os.File, error) {
	f, err := OpenBeneath(dir, rel)
	if err != nil {
		return nil, err
	}
	if err := regularIn(dir, f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// regularIn says why a file isn't a regular one in the mount that dir is of.
func regularIn(dir string, f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return errors.New("it is not a file")
	}
	want, err := mountOf(unix.AT_FDCWD, dir)
	if err != nil {
		return err
	}
	got, err := mountOf(int(f.Fd()), "")
	if err == nil && got != want {
		return unix.EXDEV
	}
	return err
}

func (v *mountVolume) Release(ctx context.Context) error {
	return v.host.do(ctx, v.ref, v.release, nil)
}

// release unmounts it, once nobody uses it: never by force and never later. Whoever held
// it at the last try isn't one who holds it for a moment, most likely.
func (v *mountVolume) release(ctx context.Context) error {
	point, wait := v.point(), releaseWait
	if v.host.wasHeld(v.ref) {
		wait = releaseWait / 5
	}
	for refused := false; ; {
		active, err := v.active()
		if err != nil {
			return err
		}
		if !active {
			_ = os.Remove(point) // only an empty directory goes
			v.host.noteMounted(v.ref, "")
			v.host.noteHeld(v.ref, false)
			return nil
		}
		err = await(ctx, wait, func() (bool, error) {
			err := mount.Unmount(point, false, false)
			return !errors.Is(err, unix.EBUSY), err
		})
		switch {
		case ctx.Err() != nil && err != nil:
			return late(v.ref, ctx.Err())
		case errors.Is(err, unix.EBUSY):
			v.host.noteHeld(v.ref, true)
			holders, _ := v.Holders(ctx)
			return &BusyError{Ref: v.ref, Holders: holders}
		case err != nil && (refused || !errors.Is(err, unix.EINVAL)):
			return v.failed(fmt.Errorf("it can't be unmounted: %w", err), "see the kernel's log (`dmesg`), and whether trayd runs in a user namespace (PrivateUsers=)")
		}
		refused = err != nil // EINVAL: not mounted any more, or locked, which the next look tells
	}
}

func (v *mountVolume) Holders(ctx context.Context) ([]Holder, error) {
	active, err := v.active()
	if err != nil || !active {
		return nil, err
	}
	var at unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, v.point(), unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_BASIC_STATS|unix.STATX_MNT_ID, &at); err != nil {
		return nil, v.failed(err, "see the kernel's log (`dmesg`)")
	}
	return processes(ctx, func(s *unix.Statx_t) bool {
		// The file system may be mounted elsewhere, too: there it holds nothing up here.
		if at.Mask&s.Mask&unix.STATX_MNT_ID != 0 {
			return s.Mnt_id == at.Mnt_id
		}
		return s.Dev_major == at.Dev_major && s.Dev_minor == at.Dev_minor
	}), nil
}
