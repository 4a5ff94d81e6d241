package network

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// UnavailableError is of a broker that isn't there, or ended in the middle. It hides the
// system's error: that nobody listens on the broker's socket says nothing of the host that
// was to be reached.
type UnavailableError struct {
	Path string // of the broker's socket
	Why  string
}

func (e *UnavailableError) Error() string {
	return fmt.Sprintf("trayd's way to the network, %s, can't be used: %s; see `systemctl status trayd-network.socket trayd-network`", e.Path, e.Why)
}

// failure is an error on its way from the broker: as much of it as its receiver decides on.
type failure struct {
	Text    string   `json:"text"`
	Errno   int      `json:"errno,omitempty"`
	Call    string   `json:"call,omitempty"` // the system call that gave Errno
	Timeout bool     `json:"timeout,omitempty"`
	DNS     *dnsFail `json:"dns,omitempty"`
}

// dnsFail is a net.DNSError.
type dnsFail struct {
	Err       string `json:"err"`
	Name      string `json:"name"`
	Server    string `json:"server,omitempty"`
	Timeout   bool   `json:"timeout,omitempty"`
	Temporary bool   `json:"temporary,omitempty"`
	NotFound  bool   `json:"not_found,omitempty"`
}

// failureOf is nil for nil.
func failureOf(err error) *failure {
	if err == nil {
		return nil
	}
	f := &failure{Text: err.Error()}
	var (
		dns  *net.DNSError
		call *os.SyscallError
		no   unix.Errno
		late interface{ Timeout() bool }
	)
	switch {
	case errors.As(err, &dns):
		f.DNS = &dnsFail{dns.Err, dns.Name, dns.Server, dns.IsTimeout, dns.IsTemporary, dns.IsNotFound}
	case errors.As(err, &no):
		f.Errno = int(no)
		if errors.As(err, &call) {
			f.Call = call.Syscall
		}
	case errors.As(err, &late):
		f.Timeout = late.Timeout()
	}
	return f
}

// error is what the net package would have said itself of an operation on an address.
func (f *failure) error(op string, at net.Addr) error {
	switch {
	case f == nil:
		return nil
	case f.DNS != nil:
		return &net.DNSError{Err: f.DNS.Err, Name: f.DNS.Name, Server: f.DNS.Server,
			IsTimeout: f.DNS.Timeout, IsTemporary: f.DNS.Temporary, IsNotFound: f.DNS.NotFound}
	}
	err := errors.New(f.Text)
	switch {
	case f.Errno != 0 && f.Call != "":
		err = os.NewSyscallError(f.Call, unix.Errno(f.Errno))
	case f.Errno != 0:
		err = unix.Errno(f.Errno)
	case f.Timeout:
		err = os.ErrDeadlineExceeded
	}
	return &net.OpError{Op: op, Net: "tcp", Addr: at, Err: err}
}
