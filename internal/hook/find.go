package hook

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// find lists the executables of a folder by name, and why each other file is none. A folder
// that isn't there has none.
func find(dir string) (paths []string, refused map[string]string, err error) {
	entries, err := os.ReadDir(dir) // by name
	if os.IsNotExist(err) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("the hooks can't be listed: %w", err)
	}
	st, err := os.Stat(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("the hooks can't be listed: %w", err)
	}
	if why := foreign(st); why != "" {
		return nil, nil, fmt.Errorf("no hook is run, since %s %s: `chown root %s && chmod go-w %s`", dir, why, dir, dir)
	}
	refused = make(map[string]string)
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if why := unfit(path, e.Name()); why != "" {
			refused[path] = why
			continue
		}
		paths = append(paths, path)
	}
	return paths, refused, nil
}

// unfit is why a file isn't run; "" when it is.
func unfit(path, name string) string {
	if !goodName(name) {
		return "its name isn't of letters, digits, _ and - alone (as run-parts has it)"
	}
	st, err := os.Lstat(path)
	switch {
	case err != nil:
		return err.Error()
	case !st.Mode().IsRegular():
		return "it is no regular file"
	case st.Mode()&0o111 == 0:
		return "it isn't executable: `chmod +x " + path + "`"
	}
	return foreign(st)
}

// foreign is why others than root and trayd's own user could change what st is of.
func foreign(st fs.FileInfo) string {
	owner := int(st.Sys().(*syscall.Stat_t).Uid)
	switch {
	case owner != 0 && owner != os.Geteuid():
		return fmt.Sprintf("belongs to uid %d, neither root nor trayd's user", owner)
	case st.Mode().Perm()&0o022 != 0:
		return fmt.Sprintf("may be written by others (mode %o)", st.Mode().Perm())
	}
	return ""
}

// goodName is run-parts' rule, which leaves the files of editors and packagers out.
func goodName(name string) bool {
	for _, c := range []byte(name) {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_', c == '-':
		default:
			return false
		}
	}
	return name != ""
}
