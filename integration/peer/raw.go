package peer

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Raw is a bare monitor connection and the four commands of a change, with nothing parsed
// that needn't be. One goroutine may use it at a time.
type Raw struct {
	conn *net.UnixConn
	r    *bufio.Reader
	log  *os.File // takes two durable appends a change, as the journal does
}

// DialRaw connects to a monitor. log is a file that takes two durable appends a change; ""
// for none.
func DialRaw(path, log string) (*Raw, error) {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	r := &Raw{conn: c, r: bufio.NewReaderSize(c, 64<<10)}
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

// Command sends a command, with a descriptor if f is set, and returns its answer,
// past the events before it.
func (r *Raw) Command(c string, f *os.File) ([]byte, error) {
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

func (r *Raw) durable() error {
	if r.log == nil {
		return nil
	}
	if _, err := r.log.Write(record); err != nil {
		return err
	}
	return unix.Fdatasync(int(r.log.Fd()))
}

// Change is add-fd, change-medium, remove-fd, query-block, between two durable writes.
func (r *Raw) Change(drive, disc, node string) error {
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
func (r *Raw) Eject(drive string) error {
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
func (r *Raw) Close() error {
	if r.log != nil {
		r.log.Close()
	}
	return r.conn.Close()
}
