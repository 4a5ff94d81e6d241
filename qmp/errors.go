package qmp

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"
)

// Errors of connecting.
var (
	// ErrHeld means that the monitor accepted the connection (or queued it) and sent no greeting in time. QEMU serves
	// one client per monitor socket and leaves the next one waiting without a word. A QEMU that is frozen as a whole
	// looks the same from here. It always comes within an [OpError].
	ErrHeld = errors.New("another client holds this monitor")
)

// Errors of a command. They exclude each other.
var (
	// ErrClosed means that the connection had ended, and that the command was NOT sent. The error also matches the
	// reason, which is [Conn.Err].
	ErrClosed = errors.New("monitor connection is closed")

	// ErrUnanswered means that the command was sent, or a part of it, and that its reply did not come: the caller's
	// context ended, or the connection did. QEMU may have executed the command and may still execute it later. The
	// error also matches the context's error, or the reason why the connection ended.
	ErrUnanswered = errors.New("sent but not answered")
)

// The classes of an [Error]. QEMU uses ClassGeneric for nearly everything; its texts differ between versions, so a
// program decides by the class or by asking for the state, never by the text.
const (
	ClassGeneric         = "GenericError"
	ClassDeviceNotFound  = "DeviceNotFound"
	ClassCommandNotFound = "CommandNotFound"
)

// An Error is QEMU's answer that it did not do what a command asked for. Methods return it as *Error.
type Error struct {
	Command string // the command as it was sent
	Class   string // one of the Class constants
	Desc    string // QEMU's text, for a person
}

func (e *Error) Error() string {
	return fmt.Sprintf("QEMU refused %s: %s", e.Command, e.Desc)
}

// An OpError says which step of connecting to which monitor failed.
type OpError struct {
	Op   string // "connect", "greeting" or "capabilities"
	Path string // the socket; empty when [NewConn] was given one without a name
	Err  error
}

func newOpError(op, path string, err error) error {
	if err == nil {
		return nil
	}
	return &OpError{Op: op, Path: path, Err: err}
}

func (e *OpError) Error() string {
	if e.Path == "" {
		return "monitor: " + e.Err.Error()
	}
	return "monitor " + e.Path + ": " + e.Err.Error()
}

func (e *OpError) Unwrap() error { return e.Err }

// Timeout reports whether time was what ran out; it makes an OpError a net.Error's equal in that respect.
func (e *OpError) Timeout() bool {
	var t interface{ Timeout() bool }
	return errors.As(e.Err, &t) && t.Timeout()
}

// A causedError is one of this package's sentinels together with what led to it; it matches both.
type causedError struct {
	text     string
	sentinel error
	cause    error
}

func (e *causedError) Error() string   { return e.text }
func (e *causedError) Unwrap() []error { return []error{e.sentinel, e.cause} }

func heldError(limit time.Duration, cause error) error {
	return &causedError{
		text:     fmt.Sprintf("no greeting within %v: %v", limit.Round(time.Millisecond), ErrHeld),
		sentinel: ErrHeld,
		cause:    cause,
	}
}

func closedError(command string, cause error) error {
	return &causedError{
		text:     fmt.Sprintf("%s was not sent: %v: %v", command, ErrClosed, cause),
		sentinel: ErrClosed,
		cause:    cause,
	}
}

func unansweredError(command string, cause error) error {
	return &causedError{
		text:     fmt.Sprintf("%s was sent but not answered, QEMU may execute it nevertheless: %v", command, cause),
		sentinel: ErrUnanswered,
		cause:    cause,
	}
}

// notSentError is for a command that could not be sent while the connection is all right.
func notSentError(command string, cause error) error {
	return fmt.Errorf("%s was not sent: %w", command, cause)
}

// errOwnClose is why a connection ended that its owner closed. It is not ErrClosed: a command that was pending at that
// moment fails with this cause, and must not look as if it had not been sent.
var errOwnClose = fmt.Errorf("closed by its owner: %w", net.ErrClosed)

// endError puts into words how the socket ended.
func endError(err error) error {
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("QEMU closed the monitor in the middle of a message: %w", err)
	case errors.Is(err, io.EOF):
		return fmt.Errorf("QEMU closed the monitor: %w", err)
	case errors.Is(err, syscall.ECONNRESET): // an end too, of a QEMU that had not read everything
		return &causedError{
			text:     fmt.Sprintf("QEMU closed the monitor: %v", syscall.ECONNRESET),
			sentinel: io.EOF,
			cause:    syscall.ECONNRESET,
		}
	}
	return fmt.Errorf("reading from the monitor: %w", err)
}
