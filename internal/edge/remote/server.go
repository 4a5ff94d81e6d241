package remote

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// lingering is how long output is read after a command's end, for what it left running
// in the background with its outputs.
const lingering = 500 * time.Millisecond

// Serve runs what the other end asks for until the stream ends. What runs then goes on.
func Serve(rw io.ReadWriter) error {
	s := server{out: &frameWriter{w: rw}, running: make(map[uint32]*process)}
	for {
		f, err := readFrame(rw)
		if err != nil {
			return err
		}
		if err := s.take(f); err != nil {
			return err
		}
	}
}

type server struct {
	out *frameWriter

	mu      sync.Mutex // guards running
	running map[uint32]*process
}

// process is a command that runs.
type process struct {
	cmd      *exec.Cmd
	input    *queue
	terminal *os.File      // nil when it has none
	said     chan struct{} // closed when all that came from the terminal was sent
}

func (s *server) take(f frame) error {
	if f.kind == start {
		var r request
		if err := json.Unmarshal(f.data, &r); err != nil {
			return fmt.Errorf("request: %w", err)
		}
		if err := s.start(f.command, r); err != nil {
			return s.out.writeJSON(exit, f.command, outcome{Code: -1, Error: err.Error()})
		}
		return nil
	}
	s.mu.Lock()
	p := s.running[f.command]
	s.mu.Unlock()
	if p == nil {
		return nil // it has ended meanwhile
	}
	switch f.kind {
	case stdin:
		p.input.put(f.data)
	case kill:
		// The group, for what a shell started; it may have ended.
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	case resize:
		var size Size
		if err := json.Unmarshal(f.data, &size); err != nil {
			return fmt.Errorf("size: %w", err)
		}
		setSize(p.terminal, size)
	}
	return nil
}

func (s *server) start(command uint32, r request) error {
	if len(r.Args) == 0 {
		return errors.New("no command")
	}
	cmd := exec.Command(r.Args[0], r.Args[1:]...)
	cmd.Dir, cmd.Env = r.Dir, append(os.Environ(), r.Env...)
	cmd.WaitDelay = lingering
	p := &process{cmd: cmd, input: newQueue()}
	var err error
	if r.Size != nil {
		err = s.startOnTerminal(p, command, *r.Size)
	} else {
		err = s.startPlain(p, command)
	}
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.running[command] = p
	s.mu.Unlock()
	go s.wait(command, p)
	return nil
}

func (s *server) startPlain(p *process, command uint32) error {
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.Stdout, p.cmd.Stderr = stream{s.out, stdout, command}, stream{s.out, stderr, command}
	input, err := p.cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(input, p.input) // it need not read all
		input.Close()
	}()
	return nil
}

// startOnTerminal starts a command that has a pseudo-terminal (pty(7)).
func (s *server) startOnTerminal(p *process, command uint32, size Size) error {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	slave, err := openSlave(master)
	if err != nil {
		return errors.Join(err, master.Close())
	}
	defer slave.Close()
	p.terminal = master
	setSize(master, size)
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = slave, slave, slave
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := p.cmd.Start(); err != nil {
		return errors.Join(err, master.Close())
	}
	go func() { _, _ = io.Copy(master, p.input) }()
	p.said = make(chan struct{})
	go func() {
		defer close(p.said)
		_, _ = io.Copy(stream{s.out, stdout, command}, master) // EIO once nobody has the other end
	}()
	return nil
}

func openSlave(master *os.File) (*os.File, error) {
	fd := int(master.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return nil, err
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		return nil, err
	}
	return os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
}

func setSize(terminal *os.File, size Size) {
	if terminal != nil {
		// A terminal of no known size does as well.
		_ = unix.IoctlSetWinsize(int(terminal.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Columns})
	}
}

func (s *server) wait(command uint32, p *process) {
	err := p.cmd.Wait()
	p.input.put(nil)
	s.mu.Lock()
	delete(s.running, command)
	s.mu.Unlock()
	if p.terminal != nil {
		select {
		case <-p.said:
		case <-time.After(lingering):
		}
		p.terminal.Close()
	}
	var o outcome
	if p.cmd.ProcessState != nil {
		o.Code = exitCode(p.cmd.ProcessState)
	} else {
		o = outcome{Code: -1, Error: err.Error()}
	}
	_ = s.out.writeJSON(exit, command, o) // Serve sees the end of the stream
}

// exitCode is a shell's: 128 and the signal for one that was killed.
func exitCode(state *os.ProcessState) int {
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return state.ExitCode()
}

// queue holds a command's input until it is read, so that one command that doesn't
// read holds up no other. An empty chunk ends it.
type queue struct {
	mu     sync.Mutex // guards below
	filled *sync.Cond
	data   []byte
	ended  bool
}

func newQueue() *queue {
	q := &queue{}
	q.filled = sync.NewCond(&q.mu)
	return q
}

func (q *queue) put(b []byte) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.data = append(q.data, b...)
	q.ended = q.ended || len(b) == 0
	q.filled.Signal()
}

func (q *queue) Read(b []byte) (int, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.data) == 0 {
		if q.ended {
			return 0, io.EOF
		}
		q.filled.Wait()
	}
	n := copy(b, q.data)
	q.data = q.data[n:]
	return n, nil
}
