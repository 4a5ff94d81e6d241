package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/trayd/trayd/blockdev"
	"github.com/trayd/trayd/qmp"
)

// prepare does everything that can fail without touching anything: it looks at the
// drive, and resolves, opens and inspects the disc, both at the same time.
func (o *Operation) prepare(ctx context.Context, s *session) (*task, error) {
	d := o.drive
	var (
		got    opened
		disc   = make(chan opened)
		gaveUp = make(chan struct{}) // closed when nobody takes from disc any more
	)
	defer close(gaveUp)
	if o.Verb != Eject {
		go func() {
			src, err := d.vm.a.openMedium(o.Medium, o.opts, !o.req.NoValidate)
			select {
			case disc <- opened{src, err}:
			case <-gaveUp: // the kernel can't be told to stop waiting: it came too late
				if src.file != nil {
					src.file.Close()
				}
			}
		}()
	}
	st, err := o.look(ctx, s, d.id())
	if o.Verb != Eject {
		got = o.await(ctx, disc)
	}
	t := &task{file: got.file, volume: got.volume, place: got.place, id: d.id(), before: st}
	switch {
	case err != nil:
		err = o.cannotLook(s, err)
	case got.err != nil:
		err = o.about(got.err)
	default:
		err = o.check(ctx, s, t, got.medium)
	}
	if err != nil {
		if t.file != nil {
			t.file.Close()
		}
		return nil, err
	}
	return t, nil
}

// opened is a disc, opened and inspected as far as nothing had to be turned on.
type opened struct {
	source
	err error
}

// await waits for the disc to be opened, for a while.
func (o *Operation) await(ctx context.Context, disc <-chan opened) opened {
	slow := time.NewTimer(openLimit)
	defer slow.Stop()
	select {
	case got := <-disc:
		return got
	case <-slow.C:
		return opened{err: newError(Unreadable, "is it on a network file system that doesn't answer? nothing was touched",
			"medium %s could not be opened and read within %s", o.Medium, openLimit)}
	case <-ctx.Done():
		return opened{err: newError(Stopping, "try again when it runs", "trayd is stopping; nothing was touched")}
	}
}

// openLimit is how long opening and inspecting a disc may take. A local disk needs
// microseconds; a network file system that has lost its server never ends.
const openLimit = 20 * time.Second

// about names the operation in the error of one of its parts.
func (o *Operation) about(err error) error {
	var e *Error
	if !errors.As(err, &e) {
		return err
	}
	named := *e
	named.VM, named.Drive, named.Operation = o.VM, o.Drive, o.ID
	named.Detail = fmt.Sprintf("%s of %s/%s: %s", o.Verb, o.VM, o.Drive, e.Detail)
	return &named
}

// cannotLook is the error of a drive that QEMU says nothing about, before anything
// was touched.
func (o *Operation) cannotLook(s *session, err error) error {
	if s.process.stopped() {
		return o.error(Unreachable, fmt.Sprintf("kill -CONT %d", s.process.PID),
			"%s of %s/%s: QEMU (pid %d) is stopped by a signal and doesn't answer; nothing was touched", o.Verb, o.VM, o.Drive, s.process.PID)
	}
	if errors.Is(err, qmp.ErrUnanswered) {
		return o.error(Unreachable, fmt.Sprintf("is its storage stalled? `ps -o stat,wchan %d` shows what it waits for", s.process.PID),
			"%s of %s/%s: QEMU (pid %d) doesn't answer; nothing was touched", o.Verb, o.VM, o.Drive, s.process.PID)
	}
	return o.error(Unreachable, "see `trayctl drives "+o.VM+"`", "%s of %s/%s: the drive can't be looked at: %w; nothing was touched", o.Verb, o.VM, o.Drive, err)
}

// check decides whether the request makes sense for what is in the drive, and fills
// in the change.
func (o *Operation) check(ctx context.Context, s *session, t *task, medium *Medium) error {
	d := o.drive
	d.mu.Lock()
	fixed := d.info.Fixed
	d.mu.Unlock()
	if fixed != "" {
		return o.error(DriveFixed, "see `trayctl drives "+o.VM+"` for the drives that can be changed",
			"drive %s/%s can't be changed while the machine runs: %s", o.VM, o.Drive, fixed)
	}
	rec := d.record()
	if rec.Change != nil || rec.Process != s.process {
		// An earlier operation is not settled, or the record is of another QEMU.
		d.settle(ctx, s, nil)
		if rec = d.record(); rec.Change != nil {
			return o.error(DriveBusy, "trayd goes on asking QEMU; try again when `trayctl drives` shows it settled",
				"drive %s/%s is not settled: what became of operation %s is not known yet", o.VM, o.Drive, rec.Change.ID)
		}
		// What was in the drive before may not be in it after.
		var err error
		if t.before, err = o.look(ctx, s, t.id); err != nil {
			return o.cannotLook(s, err)
		}
	}
	before := t.before
	t.change = Change{
		ID: o.ID, Verb: o.Verb, Kind: Ejecting, By: o.By, Since: time.Now().UTC(),
		From: Before{Node: before.Node(), TrayOpen: before.TrayOpen},
		// A guest that an earlier, withdrawn request asked may still answer, too.
		Asked: o.asks(before) || rec.Asked != nil && !before.TrayOpen,
	}
	t.asked = rec.Asked != nil && !before.TrayOpen
	if before.Medium != nil {
		t.change.From.File = o.fileOf(rec, before)
	}
	if o.Verb == Eject {
		if before.Medium == nil {
			t.nothingToDo = "the drive is empty already"
		}
		return nil
	}
	if o.isIn(rec, before, medium, s) {
		if err := o.stillNamed(ctx, t); err != nil {
			return err
		}
		t.nothingToDo = "this disc is in already"
		return nil
	}
	if o.Verb == Insert && before.Medium != nil {
		return o.error(DriveOccupied, fmt.Sprintf("use `trayctl change %s/%s %s` to replace it", o.VM, o.Drive, o.Medium),
			"drive %s/%s is not empty: %s is in", o.VM, o.Drive, mediumName(rec, before))
	}
	t.change.Kind = Loading
	t.change.Target = medium
	t.change.Node = d.vm.a.mark + o.ID
	bounded, cancel := s.command(ctx)
	defer cancel()
	changer, err := s.changer(bounded, nil)
	if err != nil {
		return o.error(Unreachable, "nothing was touched; try again", "QEMU of %s can't be asked for its commands: %w", o.VM, err)
	}
	t.change.Stepwise = changer.Name() == "stepwise"
	return nil
}

