package disk

import (
	"errors"
	"os"
)

// Base is the file that a disk stands on; the zero Base is none.
type Base struct {
	Path   string
	Format Format // "": whatever the disk says
}

// Beneath wants a machine's qcow2 disk to lead to no other files than its definition says.
// QEMU's tools look for them in the disk's header, which is the machine's to write: what has
// taken over a QEMU could have any file of the host read, or written to. Errors are an
// *Error with BackingFile, ExternalData or what else Probe refuses, or the file's own.
func Beneath(file string, on Base) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	info, err := Probe(f, st.Size())
	const look = "start the machine, and look into it: nothing but its QEMU writes there"
	var e *Error
	switch {
	case err != nil && !(errors.As(err, &e) && e.Reason == BackingFile): // an overlay is none for a library, and no matter here
		return err
	case info.Format != QCOW2:
		return refuse(NotADisk, look, "it is no qcow2 disk any more")
	case info.ExternalData || info.DataFile != "": // which Probe tells of only where there is no backing file
		return refuse(ExternalData, look, "it says that its data is in another file, %q", info.DataFile)
	case info.BackingFile != on.Path:
		return refuse(BackingFile, look, "it says that it stands on %q, and the machine's definition says %q", info.BackingFile, on.Path)
	case info.BackingFile != "" && info.BackingFormat == "":
		return refuse(BackingFile, "`qemu-img rebase -u -b "+info.BackingFile+" -F FORMAT "+file+"` writes it down, while the machine is stopped",
			"it stands on %s and doesn't say of what format that is", info.BackingFile)
	case on.Format != "" && Format(info.BackingFormat) != on.Format:
		return refuse(BackingFile, look, "it says that %s is %q, and the machine's definition says %q", info.BackingFile, info.BackingFormat, on.Format)
	}
	return nil
}
