package blockdev

import "errors"

// ErrLocked is returned by a Swap or an Eject without force when the guest holds
// the door. The old disc is in and the tray closed, the new disc has been opened
// by QEMU without complaint, and the guest has been asked to eject: it may open
// the tray at any later moment, also when the caller has given up by then.
var ErrLocked = errors.New("the guest holds the drive's door locked")
