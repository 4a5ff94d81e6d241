package volume

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// This is the part of device-mapper's ioctl interface (linux/dm-ioctl.h) that volumes
// need. github.com/anatol/devmapper.go makes devices, but it can't read a table or a
// verity device's status back, nor a device's uuid or open count, by which everything
// here is decided; and it cuts names that are too long and sizes that are no whole
// sectors without a word.

const dmControl = "/dev/mapper/control"

// dmDevice is what device-mapper says of a device.
type dmDevice struct {
	Name, UUID   string
	Major, Minor uint32
	Open         int // how many have it open, mounts and devices above included
	Live         bool
	Suspended    bool
	ReadOnly     bool
}

// rdev is the device's number as stat(2) gives it.
func (d dmDevice) rdev() uint64 { return unix.Mkdev(d.Major, d.Minor) }

// dmTarget is one line of a table: Length sectors from Start on.
type dmTarget struct {
	Start, Length uint64
	Type, Params  string
}

// dmBuffer is what a reply needs at most: a device's table, or all devices' names. One
// that is too small is doubled up to dmBufferMax.
const (
	dmBuffer    = 16 << 10
	dmBufferMax = 4 << 20
)

// dmCall is one ioctl: name or uuid says which device, payload is what follows the
// header. It returns the header and what follows it.
func dmCall(cmd uint, flags, event uint32, name, uuid string, targets int, payload []byte) (*unix.DmIoctl, []byte, error) {
	control, err := os.OpenFile(dmControl, os.O_RDWR, 0)
	if err != nil {
		return nil, nil, err
	}
	defer control.Close()
	for size := max(dmBuffer, unix.SizeofDmIoctl+len(payload)); ; size *= 2 {
		words := make([]uint64, (size+7)/8) // aligned as the header needs it
		buf := unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), len(words)*8)
		head := (*unix.DmIoctl)(unsafe.Pointer(&words[0]))
		head.Version = [3]uint32{4, 0, 0}
		head.Data_size, head.Data_start = uint32(len(buf)), unix.SizeofDmIoctl
		head.Target_count, head.Flags, head.Event_nr = uint32(targets), flags, event
		copy(head.Name[:unix.DM_NAME_LEN-1], name)
		copy(head.Uuid[:unix.DM_UUID_LEN-1], uuid)
		copy(buf[unix.SizeofDmIoctl:], payload)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, control.Fd(), uintptr(cmd), uintptr(unsafe.Pointer(head))); errno != 0 {
			return nil, nil, errno
		}
		if head.Flags&unix.DM_BUFFER_FULL_FLAG == 0 || size >= dmBufferMax {
			start := min(int(head.Data_start), len(buf))
			return head, buf[start:min(max(int(head.Data_size), start), len(buf))], nil
		}
	}
}

// dmStatus looks a device up by its name; ok is false when there is none.
func dmStatus(name string) (d dmDevice, ok bool, err error) { return dmStatusOf(name, "") }

// dmStatusOf is by the name or, where that is "", by the uuid, which no renaming changes.
func dmStatusOf(name, uuid string) (d dmDevice, ok bool, err error) {
	head, _, err := dmCall(unix.DM_DEV_STATUS, 0, 0, name, uuid, 0, nil)
	switch {
	case errors.Is(err, unix.ENXIO), errors.Is(err, os.ErrNotExist): // no device; no device-mapper
		return d, false, nil
	case err != nil:
		return d, false, fmt.Errorf("device-mapper doesn't say what %s is: %w", name+uuid, err)
	}
	return describe(head), true, nil
}

func describe(head *unix.DmIoctl) dmDevice {
	// The kernel's huge_encode_dev.
	major := uint32(head.Dev>>8) & 0xfff
	minor := uint32(head.Dev)&0xff | uint32(head.Dev>>12)&0xfff00
	return dmDevice{
		Name: text(head.Name[:]), UUID: text(head.Uuid[:]), Major: major, Minor: minor, Open: int(head.Open_count),
		Live:      head.Flags&unix.DM_ACTIVE_PRESENT_FLAG != 0,
		Suspended: head.Flags&unix.DM_SUSPEND_FLAG != 0,
		ReadOnly:  head.Flags&unix.DM_READONLY_FLAG != 0,
	}
}

// text is a C string's.
func text(b []byte) string {
	if end := bytes.IndexByte(b, 0); end >= 0 {
		b = b[:end]
	}
	return string(b)
}

