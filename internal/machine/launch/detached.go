package launch

import (
	"context"
	"fmt"
	"io"
	"os"
	osexec "os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Detached runs machines as processes in sessions of their own.
type Detached struct {
	o      Options
	refuse error // why no machine may be started
	each   each

	mu       sync.Mutex        // guards the rest
	children map[string]*child // the last process of each machine that this Detached started
}

// child is a process that is this one's to await.
type child struct {
	cmd    *osexec.Cmd
	from   int64         // where its words begin in the log
	gone   chan struct{} // closed at its end
	killed bool          // by Kill; guarded by Detached.mu
	ended  State         // once it is gone
}

// NewDetached makes a Detached. What its processes are children of is trayd; they are
// awaited until they end.
func NewDetached(o Options) *Detached {
	return &Detached{o: o, children: make(map[string]*child)}
}

// Name is "process".
func (*Detached) Name() string { return RunProcess }

// The descriptors that a launcher inherits beside the standard ones: the lock, and where
// it writes why it failed. The kernel closes the latter when it has become QEMU.
const (
	lockFD     = 3
	reportFD   = 4
	reportAway = 512 // from where on the launcher has it
)

// Inherited is what Detached has given to this process, which it started.
type Inherited struct {
	Lock   *Lock
	report *os.File
}

// Inherit finds what Detached gives to `trayd launch --inherit`, and to nobody else.
func Inherit() (*Inherited, error) {
	for fd, kind := range map[int]uint32{lockFD: unix.S_IFREG, reportFD: unix.S_IFIFO} {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != kind {
			return nil, fmt.Errorf("descriptor %d isn't what it has to be: --inherit is for trayd alone", fd)
		}
		unix.CloseOnExec(fd)
	}
	// Not at a number that is promised to QEMU: it is to be closed by the exec, and by
	// nothing before.
	report, err := unix.FcntlInt(reportFD, unix.F_DUPFD_CLOEXEC, reportAway)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d: %w", reportFD, err)
	}
	unix.Close(reportFD)
	return &Inherited{Lock: inheritLock(lockFD), report: os.NewFile(uintptr(report), "report")}, nil
}

// Ready says that nothing is left to do but to become QEMU.
func (i *Inherited) Ready() { fmt.Fprint(i.report, ready) } // to nobody, when trayd has ended

// Report says why the start failed.
func (i *Inherited) Report(failed error) { fmt.Fprint(i.report, failed) }

// ready begins the report of a launcher that came so far. Without it, the report's end is
// the launcher's.
const ready = "ready\n"

// Start implements Runner.
func (d *Detached) Start(ctx context.Context, name string) error {
	if d.refuse != nil {
		return fmt.Errorf("machine %s: %w", name, d.refuse)
	}
	release, err := d.each.take(ctx, name)
	if err != nil {
		return err
	}
	defer release()
	lock, err := TakeLock(d.o.Dirs, name)
	if err != nil {
		return err
	}
	defer lock.Close() // until the launcher has it
	if err := d.cleanUp(name); err != nil {
		return err
	}
	return d.fork(ctx, name, lock)
}

// fork starts the launcher and waits until it is QEMU.
func (d *Detached) fork(ctx context.Context, name string, lock *Lock) error {
	log, from, err := openLog(d.o.Dirs.log(name))
	if err != nil {
		return fmt.Errorf("machine %s: %w", name, err)
	}
	defer log.Close()
	report, theirs, err := os.Pipe()
	if err != nil {
		return err
	}
	defer report.Close()
	c := &child{from: from, gone: make(chan struct{})}
	if c.cmd, err = d.launcher(name, log, lock.f, theirs); err == nil {
		err = d.adopt(name, c)
	}
	theirs.Close()
	lock.Close()
	if err != nil {
		return fmt.Errorf("machine %s: the launcher can't be started: %w", name, err)
	}
	go d.reap(name, c)
	return d.await(ctx, name, c, report)
}

// adopt starts a process that Kill knows before it can be killed.
func (d *Detached) adopt(name string, c *child) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := c.cmd.Start(); err != nil {
		return err
	}
	d.children[name] = c
	return nil
}

