package volume

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks is how many symbolic links are followed on the way to a file, as the kernel
// does it (path_resolution(7)).
const maxLinks = 40

// maxDepth is how deep a file may lie: each directory on the way is a descriptor. It is
// more than what a path of the kernel's has in practice, which is limited by its length.
const maxDepth = 256

// OpenBeneath opens the file or device rel for reading where it lies beneath the directory
// root, and nowhere else: symbolic links are followed, and none of them, nor "..", nor a
// rename meanwhile leads out of root. It is what openat2(2) does with RESOLVE_BENEATH, for
// processes that have no openat2: systemd's RestrictSUIDSGID= takes it away, since a filter
// can't look into its arguments. Directories need no more than the right to be passed
// through (os.Root wants to read them).
//
// A pipe or a device doesn't hold it up (O_NONBLOCK). What leads out of root is
// unix.EXDEV, an absolute link too, what lies deeper than maxDepth unix.ENAMETOOLONG; other
// errors are the kernel's.
func OpenBeneath(root, rel string) (*os.File, error) {
	dir, err := openat(unix.AT_FDCWD, root, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil, fmt.Errorf("the directory %s: %w", root, err)
	}
	w := &walk{dirs: []int{dir}, todo: strings.Split(rel, "/")}
	defer w.close()
	if filepath.IsAbs(rel) {
		return nil, unix.EXDEV
	}
	fd, err := w.open()
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), filepath.Join(root, rel)), nil
}

// walk is a way to a file, one name at a time.
type walk struct {
	dirs  []int    // descriptors of the directories from the root on; the way goes on in the last
	todo  []string // names that are left
	links int      // that were followed
}

// open goes the rest of the way.
func (w *walk) open() (int, error) {
	for {
		name := w.todo[0]
		w.todo = w.todo[1:]
		last := len(w.todo) == 0
		if name == ".." {
			if err := w.up(); err != nil {
				return -1, err
			}
			name = "."
		}
		flags := unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW // it mounts what is mounted on demand
		if last {
			flags = unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_NOFOLLOW
		} else if name == "" || name == "." {
			continue
		}
		if name == "" {
			name = "."
		}
		fd, err := openat(w.dirs[len(w.dirs)-1], name, flags)
		switch {
		case errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENOTDIR): // what O_NOFOLLOW makes of a link
			if err := w.follow(name, err); err != nil {
				return -1, err
			}
		case err != nil:
			return -1, err
		case last:
			return fd, nil
		default:
			w.dirs = append(w.dirs, fd)
			if len(w.dirs) > maxDepth {
				return -1, unix.ENAMETOOLONG
			}
		}
	}
}

// up goes back to where the last directory was found: what ".." is there by now is no matter.
func (w *walk) up() error {
	last := len(w.dirs) - 1
	if last == 0 {
		return unix.EXDEV
	}
	unix.Close(w.dirs[last])
	w.dirs = w.dirs[:last]
	return nil
}

// follow puts what a link says in the place of its name; the error is why when it isn't one.
func (w *walk) follow(name string, why error) error {
	target := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(w.dirs[len(w.dirs)-1], name, target)
	switch {
	case errors.Is(err, unix.EINVAL):
		return why
	case err != nil:
		return err
	case n > 0 && target[0] == '/':
		return unix.EXDEV
	}
	if w.links++; w.links > maxLinks {
		return unix.ELOOP
	}
	w.todo = append(strings.Split(string(target[:n]), "/"), w.todo...)
	return nil
}

func (w *walk) close() {
	for _, fd := range w.dirs {
		unix.Close(fd)
	}
}

// openat is openat(2), again when a signal ended it.
func openat(dir int, name string, flags int) (int, error) {
	for {
		fd, err := unix.Openat(dir, name, flags|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// mountOf is the mount that a file lies in (Linux 5.8): path from the directory dir on, or
// the open file dir itself for no path.
func mountOf(dir int, path string) (uint64, error) {
	var st unix.Statx_t
	if err := unix.Statx(dir, path, unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st); err != nil {
		return 0, err
	}
	return st.Mnt_id, nil
}
