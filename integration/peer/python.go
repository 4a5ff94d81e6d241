package peer

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"sync"
	"syscall"
)

//go:embed libvirt.py
var pythonText string

// pythonProgram is Debian's: the one with python3-libvirt, whatever else stands in the PATH.
const pythonProgram = "/usr/bin/python3"

// python is a client of libvirtd that stays. Requests may be sent from any number of
// goroutines.
type python struct {
	cmd *exec.Cmd
	in  io.WriteCloser

	mu      sync.Mutex // guards what follows, and writes to in
	next    int
	waiting map[int]chan pythonAnswer
	ended   error
}

type pythonRequest struct {
	ID   int     `json:"id"`
	Do   string  `json:"do"`
	VM   string  `json:"vm,omitempty"`
	Disc *string `json:"disc,omitempty"`
}

type pythonAnswer struct {
	ID    int               `json:"id"`
	Error string            `json:"error"`
	Says  map[string]Status `json:"says"`
}

func startPython(uri string) (*python, error) {
	p := &python{cmd: exec.Command(pythonProgram, "-c", pythonText, uri), waiting: make(map[int]chan pythonAnswer)}
	p.cmd.Env = noAutostart()
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var errs lastLines
	p.cmd.Stderr = &errs
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%w (Debian: python3-libvirt)", err)
	}
	go p.listen(out, &errs)
	return p, nil
}

// listen hands answers to those who wait, until the process ends.
func (p *python) listen(out io.Reader, errs *lastLines) {
	for lines := bufio.NewScanner(out); lines.Scan(); {
		var a pythonAnswer
		if err := json.Unmarshal(lines.Bytes(), &a); err != nil {
			break
		}
		p.mu.Lock()
		to := p.waiting[a.ID]
		delete(p.waiting, a.ID)
		p.mu.Unlock()
		if to != nil {
			to <- a
		}
	}
	_ = p.cmd.Process.Kill() // it may have ended
	_ = p.cmd.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = fmt.Errorf("the Python client ended: %s", errs)
	for id, to := range p.waiting {
		delete(p.waiting, id)
		to <- pythonAnswer{Error: p.ended.Error()}
	}
}

func (p *python) do(ctx context.Context, r pythonRequest) (map[string]Status, error) {
	answer := make(chan pythonAnswer, 1)
	if err := p.send(r, answer); err != nil {
		return nil, err
	}
	select {
	case a := <-answer:
		if a.Error != "" {
			return nil, errors.New(a.Error)
		}
		return a.Says, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *python) send(r pythonRequest, answer chan pythonAnswer) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended != nil {
		return p.ended
	}
	p.next++
	r.ID = p.next
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	p.waiting[r.ID] = answer
	_, err = p.in.Write(append(b, '\n'))
	return err
}

// close ends the process.
func (p *python) close() {
	_ = p.cmd.Process.Kill() // listen reaps it
	_ = p.in.Close()
}

// lastLines keeps what a process wrote last. One goroutine writes; it is read when the
// process has ended.
type lastLines struct{ text []byte }

func (l *lastLines) Write(b []byte) (int, error) {
	const enough = 4096
	l.text = append(l.text, b...)
	l.text = l.text[max(0, len(l.text)-enough):]
	return len(b), nil
}

func (l *lastLines) String() string { return string(l.text) }
