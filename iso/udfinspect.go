package iso

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// note adds a defect of the UDF volume.
func (i *inspection) note(offset int64, fatal bool, text string) {
	i.add(Defect{offset, text, fatal})
}

// udfVolume reads the volume structure and takes what it says.
func (i *inspection) udfVolume() (*udfVolume, error) {
	v, err := i.readUDFVolume(i.DeclaredSize, i.note)
	if err != nil || v == nil {
		return nil, err
	}
	i.declared(v.declared)
	i.UDFRevision = v.revision()
	for _, m := range v.maps {
		i.UDFPartitions = append(i.UDFPartitions, m.kind)
	}
	var name sequence
	if v.logical != nil {
		copy(name.logical[:], v.logical[84:212])
	}
	if v.primary != nil {
		copy(name.primary[:], v.primary[24:56])
		if i.Created.IsZero() {
			i.Created = readTimestamp(v.primary[376:])
		}
	}
	if id := name.name(); id != "" {
		i.VolumeID = id
	}
	if i.Application == "" {
		i.Application = v.implementation()
	}
	return v, i.integrity(v)
}

// integrity reads the logical volume integrity descriptor, when there is one (ECMA-167 3/10.10): when the volume was last
// written to.
func (i *inspection) integrity(v *udfVolume) error {
	if v.logical == nil {
		return nil
	}
	e := readExtent(v.logical[432:], v.sector)
	if e.length < v.sector || !i.has(e.start, v.sector) {
		return nil
	}
	d := make([]byte, v.sector)
	if err := i.read(d, e.start); err != nil {
		return err
	}
	if binary.LittleEndian.Uint16(d) != tagIntegrity {
		return nil
	}
	if err := checkTag(d, e.start/v.sector); err != nil {
		i.defect(e.start, "the logical volume integrity descriptor: %v", err)
		return nil
	}
	if i.Modified.IsZero() {
		i.Modified = readTimestamp(d[16:])
	}
	return nil
}

// udfRoot checks that a reader gets as far as the root directory.
func (i *inspection) udfRoot(v *udfVolume) error {
	if v == nil || v.logical == nil || i.Truncated {
		return nil
	}
	t, err := v.open()
	if err == nil {
		_, err = t.readICB(t.rootICB)
	}
	var damaged *DamagedError
	var unsupported *unsupportedError
	switch {
	case errors.As(err, &damaged):
		i.defect(damaged.Offset, "%s", damaged.Defect)
		return nil
	case errors.As(err, &unsupported):
		return nil
	}
	return err
}

// An unsupportedError says that a structure is sound as far as known, but not one that is read here.
type unsupportedError struct{ what string }

func (e *unsupportedError) Error() string { return fmt.Sprintf("%s can't be read", e.what) }
