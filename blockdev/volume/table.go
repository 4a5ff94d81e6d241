package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// table is a device-mapper table that fits its devices. It holds them open until it is
// closed: a file's loop device goes away with whoever is the last to have it open,
// which is the device-mapper device once it has the table.
type table struct {
	targets []dmTarget
	parts   []*part
	verity  bool
}

// part is a device that a table stands on.
type part struct {
	path         string
	f            *os.File // the device; of a file, the file itself until loop
	size         int64
	major, minor uint32 // of the device
	file         bool
	mark         string
	dev, ino     uint64 // of the file
}

func (t *table) close() {
	for _, p := range t.parts {
		p.f.Close()
	}
}

// table makes the table of a definition.
func (v *dmVolume) table(ctx context.Context, d Definition) (*table, error) {
	t := &table{verity: d.Verity != nil}
	var err error
	switch {
	case d.Verity != nil && len(d.Linear) == 0:
		err = v.verityTable(ctx, t, d.Verity)
	case d.Verity == nil && len(d.Linear) > 0:
		err = v.linearTable(t, d.Linear)
	default:
		err = v.damaged("the configuration has to define it as either linear or verity")
	}
	if err != nil {
		t.close()
		return nil, err
	}
	return t, nil
}

func (v *dmVolume) damaged(format string, args ...any) error {
	return &Error{Ref: v.ref, Reason: Damaged, Detail: fmt.Sprintf(format, args...), Next: "correct the volume in the configuration, or its devices"}
}

// open opens a device or a file that a table stands on.
func (v *dmVolume) open(t *table, path string) (*part, error) {
	for _, p := range t.parts {
		if p.path == path {
			return p, nil
		}
	}
	// Not to wait for the writer of a named pipe.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		next := "let trayd read it"
		if errors.Is(err, fs.ErrNotExist) {
			next = "attach the disk, or correct the volume in the configuration"
		}
		return nil, &Error{Ref: v.ref, Reason: NotHere, Detail: "what it lies on can't be opened: " + err.Error(), Next: next, Err: err}
	}
	return v.part(t, path, f)
}

// part is an open device or file as a part of a table, which closes it.
func (v *dmVolume) part(t *table, path string, f *os.File) (*part, error) {
	p := &part{path: path, f: f, mark: v.host.mark}
	t.parts = append(t.parts, p)
	var st unix.Stat_t
	err := unix.Fstat(int(f.Fd()), &st)
	if err != nil {
		return nil, v.failed(err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		p.file, p.dev, p.ino = true, st.Dev, st.Ino
	case unix.S_IFBLK:
		p.major, p.minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
	default:
		return nil, v.damaged("%s is neither a block device nor a file", path)
	}
	if p.size, err = blockSize(f); err != nil {
		return nil, v.failed(err)
	}
	return p, nil
}

// number is how a table writes a part: by its number, or, of a file that has no loop
// device yet, by the file's.
func (p *part) number() string {
	if p.file {
		return fmt.Sprintf("file:%d:%d", p.dev, p.ino)
	}
	return fmt.Sprintf("%d:%d", p.major, p.minor)
}

// linearTable joins extents. Their starts and lengths are whole sectors and inside
// their devices: the kernel would round the one and refuse the other with an errno.
func (v *dmVolume) linearTable(t *table, extents []Extent) error {
	var at uint64
	for _, e := range extents {
		p, err := v.open(t, e.Device)
		if err != nil {
			return err
		}
		length := e.Length
		if length == 0 {
			length = p.size - e.Start
		}
		switch {
		case e.Start < 0 || length <= 0:
			return v.damaged("%s has %d bytes; an extent can't begin at %d and have %d", e.Device, p.size, e.Start, length)
		case e.Start%sector != 0 || length%sector != 0:
			return v.damaged("the extent of %d bytes at %d of %s has to be whole sectors of %d bytes", length, e.Start, e.Device, sector)
		case e.Start > p.size-length:
			return v.damaged("%s has %d bytes; an extent of %d bytes at %d ends behind them", e.Device, p.size, length, e.Start)
		}
		t.targets = append(t.targets, dmTarget{
			Start: at, Length: uint64(length / sector), Type: "linear", Params: fmt.Sprintf("%s %d", p.number(), e.Start/sector),
		})
		at += uint64(length / sector)
	}
	return nil
}

// matches compares with a live table. A live table speaks of loop devices where this
// one has files.
func (t *table) matches(live []dmTarget) bool {
	if len(live) != len(t.targets) {
		return false
	}
	for i, l := range live {
		words := strings.Fields(l.Params)
		for j, w := range words {
			var major, minor uint32
			if n, _ := fmt.Sscanf(w, "%d:%d", &major, &minor); n == 2 && major == loopMajor {
				if file, ok := t.fileOf(minor); ok {
					words[j] = file
				}
			}
		}
		l.Params = strings.Join(words, " ")
		if l != t.targets[i] {
			return false
		}
	}
	return true
}

// fileOf is how this table writes the file behind a loop device, if it is one of its.
func (t *table) fileOf(minor uint32) (string, bool) {
	info, err := loopStatus(int(minor))
	if err != nil || info.Offset != 0 || info.Sizelimit != 0 {
		return "", false
	}
	for _, p := range t.parts {
		if p.file && info.Inode == p.ino && info.Device == p.dev {
			return p.number(), true
		}
	}
	return "", false
}

// attach gives every file a loop device that goes away with its last user, also when
// this process is killed.
func (t *table) attach(ctx context.Context) error {
	for _, p := range t.parts {
		if !p.file {
			continue
		}
		was := p.number()
		loop, minor, err := attachLoop(ctx, p.f, p.mark, true)
		if err != nil {
			return err
		}
		p.f.Close()
		p.f, p.major, p.minor, p.file = loop, loopMajor, uint32(minor), false
		for i := range t.targets {
			words := strings.Fields(t.targets[i].Params)
			for j := range words {
				if words[j] == was {
					words[j] = p.number()
				}
			}
			t.targets[i].Params = strings.Join(words, " ")
		}
	}
	return nil
}
