package iso

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
)

// A source is an input of known size.
type source struct {
	r    io.ReaderAt
	size int64
}

// has says whether the input reaches that far. Offset and length are what an image says: anything.
func (s source) has(offset, length int64) bool {
	return offset >= 0 && length >= 0 && length <= s.size && offset <= s.size-length
}

func (s source) read(b []byte, offset int64) error { return readAt(s.r, b, offset) }

// An inspection is a report in the making.
type inspection struct {
	source
	Report
	head []byte // the first headSize bytes
	set  descriptorSet
	more int // defects that the report has no room for
	fats int // file systems that were looked into
}

// Inspect reads everything that [Report] has. It allocates at most 16 MiB and reads at most 16 MiB, whatever the input
// says and however large it is; of a good disc it is a fifth of that at most.
//
// An input that is no disc is not an error: the report says what it is. The errors are those of r, wrapped; input that
// ends before size is io.ErrUnexpectedEOF. Concurrent calls are safe as far as r is.
func Inspect(r io.ReaderAt, size int64) (Report, error) {
	buf := make([]byte, headSize)
	i := &inspection{source: source{r, size}, Report: Report{Size: max(size, 0), PartitionTable: "none"}}
	_, verdict := probe(r, size, buf)
	var not *NotDiscError
	var short *TruncatedError
	var damaged *DamagedError
	switch {
	case errors.As(verdict, &not):
		if err := i.notDisc(not); err != nil {
			return Report{}, err
		}
		return i.finish(), nil
	case verdict == nil, errors.As(verdict, &short), errors.As(verdict, &damaged):
	default:
		return Report{}, verdict
	}
	// The probe has used the buffer for other things since.
	i.head = buf[:min(size, headSize)]
	if err := i.read(i.head, 0); err != nil {
		return Report{}, err
	}
	if err := i.inspect(); err != nil {
		return Report{}, err
	}
	if damaged != nil { // what Probe refuses is fatal, found here or not
		i.refused(damaged)
	}
	return i.finish(), nil
}

func (i *inspection) inspect() error {
	i.set = scanDescriptors(i.head)
	i.Format = i.set.format()
	// The sizes that the volumes declare come first: what lies behind the end of a truncated image is no defect of
	// its own.
	i.primaryVolume()
	var volume *udfVolume
	if i.set.nsr {
		var err error
		if volume, err = i.udfVolume(); err != nil {
			return err
		}
	}
	for _, step := range []func() error{
		i.supplementaryVolumes, i.pathTables, i.rootDirectory, i.bootCatalogue, i.partitionTables, i.countSessions,
		func() error { return i.udfRoot(volume) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// declared takes a size that a structure declares.
func (i *inspection) declared(size int64) {
	i.DeclaredSize = max(i.DeclaredSize, size)
	i.Truncated = i.DeclaredSize > i.size
}

// defect notes one that a reader can live with.
func (i *inspection) defect(offset int64, format string, args ...any) {
	i.add(Defect{Offset: offset, Defect: fmt.Sprintf(format, args...)})
}

// broken notes one that is fatal.
func (i *inspection) broken(offset int64, format string, args ...any) {
	i.add(Defect{Offset: offset, Defect: fmt.Sprintf(format, args...), Fatal: true})
}

func (i *inspection) add(d Defect) {
	if len(i.Defects) == maxDefects {
		i.more++
		return
	}
	i.Defects = append(i.Defects, d)
}

// outside says whether the input ends before the extent does, and notes that, unless it is truncated: then that has been
// said, and nobody knows what would be there.
func (i *inspection) outside(at, start, length int64, what string) bool {
	if i.has(start, length) {
		return false
	}
	if !i.Truncated {
		i.defect(at, "%s lies outside of the file: bytes %d to %d", what, start, start+length)
	}
	return true
}

// refused notes what Probe refuses the image for, if it isn't noted yet.
func (i *inspection) refused(e *DamagedError) {
	for n := range i.Defects {
		if i.Defects[n].Offset == e.Offset {
			i.Defects[n].Fatal = true
			return
		}
	}
	if len(i.Defects) == maxDefects { // this one has to be in the report
		i.Defects = i.Defects[:maxDefects-1]
		i.more++
	}
	i.broken(e.Offset, "%s", e.Defect)
}

func (i *inspection) finish() Report {
	if i.IsDisc() {
		i.Found = i.found()
	}
	slices.SortStableFunc(i.Defects, func(a, b Defect) int { return cmp.Compare(a.Offset, b.Offset) })
	if i.more > 0 {
		last := &i.Defects[maxDefects-1]
		last.Defect += fmt.Sprintf(" (and %d defects more)", i.more)
	}
	if i.Defects == nil {
		i.Defects = []Defect{}
	}
	if i.Boot.Entries == nil {
		i.Boot.Entries = []BootEntry{}
	}
	return i.Report
}

// footers are the formats that are known by their last 512 bytes.
func footers() []magic {
	return []magic{
		{0, "conectix", "vhd", "a VHD disk image", hintDisk}, // of fixed size
		{0, "koly", "dmg", "an Apple disk image (DMG)", hintUnpack},
	}
}

// notDisc takes what Probe found instead of a disc, and looks at the end of the file if that says little.
func (i *inspection) notDisc(e *NotDiscError) error {
	i.Format, i.Found, i.Hint = e.Format, e.Found, e.hint
	if tail := make([]byte, 512); i.has(i.size-512, 512) {
		if err := i.read(tail, i.size-512); err != nil {
			return err
		}
		for _, m := range footers() {
			if bytes.HasPrefix(tail, []byte(m.bytes)) {
				i.Format, i.Found, i.Hint = m.format, m.found, m.hint
			}
		}
	}
	return nil
}
