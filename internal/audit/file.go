package audit

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	fileMode = 0o640 // root and trayd's group read it
	dirMode  = 0o750
)

// file is appended to, and follows its path when somebody renames it.
type file struct {
	mu     sync.Mutex // guards all below; held for one write
	path   string     // "" for none
	log    *slog.Logger
	f      *os.File // nil when it isn't open
	torn   bool     // the last line was written in part
	failed string   // why the last line wasn't written; "" when it was
	lost   int      // lines since then
}

func (f *file) configure(path string, log *slog.Logger) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if path != f.path {
		f.close()
		f.failed, f.lost = "", 0
	}
	f.path, f.log = path, log
	if path != "" {
		f.note(f.follow()) // so that what is wrong is said now, not with the first change
	}
}

// write appends a line. It waits for the file system, as the journal's writes do.
func (f *file) write(line []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.path == "" {
		return
	}
	err := f.append(line)
	if err != nil {
		f.lost++
	}
	f.note(err)
}

func (f *file) append(line []byte) error {
	if err := f.follow(); err != nil {
		return err
	}
	if f.torn { // a disk that was full
		line = append([]byte{'\n'}, line...)
	}
	n, err := f.f.Write(line)
	f.torn = err != nil && (n > 0 || f.torn)
	return err
}

// note says once that lines are lost, and once that they are not any more. mu is held.
func (f *file) note(err error) {
	switch {
	case err != nil && f.failed == "":
		f.failed = err.Error()
		f.log.Error("changes can't be written to the audit log; they are in the journal alone", "file", f.path, "error", err)
	case err == nil && f.failed != "":
		f.log.Warn("the audit log is written again", "file", f.path, "lost", f.lost)
		f.failed, f.lost = "", 0
	}
}

// follow opens the file that the path means now, unless it is open. mu is held.
func (f *file) follow() error {
	there, err := os.Lstat(f.path)
	if err == nil && f.f != nil {
		if open, err := f.f.Stat(); err == nil && os.SameFile(open, there) {
			return nil
		}
	}
	f.close()
	return f.open()
}

func (f *file) open() error {
	if err := os.MkdirAll(filepath.Dir(f.path), dirMode); err != nil {
		return err
	}
	// O_NONBLOCK: opening a FIFO would wait for its reader.
	fd, err := os.OpenFile(f.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, fileMode)
	switch {
	case errors.Is(err, unix.ELOOP):
		return fmt.Errorf("%s is a symbolic link, which isn't followed: remove it", f.path)
	case err != nil:
		return err
	}
	st, err := fd.Stat()
	switch {
	case err != nil:
	case !st.Mode().IsRegular():
		err = fmt.Errorf("%s is no regular file: remove it", f.path)
	case st.Size() == 0 && int(st.Sys().(*syscall.Stat_t).Uid) == os.Geteuid():
		err = fd.Chmod(fileMode) // whatever the umask is
	}
	if err != nil {
		_ = fd.Close()
		return err
	}
	f.f, f.torn = fd, false
	return nil
}

func (f *file) close() {
	if f.f != nil {
		_ = f.f.Close() // every line was written by then
		f.f = nil
	}
}
