package agent

import (
	"errors"
	"fmt"
)

// Code is the stable name of a kind of error, for programs. It is part of the
// API: codes are added, never renamed.
type Code string

// The codes.
const (
	NoSuchVM       Code = "no-such-vm"
	NoSuchDrive    Code = "no-such-drive"
	AmbiguousDrive Code = "ambiguous-drive"
	DriveFixed     Code = "drive-fixed"       // its disc can't be changed while the machine runs
	DriveOccupied  Code = "drive-occupied"    // insert into a drive that has a disc
	DriveBusy      Code = "drive-busy"        // another operation is under way
	DriveLocked    Code = "drive-locked"      // the guest holds the door
	NothingToStop  Code = "nothing-to-cancel" // no operation that waits for a guest
	CancelledCode  Code = "cancelled"
	BadRequest     Code = "bad-request"
	Forbidden      Code = "forbidden"
	NoSuchMedium   Code = "no-such-medium"
	OutsideRoots   Code = "medium-outside-roots"
	Unreadable     Code = "medium-unreadable"
	NotADisc       Code = "not-a-disc"
	Truncated      Code = "medium-truncated"
	Unreachable    Code = "vm-unreachable" // gone, held by another client, or silent
	QEMURefused    Code = "qemu-refused"
	Unknown        Code = "outcome-unknown"
	Incomplete     Code = "incomplete" // done in the machine; something is still to be cleaned up
	OvertakenCode  Code = "overtaken"
	MachineEnded   Code = "machine-ended"
	StateRefused   Code = "state-file-refused" // the journal can't take the intent
	Stopping       Code = "stopping"
	NoSuchPool     Code = "no-such-pool"
	ImageExists    Code = "image-exists"
	ImageInUse     Code = "image-in-use"
	NoSpace        Code = "no-space"    // the pool can't hold the image
	PoolFailed     Code = "pool-failed" // the pool's storage refused or failed
)

// Error is an error for the person at the keyboard: what was tried on which
// machine and drive, what stopped it (Detail), and what to do about it (Next).
type Error struct {
	Code      Code
	VM, Drive string
	Operation string
	Detail    string
	Next      string
	Err       error
}

func (e *Error) Error() string { return e.Detail }

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

func newError(code Code, next, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Code: code, Detail: err.Error(), Next: next, Err: errors.Unwrap(err)}
}

// CodeOf is the code of an error, or "" for one that has none.
func CodeOf(err error) Code {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}
