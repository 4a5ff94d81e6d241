package launch

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// environment is all of QEMU's.
const environment = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"

// Exec makes this process QEMU. It opens what the command says, gives up every privilege,
// and becomes the program; it returns only when that fails. As root it becomes user
// first, or nobody where there is no such user; else it stays who it is.
//
// QEMU has the standard descriptors, Files, Taps, the lock, and no other; no capability,
// and no way to one (no_new_privs); the umask 0077. A process that Exec has failed in is
// good for nothing but to say why.
func Exec(c Command, user string) error {
	if err := exec(c, user); err != nil {
		return fmt.Errorf("machine %s can't be started: %w", c.machine(), err)
	}
	return nil
}

func exec(c Command, user string) error {
	if err := unix.Access(c.Path, unix.X_OK); err != nil {
		return fmt.Errorf("QEMU, %s: %w; install it (Debian: qemu-system-x86), or configure where it is", c.Path, err)
	}
	var as *identity // nil: as who this is
	if os.Geteuid() == 0 {
		var err error
		if as, err = find(user); err != nil {
			return err
		}
	}
	if err := makeRunDir(c.RunDir, as); err != nil {
		return err
	}
	var files []*os.File
	for _, f := range c.Files {
		file, err := f.open()
		if err != nil {
			return err
		}
		files = append(files, file)
	}
	for _, t := range c.Taps {
		file, err := t.open()
		if err != nil {
			return err
		}
		files = append(files, file)
	}
	if c.Lock != nil {
		files = append(files, c.Lock.f)
	}
	if c.Ready != nil {
		c.Ready()
	}
	failed := make(chan error)
	go func() { failed <- become(c, files, as) }()
	err := <-failed
	runtime.KeepAlive(files)
	return err
}

// makeRunDir makes the directory for sockets, where systemd hasn't.
func makeRunDir(dir string, as *identity) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("the directory for its sockets: %w", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("the directory for its sockets: %w", err)
	}
	if as != nil {
		if err := os.Lchown(dir, as.uid, as.gid); err != nil {
			return fmt.Errorf("the directory for its sockets: %w", err)
		}
	}
	return nil
}

// become does what can't be taken back, on a thread that is never used for anything else.
//
// The thread first gets a table of descriptors of its own: the runtime's other threads
// poll one of them, whose number may be among those that are promised to QEMU.
// Identity and capabilities are a thread's as well, and execve(2) ends all other threads.
func become(c Command, files []*os.File, as *identity) error {
	runtime.LockOSThread()
	from := make([]int, len(files))
	for i, f := range files {
		from[i] = int(f.Fd())
	}
	if err := unix.Unshare(unix.CLONE_FILES); err != nil {
		return fmt.Errorf("a table of descriptors of its own: %w", err)
	}
	if err := place(from, 3); err != nil {
		return fmt.Errorf("its descriptors: %w", err)
	}
	if err := drop(as); err != nil {
		return err
	}
	unix.Umask(0o077)
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	return fmt.Errorf("%s: %w", c.Path, syscall.Exec(c.Path, append([]string{c.Path}, c.Args...), []string{environment}))
}

// place puts descriptors at the numbers from first on; all else from there on is closed
// by the exec.
func place(from []int, first int) error {
	// Out of the way of those numbers, before one is overwritten that is still needed.
	away := make([]int, len(from))
	for i, fd := range from {
		var err error
		if away[i], err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, first+len(from)); err != nil {
			return err
		}
	}
	if err := unix.CloseRange(uint(first), ^uint(0)>>32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close_range (Linux 5.11): %w", err)
	}
	for i, fd := range away {
		if err := unix.Dup3(fd, first+i, 0); err != nil {
			return err
		}
	}
	return nil
}
