package state

import (
	"errors"
	"fmt"
)

// Errors of opening a journal.
var (
	// ErrLocked says that another process, or another Journal of this one, has the journal open for writing. The
	// message that wraps it names the holder's pid.
	ErrLocked = errors.New("the journal is in use")
)

// Errors of changing a journal.
var (
	// ErrFailed says that the journal refuses to write since an fdatasync, or the undoing of a failed write, went
	// wrong: what the disk holds is then unknown, and asking it again may lie (the kernel drops the dirty pages and
	// reports the error once). It stays until the journal is closed and opened anew; reading goes on.
	ErrFailed = errors.New("the journal takes no more changes until it is opened anew")

	// ErrClosed says that the journal was closed.
	ErrClosed = errors.New("the journal is closed")
)

// A DamageError says where a journal is damaged in a way that no crash explains, so that nothing may be assumed about
// it. Nothing was changed.
type DamageError struct {
	Path   string `json:"path"`
	Line   int    `json:"line"` // counted from 1
	Reason string `json:"reason"`
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("state: %s: line %d is damaged: %s; to save what is intact run `trayd state repair %s`",
		e.Path, e.Line, e.Reason, e.Path)
}

// A VersionError says that a journal was written in a format that this program does not know. Repairing it would
// destroy it, so that is refused too.
type VersionError struct {
	Path    string
	Format  string
	Version int
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("state: %s: written in format %q version %d, this program reads %q version %d; "+
		"use the newer program that wrote it", e.Path, e.Format, e.Version, formatName, formatVersion)
}
