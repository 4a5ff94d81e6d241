package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Loop devices by LOOP_CONFIGURE (Linux 5.8), which gives a device its file, the flags
// and the mark in one step. u-root's pkg/mount/loop is not used: it opens the file for
// writing if it can, knows no flags, and leaves a gap between finding a free device and
// taking it, in which somebody else's LOOP_SET_FD makes it fail.

const (
	loopMajor = 7
	// loopTries is how often another device is taken when somebody was quicker.
	loopTries = 64
)

// loopMark is what the lo_file_name of our loop volumes says, and partMark that of those
// beneath device-mapper volumes and mounts. The kernel keeps it for us, 63 bytes at
// most; the file's real path is in sysfs.
func loopMark(mark string) string { return dmUUIDPrefix + mark }

func partMark(mark string) string { return loopMark(mark) + "-part" }

// attachLoop makes a read-only loop device of a file. autoclear has the device go away
// with the last who has it open, and at first that is the returned file.
func attachLoop(ctx context.Context, file *os.File, mark string, autoclear bool) (*os.File, int, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, 0, fmt.Errorf("this host has no loop devices: %w", err)
	}
	defer control.Close()
	config := unix.LoopConfig{Fd: uint32(file.Fd())}
	config.Info.Flags = unix.LO_FLAGS_READ_ONLY
	name := loopMark(mark)
	if autoclear {
		config.Info.Flags |= unix.LO_FLAGS_AUTOCLEAR
		name = partMark(mark)
	}
	copy(config.Info.File_name[:len(config.Info.File_name)-1], name)
	for try := 0; ; try++ {
		if err := ctx.Err(); err != nil {
			return nil, 0, err
		}
		minor, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, 0, fmt.Errorf("no free loop device: %w", err)
		}
		loop, err := openLoop(ctx, minor)
		if err == nil {
			if err = unix.IoctlLoopConfigure(int(loop.Fd()), &config); err == nil {
				return loop, minor, nil
			}
			loop.Close()
		}
		if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.ENXIO) || try == loopTries {
			return nil, 0, fmt.Errorf("no loop device of %s: %w", file.Name(), err)
		}
	}
}

func openLoop(ctx context.Context, minor int) (*os.File, error) {
	return openNumber(ctx, loopMajor, uint32(minor), os.O_RDONLY)
}

// loopStatus asks what a loop device is of. The error is ENXIO for one without a file.
func loopStatus(minor int) (*unix.LoopInfo64, error) {
	f, err := os.Open(fmt.Sprintf("/dev/loop%d", minor))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return unix.IoctlLoopGetStatus64(int(f.Fd()))
}

// loopBacking is the path of a loop device's file, "" when it has none.
func loopBacking(minor int) string {
	b, err := os.ReadFile(fmt.Sprintf("/sys/block/loop%d/loop/backing_file", minor))
	if err != nil {
		return ""
	}
	return strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), " (deleted)")
}

// loops are the loop volumes that carry the mark and whose file's path is wanted, by
// their numbers. Others are not opened: that alone would delay the end of one that is
// being detached.
func loops(mark string, wanted func(path string) bool) (map[int]*unix.LoopInfo64, error) {
	list, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	found := make(map[int]*unix.LoopInfo64)
	for _, path := range list {
		minor, err := strconv.Atoi(strings.TrimPrefix(strings.Split(path, "/")[3], "loop"))
		if err != nil {
			continue
		}
		if backing := loopBacking(minor); backing == "" || !wanted(backing) {
			continue
		}
		info, err := loopStatus(minor)
		switch {
		case errors.Is(err, unix.ENXIO), errors.Is(err, fs.ErrNotExist): // just gone
		case err != nil:
			return nil, err
		case text(info.File_name[:]) == loopMark(mark):
			found[minor] = info
		}
	}
	return found, nil
}

// loopVolume is a file as a read-only block device. Unlike those beneath device-mapper
// volumes it stays when nobody has it open. A loop device that somebody else made of the
// file is another volume: it may be writable, or of a part of it.
type loopVolume struct {
	host *Host
	ref  Ref
}

func (v *loopVolume) Ref() Ref { return v.ref }

// find returns the volume's loop device, -1 when there is none.
func (v *loopVolume) find() (minor int, info *unix.LoopInfo64, err error) {
	path := v.ref.Name
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		resolved = path // released after the file was removed
	}
	all, err := loops(v.host.mark, func(p string) bool { return p == path || p == resolved })
	if err != nil {
		return -1, nil, v.failed(err)
	}
	for minor, info := range all {
		return minor, info, nil
	}
	return -1, nil, nil
}

