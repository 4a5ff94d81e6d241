package qmptest

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
)

// maxFiles is how many descriptors are taken in at once, SCM_MAX_FD of the kernel.
const maxFiles = 253

// A session is one client's time.
type session struct {
	server     *Server
	nc         *net.UnixConn
	negotiated atomic.Bool
	once       sync.Once
	done       chan struct{} // closed by hangup

	writing sync.Mutex // keeps messages apart

	files []*os.File // received and not used yet; only the session's goroutine has them
}

// run greets, and handles commands until the client goes.
func (c *session) run() {
	if len(c.server.greeting) > 0 {
		c.write(c.server.greeting)
	}
	dec := json.NewDecoder(c)
	for {
		var raw json.RawMessage
		err := dec.Decode(&raw)
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			c.send(map[string]any{"error": answer{"GenericError", "JSON parse error, " + err.Error()}})
			return
		}
		if err != nil {
			return
		}
		c.handle(raw)
	}
}

func (c *session) handle(raw json.RawMessage) {
	var command struct {
		Execute   string          `json:"execute"`
		Arguments json.RawMessage `json:"arguments"`
		ID        json.RawMessage `json:"id"`
	}
	err := json.Unmarshal(raw, &command)
	r := &Request{Command: command.Execute, Args: command.Arguments, ID: command.ID, Raw: raw, session: c}
	switch {
	case err != nil || command.Execute == "":
		r.Error("GenericError", "QMP input lacks member 'execute'")
		return
	case command.Execute == "add-fd" || command.Execute == "getfd":
		if len(c.files) > 0 {
			r.File, c.files = c.files[0], c.files[1:]
		}
	}
	c.server.record(r)
	switch {
	case r.Command == "qmp_capabilities":
		c.negotiated.Store(true)
	case !c.negotiated.Load():
		r.Error("CommandNotFound", "Expecting capabilities negotiation with 'qmp_capabilities'")
		return
	}
	c.server.handler(r.Command)(r)
}

// Read reads what the client says, and takes the descriptors that come with it.
func (c *session) Read(p []byte) (int, error) {
	oob := make([]byte, syscall.CmsgSpace(maxFiles*4))
	n, oobn, _, _, err := c.nc.ReadMsgUnix(p, oob)
	if err != nil {
		return 0, err // with n = -1, which no Reader returns
	}
	if n == 0 {
		err = io.EOF
	}
	messages, _ := syscall.ParseSocketControlMessage(oob[:oobn])
	for i := range messages {
		fds, _ := syscall.ParseUnixRights(&messages[i]) // anything else is none of ours
		for _, fd := range fds {
			c.files = append(c.files, c.server.keep(os.NewFile(uintptr(fd), "received")))
		}
	}
	return n, err
}

// keep sees to it that f is closed in the end.
func (s *Server) keep(f *os.File) *os.File {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files = append(s.files, f)
	return f
}

func (c *session) send(v any) { c.write(c.server.encode(v)) }

// write writes everything, or ends the session because the client has gone.
func (c *session) write(p []byte) {
	c.writing.Lock()
	defer c.writing.Unlock()
	if _, err := c.nc.Write(p); err != nil {
		c.hangup()
	}
}

func (c *session) hangup() {
	c.once.Do(func() {
		close(c.done)
		c.nc.Close()
	})
}
