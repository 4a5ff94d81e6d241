package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/internal/wire"
)

// The files of a machine's directory.
const (
	definitionFile = "machine.toml"
	// VarsFile has the UEFI variables.
	VarsFile = "vars.fd"
	// SeedFile is cloud-init's disc.
	SeedFile = "seed.iso"
	// SerialLog is what the machine said on its serial console.
	SerialLog = "serial.log"
)

// changingFile is in a machine's directory while its disks are changed: the names of the
// files that the change makes or removes.
const changingFile = ".changing"

const (
	making   = ".making-"   // begins the name of a machine's directory that isn't complete
	removing = ".removing-" // of one that is being removed
)

// ErrNoMachine is for a machine that there isn't.
var ErrNoMachine = errors.New("no such machine")

// ErrExists is for a new machine whose name is taken.
var ErrExists = errors.New("there is a machine of that name")

// Store is the directory that has the machines'. It is safe for concurrent use as long as
// one machine is changed by one caller at a time.
type Store struct{ Dir string }

// Path is the directory of a machine, or a file in it.
func (s Store) Path(name string, file ...string) string {
	return filepath.Join(append([]string{s.Dir, name}, file...)...)
}

// Names lists the machines, sorted.
func (s Store) Names() ([]string, error) {
	all, err := os.ReadDir(s.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var names []string
	for _, e := range all {
		if e.IsDir() && CheckName(e.Name()) == nil {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// Load reads a machine's definition.
func (s Store) Load(name string) (*Definition, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(s.Path(name, definitionFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w: %s", ErrNoMachine, name)
	case err != nil:
		return nil, fmt.Errorf("the definition of %s can't be read: %w", name, err)
	}
	return decode(name, text)
}

// Mentions reports whether the definition of a machine, which may be one that Load refuses,
// has a text in it.
func (s Store) Mentions(name, text string) bool {
	b, err := os.ReadFile(s.Path(name, definitionFile))
	return err == nil && strings.Contains(string(b), text)
}

// Has reports whether there is a machine of that name, right or wrong.
func (s Store) Has(name string) bool {
	if CheckName(name) != nil {
		return false
	}
	_, err := os.Lstat(s.Path(name))
	return err == nil
}

// Create makes a machine whole or not at all: fill puts its disks into the directory that
// it is given. step is told "filled" and "written" on the way.
func (s Store) Create(d *Definition, fill func(dir string) error, step func(string)) (err error) {
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return fmt.Errorf("the directory of machines can't be made: %w", err)
	}
	if s.Has(d.Name) {
		return fmt.Errorf("%w: %s", ErrExists, d.Name)
	}
	dir := filepath.Join(s.Dir, making+d.Name)
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(dir)
		}
	}()
	if err := fill(dir); err != nil {
		return err
	}
	step("filled")
	if err := writeFirst(dir, d); err != nil {
		return err
	}
	step("written")
	// Nobody else's machine may be replaced, not even by one who makes it by hand now.
	if err := unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, s.Path(d.Name), unix.RENAME_NOREPLACE); err != nil {
		if errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("%w: %s", ErrExists, d.Name)
		}
		return fmt.Errorf("the machine's directory can't get its name: %w", err)
	}
	return syncDir(s.Dir)
}

// Save replaces a machine's definition, whole or not at all.
func (s Store) Save(d *Definition) error {
	if err := Check(d); err != nil {
		return err
	}
	return writeDefinition(s.Path(d.Name), d)
}

// writeFirst writes the definition into a directory that nobody sees yet: it needs no other
// name first.
func writeFirst(dir string, d *Definition) error {
	b, err := encode(d)
	if err != nil {
		return err
	}
	if err := writeDurably(filepath.Join(dir, definitionFile), b); err != nil {
		return fmt.Errorf("the definition of %s can't be written: %w", d.Name, err)
	}
	return syncDir(dir)
}

func writeDurably(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

func writeDefinition(dir string, d *Definition) error {
	b, err := encode(d)
	if err != nil {
		return err
	}
	failed := func(err error) error { return fmt.Errorf("the definition of %s can't be written: %w", d.Name, err) }
	temp := filepath.Join(dir, "."+definitionFile)
	if err := writeDurably(temp, b); err != nil {
		_ = os.Remove(temp)
		return failed(err)
	}
	if err := os.Rename(temp, filepath.Join(dir, definitionFile)); err != nil {
		return failed(err)
	}
	return syncDir(dir)
}

// Remove removes a machine with its disks. A death in the middle leaves what Tidy removes.
func (s Store) Remove(name string, step func(string)) error {
	if err := CheckName(name); err != nil {
		return err
	}
	gone := filepath.Join(s.Dir, removing+name)
	if err := os.RemoveAll(gone); err != nil {
		return err
	}
	if err := os.Rename(s.Path(name), gone); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: %s", ErrNoMachine, name)
		}
		return fmt.Errorf("the machine's directory can't be taken away: %w", err)
	}
	if err := syncDir(s.Dir); err != nil {
		return err
	}
	step("taken")
	return os.RemoveAll(gone)
}

// Changing notes the disks that a change of a machine's definition is going to make or to
// remove. Settle follows, however the change ends.
func (s Store) Changing(name string, disks []wire.Disk) error {
	var files strings.Builder
	for _, k := range disks {
		fmt.Fprintln(&files, DiskFile(k))
	}
	err := writeDurably(s.Path(name, changingFile), []byte(files.String()))
	if err == nil {
		err = syncDir(s.Path(name))
	}
	if err != nil {
		return fmt.Errorf("what is to be changed about %s can't be written down: %w", name, err)
	}
	return nil
}

// Settle removes the disks of a change that the definition doesn't have: the new ones of a
// change that came to nothing, the old ones of one that was made. It removes no other file,
// and none while the definition can't be read.
func (s Store) Settle(name string) error {
	b, err := os.ReadFile(s.Path(name, changingFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	d, err := s.Load(name)
	if err != nil {
		return err
	}
	for file := range strings.Lines(string(b)) {
		file, whole := strings.CutSuffix(file, "\n")
		has := slices.ContainsFunc(d.Disks, func(k wire.Disk) bool { return DiskFile(k) == file })
		if has || !whole || file != filepath.Base(file) {
			continue
		}
		if err := os.Remove(s.Path(name, file)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return os.Remove(s.Path(name, changingFile))
}

// Tidy removes what deaths in Create and Remove, and before a Settle, have left. It is called
// before all of them.
func (s Store) Tidy() error {
	all, err := os.ReadDir(s.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range all {
		if CheckName(e.Name()) == nil {
			err = errors.Join(err, s.Settle(e.Name()))
		}
		if slices.ContainsFunc([]string{making, removing}, func(p string) bool { return strings.HasPrefix(e.Name(), p) }) {
			err = errors.Join(err, os.RemoveAll(filepath.Join(s.Dir, e.Name())))
		}
	}
	return err
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
