package blockdev

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/trayd/trayd/qmp"
)

// Disc is a disc that QEMU can open: a descriptor lent to it under a node name.
type Disc struct {
	// Node is the name of the node that will be in the drive. It says which
	// operation put it there, so it is unique per operation. At most 31 bytes,
	// a letter first, then letters, digits, '-', '.', '_' (QEMU's id rules).
	Node string
	// FDSet is QEMU's number for the lent descriptor.
	FDSet int
	// BlockDevice is set when the descriptor is of a block device, which needs
	// QEMU's host_device driver instead of file.
	BlockDevice bool
	// Size is the exact capacity in bytes where the device is larger than its
	// image (a logical volume is rounded up to its extent); 0 means all of it. QEMU
	// gives the guest whole sectors, as it does with a file.
	Size int64
}

// sector is what QEMU wants a raw image's size to be a multiple of, in bytes.
const sector = 512

// Lend passes an open descriptor to QEMU, tagged with node so that it is known
// again after a restart. The caller keeps its own descriptor and may close it.
// TakeBack ends the loan.
func Lend(ctx context.Context, m Monitor, file *os.File, node string) (Disc, error) {
	st, err := file.Stat()
	if err != nil {
		return Disc{}, err
	}
	fd, err := m.AddFD(ctx, file, -1, node)
	if err != nil {
		return Disc{}, fmt.Errorf("pass the disc's descriptor to QEMU: %w", err)
	}
	return Disc{Node: node, FDSet: fd.FDSet, BlockDevice: st.Mode()&os.ModeDevice != 0}, nil
}

// TakeBack ends the loan of a descriptor. A node that uses it keeps its own
// duplicate. Up to QEMU 8.2 the descriptor of a paused machine stays until the
// machine runs and TakeBack is called again (Lent still shows it).
func TakeBack(ctx context.Context, m Monitor, fdset int) error {
	return m.RemoveFD(ctx, fdset)
}

// SendBack ends a loan without waiting for the answer, which has nothing to say: a
// loan that QEMU doesn't know is over. Commands are executed in order, so the loan has
// ended when the next command on this monitor is answered. The error is that the
// command could not be sent.
func SendBack(ctx context.Context, c *qmp.Conn, fdset int) error {
	_, err := c.Send(ctx, "remove-fd", map[string]int{"fdset-id": fdset}, nil)
	return err
}

// Loan is a descriptor that QEMU holds for somebody.
type Loan struct {
	FDSet int
	Node  string // the tag it was lent under
}

// Lent lists the loans whose tag starts with prefix.
func Lent(ctx context.Context, m Monitor, prefix string) ([]Loan, error) {
	sets, err := m.QueryFDSets(ctx)
	if err != nil {
		return nil, err
	}
	var loans []Loan
	for _, set := range sets {
		if tag := tagOf(set); strings.HasPrefix(tag, prefix) {
			loans = append(loans, Loan{FDSet: set.ID, Node: tag})
		}
	}
	return loans, nil
}

func tagOf(set qmp.FDSet) string {
	for _, fd := range set.FDs {
		if fd.Opaque != "" {
			return fd.Opaque
		}
	}
	return ""
}

// nodeOptions is QAPI's BlockdevOptions for a disc: raw always (a qcow2 file
// named x.iso would else be opened as qcow2, with its backing files), read-only
// always (the file below inherits it), and a file name that no user wrote. It is
// kept short: QEMU reads its monitor byte by byte, at 3.5 µs each.
type nodeOptions struct {
	Driver   string      `json:"driver"`
	NodeName string      `json:"node-name,omitempty"`
	ReadOnly bool        `json:"read-only"`
	Size     int64       `json:"size,omitempty"`
	File     fileOptions `json:"file"`
}

type fileOptions struct {
	Driver   string `json:"driver"`
	Filename string `json:"filename"`
}

func (d Disc) options() nodeOptions {
	driver := "file"
	if d.BlockDevice {
		driver = "host_device"
	}
	return nodeOptions{
		Driver: "raw", NodeName: d.Node, ReadOnly: true, Size: (d.Size + sector - 1) &^ (sector - 1),
		File: fileOptions{Driver: driver, Filename: fmt.Sprintf("/dev/fdset/%d", d.FDSet)},
	}
}

// fileName is the same as a "json:" file name, which blockdev-change-medium takes.
func (d Disc) fileName() string {
	b, err := json.Marshal(d.options())
	if err != nil {
		panic(err) // strings, numbers and booleans always marshal
	}
	// In single quotes, which QEMU's JSON parser takes too (json-lexer.c): the double
	// ones would be escaped in the command, and every byte of it takes QEMU 3.5 µs. No
	// value has a quote in it: node names have none, and the rest is ours.
	return "json:" + strings.ReplaceAll(string(b), `"`, "'")
}
