package remote

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// Client asks for commands on a stream. Its methods may be called concurrently.
type Client struct {
	out  *frameWriter
	done chan struct{} // closed when the stream has ended

	mu      sync.Mutex // guards below
	next    uint32
	running map[uint32]*Command
	err     error // why the stream ended
}

// NewClient speaks on a stream until it ends.
func NewClient(rw io.ReadWriter) *Client {
	c := &Client{out: &frameWriter{w: rw}, done: make(chan struct{}), running: make(map[uint32]*Command)}
	go c.read(rw)
	return c
}

// Command is what to run, in the manner of os/exec.
type Command struct {
	Args           []string
	Dir            string
	Env            []string  // added to the other end's environment
	Stdin          io.Reader // nil: empty
	Stdout, Stderr io.Writer // nil: thrown away
	Terminal       *Size     // gives it a terminal; Stderr is part of Stdout then
	Resized        <-chan Size

	outcome chan outcome
}

// killed is how long a killed command may take to end.
const killed = 5 * time.Second

// Run runs a command to its end and returns its exit code; 128 and the signal when one
// ended it. When ctx ends before, the command and its process group are killed. An
// error says that it could not be run, or that nobody knows how it ended.
func (c *Client) Run(ctx context.Context, cmd *Command) (int, error) {
	cmd.outcome = make(chan outcome, 1)
	c.mu.Lock()
	c.next++
	number := c.next
	c.running[number] = cmd
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.running, number)
		c.mu.Unlock()
	}()
	r := request{Args: cmd.Args, Dir: cmd.Dir, Env: cmd.Env, Size: cmd.Terminal}
	if err := c.out.writeJSON(start, number, r); err != nil {
		return -1, fmt.Errorf("%q: %w", cmd.Args, err)
	}
	go c.feed(number, cmd)
	canceled := ctx.Done()
	var late <-chan time.Time
	for {
		select {
		case o := <-cmd.outcome:
			switch {
			case o.Error != "":
				return o.Code, fmt.Errorf("%q: %s", cmd.Args, o.Error)
			case ctx.Err() != nil:
				return o.Code, fmt.Errorf("%q: %w", cmd.Args, context.Cause(ctx))
			}
			return o.Code, nil
		case size := <-cmd.Resized:
			_ = c.out.writeJSON(resize, number, size) // the end of the stream is seen below
		case <-canceled:
			canceled, late = nil, time.After(killed)
			_ = c.out.write(kill, number, nil) // as above
		case <-late:
			return -1, fmt.Errorf("%q: %w; it was killed and has not ended for %v", cmd.Args, context.Cause(ctx), killed)
		case <-c.done:
			return -1, fmt.Errorf("%q: %w", cmd.Args, c.err)
		}
	}
}

func (c *Client) feed(number uint32, cmd *Command) {
	if cmd.Stdin != nil {
		_, _ = io.Copy(stream{c.out, stdin, number}, cmd.Stdin) // Run sees the end of the stream
	}
	_ = c.out.write(stdin, number, nil) // as above
}

// Output runs a command and returns what it wrote. An exit code other than 0 is an
// error, with what it wrote to stderr.
func (c *Client) Output(ctx context.Context, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	code, err := c.Run(ctx, &Command{Args: args, Stdout: &stdout, Stderr: &stderr})
	if err == nil && code != 0 {
		err = fmt.Errorf("%q: exit code %d: %s", args, code, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), err
}

func (c *Client) read(r io.Reader) {
	for {
		f, err := readFrame(r)
		if err != nil {
			if errors.Is(err, io.EOF) {
				err = errors.New("the machine at the other end has gone")
			}
			c.err = err
			close(c.done)
			return
		}
		c.mu.Lock()
		cmd := c.running[f.command]
		c.mu.Unlock()
		if cmd != nil {
			cmd.take(f)
		}
	}
}

// take takes what a command said. A writer that fails loses it, not the others' words.
func (cmd *Command) take(f frame) {
	switch f.kind {
	case stdout:
		if cmd.Stdout != nil {
			_, _ = cmd.Stdout.Write(f.data)
		}
	case stderr:
		if cmd.Stderr != nil {
			_, _ = cmd.Stderr.Write(f.data)
		}
	case exit:
		var o outcome
		if err := json.Unmarshal(f.data, &o); err != nil {
			o = outcome{Code: -1, Error: err.Error()}
		}
		cmd.outcome <- o
	}
}
