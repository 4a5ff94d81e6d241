package qmp

import (
	"context"
	"errors"
	"os"
	"syscall"
)

// An FD is a descriptor that QEMU has received, under the number that it has in QEMU. QEMU opens the set's members as
// /dev/fdset/FDSet.
type FD struct {
	FDSet int `json:"fdset-id"`
	FD    int `json:"fd"`
}

// An FDSet is a set of descriptors in QEMU that give access to one file, possibly in different modes.
type FDSet struct {
	ID  int      `json:"fdset-id"`
	FDs []FDInfo `json:"fds"`
}

// An FDInfo is a member of an [FDSet].
type FDInfo struct {
	FD     int    `json:"fd"`     // its number in QEMU
	Opaque string `json:"opaque"` // what the add-fd that brought it said
}

// AddFD passes a duplicate of file's descriptor to QEMU. It becomes a member of the fdset of that number, which is made
// if there is none, or of a new one of QEMU's choice when fdset is negative. QEMU reuses numbers; opaque, when it is not
// empty, comes back from [Conn.QueryFDSets] and tells whose descriptor it is. file stays the caller's.
//
// Up to version 8.2 QEMU drops unused descriptors of a running VM when the monitor connection ends, later ones keep them
// until [Conn.RemoveFD] (tested 4.2 to 11.1). When the error matches [ErrUnanswered] QEMU may hold the descriptor all
// the same, and opaque is what it is found by. Errors are those of [Conn.Execute].
func (c *Conn) AddFD(ctx context.Context, file *os.File, fdset int, opaque string) (FD, error) {
	var args struct {
		FDSet  *int   `json:"fdset-id,omitempty"`
		Opaque string `json:"opaque,omitempty"`
	}
	if fdset >= 0 {
		args.FDSet = &fdset
	}
	args.Opaque = opaque
	if file == nil {
		return FD{}, notSentError("add-fd", os.ErrInvalid)
	}
	call, err := c.Send(ctx, "add-fd", &args, file)
	if err != nil {
		return FD{}, err
	}
	var fd FD
	if err := call.Wait(ctx, &fd); err != nil {
		return FD{}, err
	}
	return fd, nil
}

// RemoveFD takes all members out of an fdset. What QEMU has opened through it stays open. Up to version 8.2 a paused VM
// keeps the descriptors; the command has to be repeated when it runs again. Later versions refuse an fdset that is gone.
// Errors are those of [Conn.Execute].
func (c *Conn) RemoveFD(ctx context.Context, fdset int) error {
	args := struct {
		FDSet int `json:"fdset-id"`
	}{fdset}
	return c.Execute(ctx, "remove-fd", &args, nil)
}

// QueryFDSets returns all fdsets. Errors are those of [Conn.Execute].
func (c *Conn) QueryFDSets(ctx context.Context) ([]FDSet, error) {
	var sets []FDSet
	if err := c.Execute(ctx, "query-fdsets", nil, &sets); err != nil {
		return nil, err
	}
	return sets, nil
}

// writeWithFile begins to write c.outgoing.buf, and passes file's descriptor with the first byte.
func (c *Conn) writeWithFile(file *os.File) (n int, err error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return 0, err
	}
	// Within Control the descriptor cannot be closed and its number not be given to another file.
	controlErr := raw.Control(func(fd uintptr) {
		n, _, err = c.nc.WriteMsgUnix(c.outgoing.buf, syscall.UnixRights(int(fd)), nil)
	})
	return n, errors.Join(controlErr, err)
}
