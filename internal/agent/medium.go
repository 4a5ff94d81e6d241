package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/iso"
)

// openMedium opens the file that a medium's name means, beneath one of the roots,
// and says what it is. A relative name is looked for in every root.
//
// The file is opened with openat2 and RESOLVE_BENEATH, so that neither ".." nor a
// symbolic link leads out of the roots, not even one that is exchanged meanwhile.
// What is inspected is the descriptor that QEMU gets.
func openMedium(name string, roots []string, validate bool, prober *iso.Prober) (*os.File, *Medium, error) {
	if name == "" {
		return nil, nil, newError(BadRequest, "name a medium: the path of an ISO file beneath "+list(roots), "no medium was named")
	}
	f, path, err := openBeneathRoots(name, roots)
	if err != nil {
		return nil, nil, err
	}
	m, err := inspect(f, name, path, validate, prober)
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, m, nil
}

func openBeneathRoots(name string, roots []string) (*os.File, string, error) {
	if !filepath.IsAbs(name) {
		return openInSomeRoot(name, roots)
	}
	path := filepath.Clean(name)
	for range 2 {
		root, rel, ok := rootOf(path, roots)
		if !ok {
			return nil, "", outsideRoots(name, roots)
		}
		f, err := openBeneath(root, rel)
		switch {
		case err == nil:
			return f, path, nil
		case !errors.Is(err, unix.EXDEV):
			return nil, "", mediumError(name, err)
		}
		// A link led out of this root. It may lead into another root, or be an
		// absolute link to a place in the same one: follow it by name once, and
		// let openat2 judge the place where it ends.
		resolved, err := filepath.EvalSymlinks(path)
		if err != nil {
			return nil, "", mediumError(name, err)
		}
		if resolved == path {
			break
		}
		path = resolved
	}
	return nil, "", outsideRoots(name, roots)
}

// openInSomeRoot opens a relative name in the one root that has it.
func openInSomeRoot(name string, roots []string) (*os.File, string, error) {
	if !filepath.IsLocal(name) {
		return nil, "", outsideRoots(name, roots)
	}
	var found []string
	for _, root := range roots {
		if _, err := os.Lstat(filepath.Join(root, name)); err == nil {
			found = append(found, filepath.Join(root, name))
		}
	}
	switch len(found) {
	case 0:
		return nil, "", newError(NoSuchMedium, "give the file's whole path, or put it beneath a media root",
			"no medium %s in %s", name, list(roots))
	case 1:
		return openBeneathRoots(found[0], roots)
	}
	return nil, "", newError(BadRequest, "give the whole path of the one you mean",
		"medium %s is in several places: %s", name, strings.Join(found, ", "))
}

// rootOf finds the innermost root that a clean, absolute path lies beneath.
func rootOf(path string, roots []string) (root, rel string, ok bool) {
	for _, r := range roots {
		r = filepath.Clean(r)
		rest, err := filepath.Rel(r, path)
		if err == nil && filepath.IsLocal(rest) && rest != "." && len(r) > len(root) {
			root, rel, ok = r, rest, true
		}
	}
	if ok {
		return root, rel, ok
	}
	// A root may itself be reached by a link, such as /srv -> /data/srv. The others are
	// not looked at unless they must be: one may be on a file system that doesn't answer.
	for _, r := range roots {
		if real, err := filepath.EvalSymlinks(r); err == nil && real != r {
			rest, err := filepath.Rel(real, path)
			if err == nil && filepath.IsLocal(rest) && rest != "." && len(real) > len(root) {
				root, rel, ok = real, rest, true
			}
		}
	}
	return root, rel, ok
}

// openBeneath opens rel for reading; O_NONBLOCK so that a pipe can't hold it up.
func openBeneath(root, rel string) (*os.File, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("media root %s: %w", root, err)
	}
	defer unix.Close(dir)
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS,
	}
	for {
		fd, err := unix.Openat2(dir, rel, &how)
		if err == unix.EINTR || err == unix.EAGAIN {
			continue // EAGAIN: a rename raced with the walk (openat2(2))
		}
		if err != nil {
			return nil, err
		}
		return os.NewFile(uintptr(fd), filepath.Join(root, rel)), nil
	}
}

// inspect says what an open file is, and refuses what is no disc.
func inspect(f *os.File, name, path string, validate bool, prober *iso.Prober) (*Medium, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, mediumError(name, err)
	}
	if st.IsDir() {
		return nil, newError(Unreadable, "name the ISO file itself", "medium %s is a directory", name)
	}
	if !st.Mode().IsRegular() {
		return nil, newError(Unreadable, "use a regular file", "medium %s is not a regular file (%s)", name, st.Mode().Type())
	}
	m := &Medium{Name: name, Path: path, Size: st.Size(), Modified: st.ModTime().UTC()}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		m.Dev, m.Inode = sys.Dev, sys.Ino
	}
	info, err := prober.Probe(f, st.Size())
	m.VolumeID = info.VolumeID
	if err == nil || !validate {
		return m, nil
	}
	var cut *iso.TruncatedError
	switch {
	case errors.As(err, &cut):
		return nil, newError(Truncated, "download it again and compare its checksum", "medium %s is %w", name, err)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EIO):
		return nil, mediumError(name, err)
	}
	return nil, newError(NotADisc, "use an ISO 9660 or UDF image; root may insert it all the same with --no-validate",
		"medium %s: %w", name, err)
}

func mediumError(name string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return newError(NoSuchMedium, "check the path on the host where trayd runs", "no medium %s: %w", name, err)
	case errors.Is(err, fs.ErrPermission):
		return newError(Unreadable, "let the user that trayd runs as read the file and its directories", "medium %s can't be opened: %w", name, err)
	case errors.Is(err, syscall.ENOSYS):
		return newError(Unreadable, "this needs Linux 5.6 or later, and a unit without RestrictSUIDSGID=",
			"medium %s can't be opened: the kernel, or trayd's sandbox, has no openat2: %w", name, err)
	case errors.Is(err, syscall.ELOOP):
		return newError(Unreadable, "mend the symbolic link", "medium %s can't be opened: %w", name, err)
	}
	return newError(Unreadable, "see that the file can be read on the host", "medium %s can't be read: %w", name, err)
}

func outsideRoots(name string, roots []string) error {
	return newError(OutsideRoots, "move it beneath a media root, or add its directory to media_roots in trayd.toml",
		"medium %s is outside the media roots (%s)", name, list(roots))
}

func list(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}