func (v *loopVolume) failed(err error) error {
	return &Error{Ref: v.ref, Reason: Failed, Detail: err.Error(), Next: "let trayd use /dev/loop-control and the loop devices", Err: err}
}

// State tells of the holders only once a Release was tried: a loop device has no count
// of those who have it open that could be asked. After that it is one that goes away
// with the last of them.
func (v *loopVolume) State(context.Context) (State, error) {
	minor, info, err := v.find()
	if err != nil || minor < 0 {
		return State{}, err
	}
	held := info.Flags&unix.LO_FLAGS_AUTOCLEAR != 0 || len(above(unix.Mkdev(loopMajor, uint32(minor)))) > 0
	return State{Active: true, Held: held}, nil
}

func (v *loopVolume) Activate(ctx context.Context) (bool, error) {
	made := false
	err := v.host.do(ctx, v.ref, func(ctx context.Context) error { return v.activate(ctx, &made) }, func() {
		if made {
			_ = v.release(context.Background())
		}
	})
	return err == nil && made, err
}

func (v *loopVolume) activate(ctx context.Context, made *bool) error {
	f, err := openFile(v.ref)
	if err != nil {
		return err
	}
	defer f.Close()
	if minor, _, err := v.find(); err != nil {
		return err
	} else if minor >= 0 {
		if kept, err := v.keep(ctx, f, minor); kept || err != nil {
			return err
		}
	}
	loop, _, err := attachLoop(ctx, f, v.host.mark, false)
	if err != nil {
		return v.failed(err)
	}
	*made = true
	return loop.Close()
}

// keep makes sure that a loop device that was there stays, also when a Release had told
// it to go with its last user. It is false when that user was quicker.
func (v *loopVolume) keep(ctx context.Context, file *os.File, minor int) (bool, error) {
	loop, err := openLoop(ctx, minor)
	if err != nil {
		return false, v.failed(err)
	}
	defer loop.Close()
	info, err := unix.IoctlLoopGetStatus64(int(loop.Fd()))
	if errors.Is(err, unix.ENXIO) {
		return false, nil
	}
	if err != nil {
		return false, v.failed(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &st); err != nil {
		return false, v.failed(err)
	}
	if info.Inode != st.Ino || info.Device != st.Dev {
		return false, &Error{
			Ref: v.ref, Reason: Damaged, Detail: "its loop device is still of the file that had this name before",
			Next: "eject the disc everywhere so that it is turned off, then try again",
		}
	}
	if info.Flags&unix.LO_FLAGS_AUTOCLEAR == 0 {
		return true, nil
	}
	info.Flags &^= unix.LO_FLAGS_AUTOCLEAR
	if err := unix.IoctlLoopSetStatus64(int(loop.Fd()), info); errors.Is(err, unix.ENXIO) {
		return false, nil
	} else if err != nil {
		return false, v.failed(err)
	}
	return true, nil
}

func (v *loopVolume) Open(ctx context.Context, rel string) (*os.File, error) {
	if rel != "" {
		return nil, noFiles(v.ref, rel)
	}
	minor, _, err := v.find()
	if err != nil {
		return nil, err
	}
	if minor < 0 {
		return nil, inactive(v.ref)
	}
	f, err := openLoop(ctx, minor)
	if err != nil {
		return nil, unopened(v.ref, err)
	}
	return f, nil
}

func (v *loopVolume) Release(ctx context.Context) error { return v.host.do(ctx, v.ref, v.release, nil) }

// release detaches the file. The kernel does that when the last one closes the device;
// one that is held has it coming, whether or not it is asked for again.
func (v *loopVolume) release(ctx context.Context) error {
	minor, _, err := v.find()
	if err != nil || minor < 0 {
		return err
	}
	loop, err := openLoop(ctx, minor)
	if err != nil {
		return v.failed(err)
	}
	err = unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_CLR_FD, 0)
	loop.Close()
	if err != nil && !errors.Is(err, unix.ENXIO) {
		return v.failed(fmt.Errorf("its loop device can't be detached: %w", err))
	}
	gone := false
	err = await(ctx, releaseWait, func() (bool, error) {
		gone = loopBacking(minor) == ""
		return gone, nil
	})
	switch {
	case err != nil:
		return late(v.ref, err)
	case gone:
		return nil
	}
	return busy(ctx, v.ref, unix.Mkdev(loopMajor, uint32(minor)))
}

func (v *loopVolume) Holders(ctx context.Context) ([]Holder, error) {
	minor, _, err := v.find()
	if err != nil || minor < 0 {
		return nil, err
	}
	return deviceHolders(ctx, unix.Mkdev(loopMajor, uint32(minor))), nil
}
