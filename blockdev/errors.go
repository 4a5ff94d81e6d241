package blockdev

import "errors"

// ErrLocked is returned by a Swap or an Eject without force when the guest holds
// the door, and by one with force when it, or a reset, was quicker. The old disc
// is in and the tray closed, the new disc has been opened by QEMU without
// complaint, and the guest has been asked to eject: it may open the tray at any
// later moment, also when the caller has given up by then.
var ErrLocked = errors.New("the guest holds the drive's door locked")

// LetGoError is returned by a Swap that QEMU has refused though it opens the disc, and nobody
// holds the door, a moment later. Nearly always the guest has let go meanwhile: it has been asked
// to eject, and may be about to, or have done so. Another Swap tells: when it succeeds, what the
// guest then still does is meant for the old disc; when it is refused again, it isn't the door.
type LetGoError struct {
	Refusal error // QEMU's
}

func (e *LetGoError) Error() string {
	return "the guest has just let go of the drive's door: " + e.Refusal.Error()
}

func (e *LetGoError) Unwrap() error { return e.Refusal }
