package systemd

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	journalSocket = "/run/systemd/journal/socket"

	// patience is how long one entry may wait for a journal that doesn't read. The
	// kernel holds some entries (net.unix.max_dgram_qlen) and the journal a lot more,
	// so only a journal that is stuck makes anybody wait.
	patience = 100 * time.Millisecond
	// impatience is for the entries after one that waited in vain.
	impatience = time.Millisecond
	// sendBuffer in bytes is what libsystemd asks for; the kernel gives what it may
	// (net.core.wmem_max). What is larger goes as a memfd.
	sendBuffer = 8 << 20
)

// entrySocket sends entries to the journal. It never holds up its callers for longer
// than patience, and for hardly any time once the journal has been found stuck.
type entrySocket struct {
	path string

	mu      sync.Mutex    // guards below, and keeps entries in their order
	conn    *net.UnixConn // nil: not connected
	stuck   bool          // the last entry waited in vain
	dropped int           // entries since the last that was taken
}

// write sends one entry.
func (s *entrySocket) write(fields []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dropped > 0 {
		fields = appendField(fields, "DROPPED_ENTRIES", strconv.Itoa(s.dropped))
	}
	err := s.send(fields)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && s.conn != nil {
		s.conn.Close() // the journal was started anew: once more on a new connection
		s.conn = nil
		err = s.send(fields)
	}
	s.stuck = errors.Is(err, os.ErrDeadlineExceeded)
	if err != nil {
		s.dropped++
		return fmt.Errorf("journal: %w", err)
	}
	s.dropped = 0
	return nil
}

func (s *entrySocket) send(fields []byte) error {
	if s.conn == nil {
		c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: s.path, Net: "unixgram"})
		if err != nil {
			return err
		}
		_ = c.SetWriteBuffer(sendBuffer) // the default does for all but the largest
		s.conn = c
	}
	if err := s.limit(); err != nil {
		return err
	}
	_, err := s.conn.Write(fields)
	if errors.Is(err, unix.EMSGSIZE) || errors.Is(err, unix.ENOBUFS) {
		return s.sendFile(fields)
	}
	return err
}

// limit bounds how long the next write may wait for the journal.
func (s *entrySocket) limit() error {
	wait := patience
	if s.stuck {
		wait = impatience
	}
	return s.conn.SetWriteDeadline(time.Now().Add(wait))
}

// sendFile sends an entry that is too large for a datagram: the descriptor of a memfd
// that holds it, sealed, since the journal refuses a file that may still change.
func (s *entrySocket) sendFile(fields []byte) error {
	fd, err := unix.MemfdCreate("journal-entry", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "journal-entry")
	defer f.Close()
	if _, err := f.Write(fields); err != nil {
		return err
	}
	const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	// net's WriteMsgUnix refuses a connected datagram socket.
	raw, err := s.conn.SyscallConn()
	if err != nil {
		return err
	}
	// Filling the file took time of its own, which the journal isn't to blame for.
	if err := s.limit(); err != nil {
		return err
	}
	var sent error
	err = raw.Write(func(conn uintptr) bool {
		sent = unix.Sendmsg(int(conn), nil, unix.UnixRights(fd), nil, unix.MSG_NOSIGNAL)
		return sent != unix.EAGAIN && sent != unix.EINTR
	})
	if err != nil {
		return err
	}
	return os.NewSyscallError("sendmsg", sent)
}
