package disk

import "fmt"

// Reason is why something isn't taken for a disk image.
type Reason string

// The reasons.
const (
	NotADisk     Reason = "not-a-disk"
	BackingFile  Reason = "backing-file"  // its content is partly in another file
	ExternalData Reason = "external-data" // or wholly
	Encrypted    Reason = "encrypted"
	Unsupported  Reason = "unsupported" // it needs what isn't known here
	Unclean      Reason = "unclean"     // it was not closed, or was found to be damaged
	BadSize      Reason = "bad-size"
	CutOff       Reason = "cut-off"
	Damaged      Reason = "damaged" // its header contradicts itself
)

// Error is why something isn't taken, with what to do about it.
type Error struct {
	Reason Reason
	Detail string
	Next   string
}

func (e *Error) Error() string { return e.Detail }

func refuse(reason Reason, next, format string, args ...any) *Error {
	return &Error{Reason: reason, Detail: fmt.Sprintf(format, args...), Next: next}
}

// cutOff is the error of an image that ends before something that it says it has.
func cutOff(what string, end, size int64) *Error {
	return refuse(CutOff, "get it again and compare its checksum", "it is cut off: %s ends at byte %d, and the file has %d", what, end, size)
}

func damaged(format string, args ...any) *Error {
	return refuse(Damaged, "get it again and compare its checksum; `qemu-img check` may say more", "its header is damaged: "+format, args...)
}
