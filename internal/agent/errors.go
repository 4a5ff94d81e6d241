package agent

import (
	"errors"
	"fmt"
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
