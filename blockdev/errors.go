package blockdev

import "errors"

// ErrLocked is returned by a Swap or an Eject without force when the guest holds
// the door, and by one with force when it, or a reset, was quicker. The old disc is in and the tray closed, the new disc has been opened
// by QEMU without complaint, and the guest has been asked to eject: it may open
// the tray at any later moment, also when the caller has given up by then.
var ErrLocked = errors.New("the guest holds the drive's door locked")

// LetGoError is returned by a Swap when QEMU has refused it for the door and the guest doesn't
// hold that any more, a moment later. The old disc is in, the new one has been opened by QEMU
// without complaint, and the guest may have been asked to eject, may be about to, and may have.
// Another Swap succeeds; what the guest then still does is meant for the old disc.
type LetGoError struct {
	Refusal error // QEMU's
}

func (e *LetGoError) Error() string {
	return "the guest has just let go of the drive's door: " + e.Refusal.Error()
}

func (e *LetGoError) Unwrap() error { return e.Refusal }
