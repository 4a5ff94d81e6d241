package launch

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
)

// Command is a QEMU to be started.
type Command struct {
	Path string   // of QEMU
	Args []string // argv[1:]; they name descriptors by number, see FD and TapFD
	// Files are opened, and Taps made, before privileges are dropped.
	Files []File
	Taps  []Tap
	// RunDir is where QEMU makes its sockets. Exec makes it where it is missing. Its last
	// element is the machine's name.
	RunDir string
	// Lock is the machine's, taken: QEMU keeps it for as long as it lives.
	Lock *Lock `json:"-"`
	// Ready is called, when it isn't nil, once nothing is left to do but to become QEMU.
	Ready func() `json:"-"`
}

// FD is the number that QEMU has Files[i] by.
func (c Command) FD(i int) int { return 3 + i }

// TapFD is the number that QEMU has Taps[i] by.
func (c Command) TapFD(i int) int { return 3 + len(c.Files) + i }

// machine is the machine's name.
func (c Command) machine() string { return filepath.Base(c.RunDir) }

// File is a regular file or a block device. A symbolic link is refused: what it points to
// could be another thing than what was checked.
type File struct {
	Path string
	Mode FileMode
}

// FileMode is how a File is opened.
type FileMode int

// The modes. QEMU takes a descriptor of an fdset only in the mode that it wants to open in.
const (
	Read FileMode = iota
	ReadWrite
	Append // write-only at the end; a regular file that is missing is made
)

// Tap is a network interface of the host whose other end is QEMU's. One that is made for a
// bridge is named by the kernel (trayd0, trayd1, ...), which takes it away with the last
// descriptor for it.
type Tap struct {
	Bridge string // that it becomes a port of
	Name   string // of one that is there already, in place of Bridge
}

// Dirs are where machines' directories lie, one per machine, by its name.
type Dirs struct {
	State string // what is kept: definition, lock, log; /var/lib/trayd/machines
	Run   string // sockets; /run/trayd/machines
}

func (d Dirs) lock(name string) string { return filepath.Join(d.State, name, "lock") }
func (d Dirs) log(name string) string  { return filepath.Join(d.State, name, "qemu.log") }

// ErrName means that no machine can have that name: under systemd it is the greater part of
// a user's, vm-NAME, which has at most 31 characters and no dot.
var ErrName = errors.New("a machine's name is a letter or a digit, and then at most 27 of letters, digits, _ and -")

var machineName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,27}$`)

// check refuses names that would lead out of the directories, and those of machines that
// there are not.
func (d Dirs) check(name string) error {
	if !machineName.MatchString(name) {
		return fmt.Errorf("machine %q: %w", name, ErrName)
	}
	if _, err := os.Stat(filepath.Join(d.State, name)); err != nil {
		return fmt.Errorf("machine %s isn't defined: %w", name, err)
	}
	return nil
}
