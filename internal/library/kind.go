package library

import (
	"errors"
	"io"

	"github.com/trayd/trayd/internal/disk"
	"github.com/trayd/trayd/internal/wire"
	"github.com/trayd/trayd/iso"
)

// anyDisc is the format of a request for whatever disc.
const anyDisc = "iso"

// kindOf is the kind of a format that was asked for; "" for one that nobody knows.
func kindOf(format string) wire.ImageKind {
	switch format {
	case string(disk.QCOW2), string(disk.Raw):
		return wire.ImageDisk
	case anyDisc, string(iso.ISO9660), string(iso.UDF), string(iso.Bridge):
		return wire.ImageDisc
	}
	return ""
}

// askable says whether a request may ask for a format in a pool.
func askable(p Pool, format, integrity string) error {
	if format == "" {
		return nil
	}
	kind := kindOf(format)
	if kind == "" {
		return problem(BadRequest, "use qcow2, raw or iso, or leave it out", "there is no format %q", format)
	}
	return takes(p, kind, integrity)
}

// takes says whether a pool can have an image of a kind. QEMU writes into the file beside
// it, and a disk of a machine is no volume that dm-verity could be beneath.
func takes(p Pool, kind wire.ImageKind, integrity string) error {
	switch {
	case kind != wire.ImageDisk:
		return nil
	case p.Type == LVM:
		return problem(BadRequest, "add it to a pool of type dir", "pool %s is a volume group, which takes discs only, and this is a disk image", p.Name)
	case integrity != "" && p.Verity:
		return problem(BadRequest, "add it to a pool without that", "pool %s has integrity = %q, which disk images can't have", p.Name, integrity)
	case integrity != "":
		return problem(BadRequest, "add it without --integrity; `trayctl image verify` reads it again", "a disk image can't have integrity %s", integrity)
	}
	return nil
}

// inspectInto says what a content is, and refuses what is neither a disc nor a disk image,
// or not what was asked for. What begins as qcow2 is that, as it is for QEMU; otherwise a
// disc is a disc, also if it has a partition table for those who put it on a USB stick.
func inspectInto(i *Image, f io.ReaderAt, size int64, asked string) error {
	i.Kind, i.Format, i.VirtualSize, i.VolumeID, i.Boot = "", "", 0, "", nil // of an earlier attempt
	head := make([]byte, 4)
	if _, err := f.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return unreadable(err)
	}
	var err error
	if disk.IsQCOW2(head) {
		if kindOf(asked) != wire.ImageDisc {
			err = inspectDisk(i, f, size)
		} else {
			i.Kind, i.Format = wire.ImageDisk, string(disk.QCOW2)
		}
	} else {
		err = inspectDisc(i, f, size)
		var not *iso.NotDiscError
		if errors.As(err, &not) && kindOf(asked) != wire.ImageDisc {
			err = inspectRaw(i, f, size, asked, not.Found, err)
		}
	}
	if err != nil {
		return err
	}
	return fitsFormat(asked, *i)
}

// fitsFormat says whether an image is what was asked for.
func fitsFormat(asked string, i Image) error {
	raw := i.Format == string(disk.Raw)
	switch {
	case asked == i.Format, asked == "" && !raw, asked == anyDisc && i.Kind == wire.ImageDisc:
		return nil
	case asked == "":
		return problem(Invalid, "if it is to be a machine's disk, say so: --format raw", "it is neither a disc nor qcow2, but it has a partition table as a raw disk image has")
	case i.Kind == wire.ImageDisk && kindOf(asked) == wire.ImageDisc:
		return problem(Invalid, "add it without --format, and make machines with it", "it is a disk image (%s), not a disc", i.Format)
	case i.Kind == wire.ImageDisc && kindOf(asked) == wire.ImageDisk:
		return problem(NotADisk, "add it without --format, and boot it from a CD drive", "it is a disc (%s), not a disk image", i.Format)
	}
	code := Invalid
	if i.Kind == wire.ImageDisk {
		code = NotADisk
	}
	return problem(code, "add it with --format "+i.Format+", or without", "it is %s, not %s", i.Format, asked)
}

func unreadable(err error) error {
	return problem(Failed, "see the disk that holds it", "it can't be read back: %w", err)
}

func inspectDisc(i *Image, f io.ReaderAt, size int64) error {
	report, err := iso.Inspect(io.NewSectionReader(f, 0, size), size)
	if err != nil {
		return unreadable(err)
	}
	_, err = iso.Probe(io.NewSectionReader(f, 0, size), size) // what each insert wants
	var cut *iso.TruncatedError
	switch {
	case errors.As(err, &cut):
		return problem(Truncated, "download it again and compare its checksum", "it is %w", err)
	case err != nil:
		return problem(Invalid, "use an ISO 9660 or UDF image that is whole", "%w", err)
	}
	i.Kind, i.Format, i.VolumeID = wire.ImageDisc, string(report.Format), report.VolumeID
	i.Boot = &wire.ImageBoot{BIOS: report.Boot.BIOS, UEFIx64: report.Boot.UEFIx64, UEFIarm64: report.Boot.UEFIarm64}
	return nil
}

func inspectDisk(i *Image, f io.ReaderAt, size int64) error {
	info, err := disk.Probe(f, size)
	if err != nil {
		return refusedDisk(err)
	}
	i.Kind, i.Format, i.VirtualSize = wire.ImageDisk, string(info.Format), info.VirtualSize
	return nil
}

// inspectRaw looks at what is no disc, but what was found instead, and not qcow2. What has no
// partition table and wasn't said to be a disk is refused as no disc.
func inspectRaw(i *Image, f io.ReaderAt, size int64, asked, found string, noDisc error) error {
	err := inspectDisk(i, f, size)
	var known *Error
	switch {
	case err == nil, errors.As(err, &known) && asked == string(disk.Raw):
		return err
	case asked == string(disk.QCOW2):
		return problem(NotADisk, "look for the image itself, a .qcow2 file", "it is not qcow2: this is %s", found)
	}
	return noDisc
}

// refusedDisk gives the errors of package disk a code.
func refusedDisk(err error) error {
	var e *disk.Error
	if !errors.As(err, &e) {
		return unreadable(err)
	}
	code := DiskRefused
	switch e.Reason {
	case disk.NotADisk:
		code = NotADisk
	case disk.CutOff:
		code = Truncated
	}
	return &Error{Code: code, Detail: e.Detail, Next: e.Next, Err: err}
}

// wrongKind is why an image can't be used as one of the other kind.
func wrongKind(i Image) error {
	if i.Kind == wire.ImageDisk {
		return problem(Invalid, "make a machine with it: `trayctl vm create NAME --image image:"+i.Name+"`", "image:%s is a disk image (%s), not a disc", i.Name, i.Format)
	}
	return problem(NotADisk, "boot it from a CD drive: `trayctl vm create NAME --iso image:"+i.Name+"`", "image:%s is a disc (%s), not a disk image", i.Name, i.Format)
}