// dmTable looks a device up like dmStatus, with its live table, and dmInfo with its
// targets' status. Neither waits for I/O.
func dmTable(name string) (dmDevice, []dmTarget, bool, error) { return dmTableOf(name, "") }

func dmTableOf(name, uuid string) (dmDevice, []dmTarget, bool, error) {
	return dmTargets(name, uuid, unix.DM_STATUS_TABLE_FLAG|unix.DM_NOFLUSH_FLAG)
}

func dmInfo(name string) (dmDevice, []dmTarget, bool, error) {
	return dmTargets(name, "", unix.DM_NOFLUSH_FLAG)
}

func dmTargets(name, uuid string, flags uint32) (d dmDevice, all []dmTarget, ok bool, err error) {
	head, data, err := dmCall(unix.DM_TABLE_STATUS, flags, 0, name, uuid, 0, nil)
	switch {
	case errors.Is(err, unix.ENXIO), errors.Is(err, os.ErrNotExist): // no device; no device-mapper
		return d, nil, false, nil
	case err != nil:
		return d, nil, false, fmt.Errorf("device-mapper doesn't say what %s is: %w", name+uuid, err)
	}
	for at, n := 0, int(head.Target_count); n > 0; n-- {
		if at+unix.SizeofDmTargetSpec > len(data) {
			return d, nil, false, fmt.Errorf("device-mapper's table of %s is cut short", name+uuid)
		}
		spec := (*unix.DmTargetSpec)(unsafe.Pointer(&data[at]))
		all = append(all, dmTarget{
			Start: spec.Sector_start, Length: spec.Length,
			Type: text(spec.Target_type[:]), Params: strings.TrimSpace(text(data[at+unix.SizeofDmTargetSpec:])),
		})
		at = int(spec.Next) // of a reply: from the data's start
	}
	return describe(head), all, true, nil
}

// dmNames lists the names that begin with prefix.
func dmNames(prefix string) ([]string, error) {
	_, data, err := dmCall(unix.DM_LIST_DEVICES, 0, 0, "", "", 0, nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("device-mapper doesn't list its devices: %w", err)
	}
	var names []string
	const nameAt = 12 // in struct dm_name_list, behind dev and next
	for at := 0; at+nameAt < len(data); {
		dev, next := *(*uint64)(unsafe.Pointer(&data[at])), *(*uint32)(unsafe.Pointer(&data[at+8]))
		if name := text(data[at+nameAt:]); dev != 0 && strings.HasPrefix(name, prefix) {
			names = append(names, name)
		}
		if next == 0 {
			break
		}
		at += int(next)
	}
	return names, nil
}

func dmCreate(name, uuid string) error {
	_, _, err := dmCall(unix.DM_DEV_CREATE, 0, 0, name, uuid, 0, nil)
	return err
}

// dmLoad gives a device a table, read-only: no write passes it.
func dmLoad(name string, table []dmTarget) error {
	var payload []byte
	for _, t := range table {
		params := append([]byte(t.Params), 0)
		for len(params)%8 != 0 {
			params = append(params, 0)
		}
		spec := unix.DmTargetSpec{Sector_start: t.Start, Length: t.Length, Next: uint32(unix.SizeofDmTargetSpec + len(params))}
		copy(spec.Target_type[:unix.DM_MAX_TYPE_NAME-1], t.Type)
		payload = append(payload, unsafe.Slice((*byte)(unsafe.Pointer(&spec)), unix.SizeofDmTargetSpec)...)
		payload = append(payload, params...)
	}
	_, _, err := dmCall(unix.DM_TABLE_LOAD, unix.DM_READONLY_FLAG, 0, name, "", len(table), payload)
	return err
}

// leaveAlone asks udev's rules for device-mapper (55-dm.rules, 10-dm.rules) to make no
// links to the device and not to probe it: DM_UDEV_DISABLE_{DM,SUBSYSTEM,DISK,OTHER}_RULES_FLAG.
const leaveAlone = (0x1 | 0x2 | 0x4 | 0x8) << 16

// dmResume makes the loaded table the live one.
func dmResume(name string) error {
	_, _, err := dmCall(unix.DM_DEV_SUSPEND, 0, leaveAlone, name, "", 0, nil)
	return err
}

func dmRemove(name string) error {
	_, _, err := dmCall(unix.DM_DEV_REMOVE, 0, 0, name, "", 0, nil)
	return err
}
