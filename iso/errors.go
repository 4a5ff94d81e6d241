package iso

import "fmt"

// A NotDiscError says that the input is no disc image.
type NotDiscError struct {
	Format Format // a stable word for programs, as in "html" or "empty"
	Found  string // what it is instead, as in "an HTML page" or "empty"
	hint   string // what people do about it
}

func (e *NotDiscError) Error() string {
	text := "not an ISO 9660 or UDF image: this is " + e.Found
	if e.hint != "" {
		text += " (" + e.hint + ")"
	}
	return text
}

// A TruncatedError says that the input ends before the volume that begins in it.
type TruncatedError struct {
	Declared int64 // bytes that the volume has at least, by its own descriptors
	Size     int64 // bytes that are there
}

func (e *TruncatedError) Error() string {
	return fmt.Sprintf("truncated: the volume says %d bytes, the file has %d", e.Declared, e.Size)
}

// A DamagedError says that the descriptors of a volume contradict themselves or the standard, so that different
// readers would see different discs.
type DamagedError struct {
	Defect string
	Offset int64 // byte offset of the structure that has the defect
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("damaged: %s (at byte %d)", e.Defect, e.Offset)
}
