package blockdev

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/trayd/trayd/qmp"
)

// Monitor is what this package needs of a QMP connection. *qmp.Conn is one.
type Monitor interface {
	Execute(ctx context.Context, command string, args, result any) error
	AddFD(ctx context.Context, file *os.File, fdset int, opaque string) (qmp.FD, error)
	RemoveFD(ctx context.Context, fdset int) error
	QueryFDSets(ctx context.Context) ([]qmp.FDSet, error)
}

// ErrNoDrive is returned when QEMU has no drive of that id (any more).
var ErrNoDrive = errors.New("no such drive")

// State is one block backend as query-block shows it at one moment.
type State struct {
	ID        string  // -device id or QOM path; empty for a backend without a device
	Device    string  // legacy backend name; empty with -blockdev
	Removable bool    // QEMU lets the medium be changed
	TrayOpen  bool    // the tray is out; a medium in it can't be read
	Locked    bool    // the guest holds the door
	Medium    *Medium // nil: nothing in it
}

// Node is the name of the node in the drive, or "" when the drive is empty.
func (s State) Node() string {
	if s.Medium == nil {
		return ""
	}
	return s.Medium.Node
}

// Medium is what is in a drive.
type Medium struct {
	Node     string // QEMU's node name; "#block…" when QEMU chose it
	File     string // the file name as QEMU shows it; /dev/fdset/N for lent descriptors
	Driver   string // format driver: raw, qcow2, host_device, …
	ReadOnly bool
	Size     int64 // bytes, as the guest sees them; 0 when QEMU doesn't say
}

// ObserveAll asks QEMU for all its block backends, in one query-block.
func ObserveAll(ctx context.Context, m Monitor) ([]State, error) {
	var answer []blockInfo
	if err := m.Execute(ctx, "query-block", nil, &answer); err != nil {
		return nil, err
	}
	states := make([]State, len(answer))
	for i := range answer {
		states[i] = answer[i].state()
	}
	return states, nil
}

// Observe asks QEMU for one drive. The error is ErrNoDrive when there is none.
func Observe(ctx context.Context, m Monitor, id string) (State, error) {
	states, err := ObserveAll(ctx, m)
	if err != nil {
		return State{}, err
	}
	for _, s := range states {
		if s.ID == id {
			return s, nil
		}
	}
	return State{}, fmt.Errorf("%w: %s", ErrNoDrive, id)
}

// blockInfo is the part of QAPI's BlockInfo that is used here. The statistics
// and throttling fields, most of the answer's bytes, are left where they are.
type blockInfo struct {
	Device    string `json:"device"`
	QDev      string `json:"qdev"`
	Removable bool   `json:"removable"`
	Locked    bool   `json:"locked"`
	TrayOpen  bool   `json:"tray_open"`
	Inserted  *struct {
		NodeName string `json:"node-name"`
		File     string `json:"file"`
		Driver   string `json:"drv"`
		ReadOnly bool   `json:"ro"`
		Image    struct {
			VirtualSize int64 `json:"virtual-size"`
		} `json:"image"`
	} `json:"inserted"`
}

func (b *blockInfo) state() State {
	s := State{ID: b.QDev, Device: b.Device, Removable: b.Removable, Locked: b.Locked, TrayOpen: b.TrayOpen}
	if in := b.Inserted; in != nil {
		s.Medium = &Medium{
			Node: in.NodeName, File: plainFile(in.File), Driver: in.Driver,
			ReadOnly: in.ReadOnly, Size: in.Image.VirtualSize,
		}
	}
	return s
}

// plainFile finds the file name in a "json:{…}" pseudo name, which is how QEMU
// shows a node that can't be written as a plain name.
func plainFile(name string) string {
	rest, ok := strings.CutPrefix(name, "json:")
	if !ok {
		return name
	}
	type node struct {
		Filename string          `json:"filename"`
		File     json.RawMessage `json:"file"`
	}
	raw := []byte(rest)
	for range 8 { // a format node above a protocol node; filters add a few
		var n node
		if json.Unmarshal(raw, &n) != nil {
			return name
		}
		if n.Filename != "" {
			return n.Filename
		}
		raw = n.File
	}
	return name
}

// Nodes lists the names of all nodes of this QEMU that start with prefix: those
// in drives and those that blockdev-add left outside.
func Nodes(ctx context.Context, m Monitor, prefix string) ([]string, error) {
	var answer []struct {
		NodeName string `json:"node-name"`
	}
	// flat (since 5.0) leaves the backing chains out; QEMU 4.2 refuses the word.
	err := m.Execute(ctx, "query-named-block-nodes", map[string]bool{"flat": true}, &answer)
	var refused *qmp.Error
	if errors.As(err, &refused) {
		err = m.Execute(ctx, "query-named-block-nodes", nil, &answer)
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, n := range answer {
		if strings.HasPrefix(n.NodeName, prefix) {
			names = append(names, n.NodeName)
		}
	}
	return names, nil
}
