package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// plainVolume is a file or a block device as it is. It is active as long as it is there:
// there is nothing to turn on or off, so that a Release always succeeds.
type plainVolume struct{ ref Ref }

func (v *plainVolume) Ref() Ref { return v.ref }

func (v *plainVolume) State(context.Context) (State, error) {
	info, err := os.Stat(v.ref.Name)
	if errors.Is(err, fs.ErrNotExist) {
		return State{}, nil
	}
	if err != nil {
		return State{}, unopened(v.ref, err)
	}
	return State{Active: v.is(info.Mode())}, nil
}

// is reports whether a file is what the volume's kind says.
func (v *plainVolume) is(m fs.FileMode) bool {
	if v.ref.Kind == Block {
		return m&fs.ModeDevice != 0 && m&fs.ModeCharDevice == 0
	}
	return m.IsRegular()
}

func (v *plainVolume) Activate(ctx context.Context) (bool, error) {
	f, err := v.Open(ctx, "")
	if err != nil {
		return false, err
	}
	return false, f.Close()
}

func (v *plainVolume) Open(ctx context.Context, rel string) (*os.File, error) {
	if err := ctx.Err(); err != nil {
		return nil, late(v.ref, err)
	}
	if rel != "" {
		return nil, noFiles(v.ref, rel)
	}
	return openFile(v.ref)
}

// openFile opens the file that a reference names by its path.
func openFile(ref Ref) (*os.File, error) {
	// Not to wait for the writer of a named pipe.
	f, err := os.OpenFile(ref.Name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		e := &Error{Ref: ref, Reason: NotHere, Detail: "it can't be opened: " + err.Error(), Next: "let trayd read it", Err: err}
		if errors.Is(err, fs.ErrNotExist) {
			e.Reason, e.Next = NoSuchVolume, "see the path again, or attach the disk"
		}
		return nil, e
	}
	info, err := f.Stat()
	want := &plainVolume{ref}
	if err == nil && !want.is(info.Mode()) {
		what := "a file"
		if ref.Kind == Block {
			what = "a block device"
		}
		err = fmt.Errorf("%s is not %s", ref.Name, what)
	}
	if err != nil {
		f.Close()
		return nil, &Error{Ref: ref, Reason: NoSuchVolume, Detail: err.Error(), Next: "see the path again", Err: err}
	}
	return f, nil
}

func (v *plainVolume) Release(context.Context) error { return nil }

func (v *plainVolume) Holders(ctx context.Context) ([]Holder, error) {
	var st unix.Stat_t
	if err := unix.Stat(v.ref.Name, &st); err != nil {
		return nil, nil // it is gone
	}
	if v.ref.Kind == Block {
		return deviceHolders(ctx, st.Rdev), nil
	}
	return processes(ctx, func(s *unix.Statx_t) bool {
		return s.Ino == st.Ino && unix.Mkdev(s.Dev_major, s.Dev_minor) == st.Dev
	}), nil
}
