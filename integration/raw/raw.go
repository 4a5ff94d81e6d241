// Package raw is the floor that trayd is measured against: a bare monitor connection and the
// commands of a change, with nothing parsed that needn't be. It is a package of its own so that
// a program of it starts as fast as one can.
package raw

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Conn is a connection to a monitor. One goroutine may use it at a time.
type Conn struct {
	conn *net.UnixConn
	r    *bufio.Reader
	log  *os.File // takes two durable appends a change, as the journal does
}

// Dial connects to a monitor. log is a file that takes two durable appends a change; ""
// for none.
func Dial(path, log string) (*Conn, error) {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	r := &Conn{conn: c, r: bufio.NewReaderSize(c, 64<<10)}
	if _, err := r.r.ReadBytes('\n'); err != nil {
		return nil, err
	}
	if _, err := r.Command(`{"execute":"qmp_capabilities"}`, nil); err != nil {
		return nil, err
	}
	if log != "" {
		r.log, err = os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	}
	return r, err
}

// Durable is the same connection with two durable appends to log for each change.
func (r *Conn) Durable(log *os.File) *Conn { return &Conn{r.conn, r.r, log} }

// Command sends a command, with a descriptor if f is set, and returns its answer,
// past the events before it.
func (r *Conn) Command(c string, f *os.File) ([]byte, error) {
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

// Record is about what trayd's journal writes for a transition.
func Record() []byte { return record }

var record = bytes.Repeat([]byte("."), 600)

func (r *Conn) durable() error {
	if r.log == nil {
		return nil
	}
	if _, err := r.log.Write(record); err != nil {
		return err
	}
	return unix.Fdatasync(int(r.log.Fd()))
}

// Change is add-fd, change-medium, remove-fd, query-block, between two durable writes.
func (r *Conn) Change(drive, disc, node string) error {
	if err := r.durable(); err != nil {
		return err
	}
	f, err := os.Open(disc)
	if err != nil {
		return err
	}
	defer f.Close()
	answer, err := r.Command(`{"execute":"add-fd","arguments":{"opaque":"`+node+`"}}`, f)
	if err != nil {
		return err
	}
	_, after, _ := bytes.Cut(answer, []byte(`"fdset-id": `))
	set := string(after[:bytes.IndexAny(after, ",}")])
	if _, err := r.Command(`{"execute":"blockdev-change-medium","arguments":{"id":"`+drive+
		`","filename":"json:{\"driver\":\"raw\",\"node-name\":\"`+node+`\",\"read-only\":true,\"file\":{\"driver\":\"file\",\"filename\":\"/dev/fdset/`+set+
		`\"}}","read-only-mode":"read-only"}}`, nil); err != nil {
		return err
	}
	if _, err := r.Command(`{"execute":"remove-fd","arguments":{"fdset-id":`+set+`}}`, nil); err != nil {
		return err
	}
	answer, err = r.Command(`{"execute":"query-block"}`, nil)
	if err != nil {
		return err
	}
	if !bytes.Contains(answer, []byte(node)) {
		return fmt.Errorf("%s is not in", node)
	}
	return r.durable()
}

// Eject takes the disc out and closes the tray, as trayd does.
func (r *Conn) Eject(drive string) error {
	if err := r.durable(); err != nil {
		return err
	}
	for _, c := range []string{"eject", "blockdev-close-tray"} {
		if _, err := r.Command(`{"execute":"`+c+`","arguments":{"id":"`+drive+`"}}`, nil); err != nil {
			return err
		}
	}
	answer, err := r.Command(`{"execute":"query-block"}`, nil)
	if err != nil {
		return err
	}
	if bytes.Contains(answer, []byte(`"inserted"`)) {
		return fmt.Errorf("%s is not empty", drive)
	}
	return r.durable()
}

// Close ends the connection.
func (r *Conn) Close() error {
	if r.log != nil {
		r.log.Close()
	}
	return r.conn.Close()
}
