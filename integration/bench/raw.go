package main

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// raw is the floor: a bare monitor socket and the four commands of a change, with
// nothing parsed that needn't be.
type raw struct {
	conn *net.UnixConn
	r    *bufio.Reader
	log  *os.File // takes two durable appends a change, as the journal does
}

func dialRaw(path, log string) (*raw, error) {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	r := &raw{conn: c, r: bufio.NewReaderSize(c, 64<<10)}
	if _, err := r.r.ReadBytes('\n'); err != nil {
		return nil, err
	}
	if _, err := r.command(`{"execute":"qmp_capabilities"}`, nil); err != nil {
		return nil, err
	}
	if log != "" {
		r.log, err = os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	}
	return r, err
}

// command sends a command, with a descriptor if f is set, and returns its answer,
// past the events before it.
func (r *raw) command(c string, f *os.File) ([]byte, error) {
	var oob []byte
	if f != nil {
		oob = syscall.UnixRights(int(f.Fd()))
	}
	if _, _, err := r.conn.WriteMsgUnix([]byte(c), oob, nil); err != nil {
		return nil, err
	}
	for {
		line, err := r.r.ReadBytes('\n')
		if err != nil {
			return nil, err
		}
		if bytes.Contains(line, []byte(`"event"`)) {
			continue
		}
		if bytes.Contains(line, []byte(`"error"`)) {
			return nil, fmt.Errorf("%s: %s", c, line)
		}
		return line, nil
	}
}

// record is about what the journal writes for a transition.
var record = bytes.Repeat([]byte("."), 600)

func (r *raw) durable() error {
	if r.log == nil {
		return nil
	}
	if _, err := r.log.Write(record); err != nil {
		return err
	}
	return unix.Fdatasync(int(r.log.Fd()))
}

// change is add-fd, change-medium, remove-fd, query-block, between two durable writes.
func (r *raw) change(drive, disc, node string) error {
	if err := r.durable(); err != nil {
		return err
	}
	f, err := os.Open(disc)
	if err != nil {
		return err
	}
	defer f.Close()
	answer, err := r.command(`{"execute":"add-fd","arguments":{"opaque":"`+node+`"}}`, f)
	if err != nil {
		return err
	}
	_, after, _ := bytes.Cut(answer, []byte(`"fdset-id": `))
	set := string(after[:bytes.IndexAny(after, ",}")])
	if _, err := r.command(`{"execute":"blockdev-change-medium","arguments":{"id":"`+drive+
		`","filename":"json:{\"driver\":\"raw\",\"node-name\":\"`+node+`\",\"read-only\":true,\"file\":{\"driver\":\"file\",\"filename\":\"/dev/fdset/`+set+
		`\"}}","read-only-mode":"read-only"}}`, nil); err != nil {
		return err
	}
	if _, err := r.command(`{"execute":"remove-fd","arguments":{"fdset-id":`+set+`}}`, nil); err != nil {
		return err
	}
	answer, err = r.command(`{"execute":"query-block"}`, nil)
	if err != nil {
		return err
	}
	if !bytes.Contains(answer, []byte(node)) {
		return fmt.Errorf("%s is not in", node)
	}
	return r.durable()
}