// launcher is the command that becomes QEMU.
func (d *Detached) launcher(name string, log, lock, report *os.File) (*osexec.Cmd, error) {
	program := d.o.Program
	if program == "" {
		var err error
		if program, err = os.Executable(); err != nil {
			return nil, err
		}
	}
	var args []string
	if d.o.Config != "" {
		args = append(args, "--config", d.o.Config)
	}
	cmd := osexec.Command(program, append(args, "launch", "--inherit", name)...)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{lock, report}
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		// What systemd told trayd is not for a process that isn't its unit's.
		return slices.Contains([]string{"NOTIFY_SOCKET", "INVOCATION_ID", "SYSTEMD_EXEC_PID", "JOURNAL_STREAM"}, name)
	})
	// Neither a terminal's end nor a signal to trayd's group is for it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd, nil
}

// await waits for the end of the launcher's report: the kernel closes it at its exec.
func (d *Detached) await(ctx context.Context, name string, c *child, report *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = c.cmd.Process.Kill() })
	b, err := io.ReadAll(io.LimitReader(report, wordsLimit))
	if !stop() {
		<-c.gone
		return fmt.Errorf("machine %s: its start was given up: %w", name, context.Cause(ctx))
	}
	words, came := strings.CutPrefix(string(b), ready)
	if err == nil && came && words == "" {
		return nil
	}
	<-c.gone // the lock is free when this returns
	if words == "" {
		words = c.ended.Why
	}
	return &StartError{Machine: name, Why: words}
}

// reap notes how a process ended, and removes what it leaves.
func (d *Detached) reap(name string, c *child) {
	err := c.cmd.Wait()
	s := State{}
	if err != nil {
		s = State{Failed: true, Why: lastWords(d.o.Dirs.log(name), c.from)}
		if s.Why == "" {
			s.Why = "it ended without a word (" + err.Error() + ")"
		}
	}
	d.mu.Lock()
	if c.killed {
		s = State{}
	}
	c.ended = s
	d.mu.Unlock()
	// Nobody else's, unless somebody has started it again: then it is for him to do.
	if lock, err := tryLock(d.o.Dirs, name); err == nil {
		_ = d.cleanUp(name) // the next start tries again, and says why it can't
		lock.Close()
	}
	close(c.gone)
}

// cleanUp removes the directory with the sockets of a process that has ended.
func (d *Detached) cleanUp(name string) error {
	if err := os.RemoveAll(filepath.Join(d.o.Dirs.Run, name)); err != nil {
		return fmt.Errorf("machine %s: what its last process left can't be removed: %w", name, err)
	}
	return nil
}

// Tidy implements Runner.
func (d *Detached) Tidy(ctx context.Context, name string) error {
	if !machineName.MatchString(name) {
		return fmt.Errorf("machine %q: %w", name, ErrName)
	}
	release, err := d.each.take(ctx, name)
	if err != nil {
		return err
	}
	defer release()
	if d.o.Dirs.check(name) == nil { // else there is no machine any more that could run
		lock, err := TakeLock(d.o.Dirs, name)
		if err != nil {
			return err
		}
		defer lock.Close()
	}
	return d.cleanUp(name)
}

// Kill implements Runner.
func (d *Detached) Kill(ctx context.Context, name string) error {
	if !machineName.MatchString(name) {
		return fmt.Errorf("machine %q: %w", name, ErrName)
	}
	var ours *child
	err := kill(ctx, d.o.Dirs, name, func(pid int) {
		d.mu.Lock()
		defer d.mu.Unlock()
		if c := d.children[name]; c != nil && c.cmd.Process.Pid == pid {
			c.killed, ours = true, c
		}
	})
	if err != nil {
		return err
	}
	if ours != nil {
		select {
		case <-ours.gone:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if lock, err := tryLock(d.o.Dirs, name); err == nil {
		defer lock.Close()
		d.forget(name)
		return d.cleanUp(name)
	}
	return nil
}

// forget forgets how a process has ended.
func (d *Detached) forget(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c := d.children[name]; c != nil {
		select {
		case <-c.gone:
			delete(d.children, name)
		default:
		}
	}
}

// State implements Runner. How a process ended that an earlier trayd started, nobody
// knows: it isn't Failed.
func (d *Detached) State(ctx context.Context, name string) (State, error) {
	if !machineName.MatchString(name) {
		return State{}, fmt.Errorf("machine %q: %w", name, ErrName)
	}
	h, running, err := look(ctx, d.o.Dirs, name)
	if err != nil || running {
		return State{Running: running, PID: h.pid}, err
	}
	d.mu.Lock()
	c := d.children[name]
	d.mu.Unlock()
	if c == nil {
		return State{}, nil
	}
	select { // its lock goes a moment before the rest of it
	case <-c.gone:
		return c.ended, nil
	case <-ctx.Done():
		return State{}, ctx.Err()
	}
}