// fileOf is the file of the disc that is in, as far as it could be opened again.
func (o *Operation) fileOf(rec Record, before blockdev.State) string {
	if rec.Loaded != nil && rec.Loaded.Node == before.Node() {
		return rec.Loaded.Medium.Path
	}
	if strings.HasPrefix(before.Medium.File, "/dev/fdset/") || !filepath.IsAbs(before.Medium.File) {
		return ""
	}
	return before.Medium.File
}

// mediumName names what QEMU shows in the drive.
func mediumName(rec Record, st blockdev.State) string {
	if rec.Loaded != nil && rec.Loaded.Node == st.Node() {
		return rec.Loaded.Medium.Name
	}
	return st.Medium.File
}

// isIn reports whether the disc that is asked for is in the closed drive already: by
// our record, or because QEMU holds that very file open under that name.
func (o *Operation) isIn(rec Record, before blockdev.State, m *Medium, s *session) bool {
	if before.Medium == nil || before.TrayOpen {
		return false
	}
	if rec.Loaded != nil && rec.Loaded.Node == before.Node() {
		return rec.Loaded.Medium.same(m)
	}
	held, _ := holdsOpen(s.process.PID, m)
	return held && before.Medium.File == m.Path && before.Medium.ReadOnly && before.Medium.Driver == "raw"
}

// stillNamed refuses the name of a volume that is in and was renamed: it is no disc's now, or
// another's.
func (o *Operation) stillNamed(ctx context.Context, t *task) error {
	if t.volume == nil {
		return nil
	}
	if st, err := t.volume.State(ctx); err == nil && st.Renamed != "" {
		return o.error(NoSuchVolume, fmt.Sprintf("eject %s/%s first, and use the disc's name of now", o.VM, o.Drive),
			"volume %s was renamed to %s, and that is in", t.volume.Ref(), st.Renamed)
	}
	return nil
}

// holdsOpen reports whether a process has the file open, and whether that can be known.
// A path says little: the file there may be another by now.
func holdsOpen(pid int, m *Medium) (held, known bool) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	fds, err := os.ReadDir(dir)
	if err != nil {
		return false, false
	}
	for _, fd := range fds {
		st, err := os.Stat(filepath.Join(dir, fd.Name()))
		if err != nil {
			continue
		}
		if sys, ok := st.Sys().(*syscall.Stat_t); ok && sys.Dev == m.Dev && sys.Ino == m.Inode {
			return true, true
		}
	}
	return false, true
}

// findDrive finds a drive by any of its names, or the only one.
func (v *vm) findDrive(ctx context.Context, name string) (*drive, error) {
	if s, release := v.current(); s != nil {
		_ = s.know(ctx) // a QEMU that doesn't answer is told of below
		release()
	}
	drives := v.knownDrives()
	if len(drives) == 0 {
		// Not attached yet, or on demand: attaching finds the drives.
		ctx, cancel := context.WithTimeout(ctx, v.a.opts().Command)
		defer cancel()
		s, release, err := v.acquire(ctx)
		if err != nil {
			return nil, err
		}
		err = s.know(ctx)
		release()
		if err != nil {
			return nil, &Error{Code: Unreachable, VM: v.name, Err: err, Detail: "QEMU of VM " + v.name + " doesn't answer: its drives are not known",
				Next: "is it stopped, or its storage stalled? trayd goes on asking"}
		}
		drives = v.knownDrives()
	}
	var names []string
	for _, d := range drives {
		d.mu.Lock()
		is := name != "" && (d.name == name || d.info.Is(name))
		d.mu.Unlock()
		if is {
			return d, nil
		}
		names = append(names, v.name+"/"+d.name)
	}
	switch {
	case len(drives) == 0:
		return nil, &Error{Code: NoSuchDrive, VM: v.name, Detail: "VM " + v.name + " has no CD drive",
			Next: "trayd changes discs and adds no drives: give it one (-device ide-cd or scsi-cd) at its next start"}
	case name == "" && len(drives) == 1:
		return drives[0], nil
	case name == "":
		return nil, &Error{Code: AmbiguousDrive, VM: v.name, Detail: fmt.Sprintf("VM %s has %d CD drives", v.name, len(drives)),
			Next: "name one: " + list(names)}
	}
	return nil, &Error{Code: NoSuchDrive, VM: v.name, Drive: name, Detail: fmt.Sprintf("VM %s has no CD drive %s", v.name, name),
		Next: "drives: " + list(names)}
}

// knownDrives are the drives that the running QEMU has shown.
func (v *vm) knownDrives() []*drive {
	v.mu.Lock()
	s := v.session
	v.mu.Unlock()
	var known []*drive
	for _, d := range v.allDrives() {
		if s == nil || s.has(d) {
			if d.id() != "" {
				known = append(known, d)
			}
		}
	}
	return known
}

func (s *session) has(d *drive) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, known := range s.ids {
		if known == d {
			return true
		}
	}
	return false
}
