package iso

import (
	"bytes"
	"unicode"
	"unicode/utf8"
)

const (
	hintDownload = "a download that went wrong?"
	hintUnpack   = "unpack it first"
	hintDisk     = "a hard disk, not a disc"
)

// A magic is what a format has at a fixed place.
type magic struct {
	offset int
	bytes  string
	format Format
	found  string
	hint   string
}

// magics returns what people take for a disc image by mistake, most telling first.
func magics() []magic {
	return []magic{
		{0, "QFI\xfb", "qcow2", "a qcow2 disk image", hintDisk},
		{0, "KDMV", "vmdk", "a VMDK disk image", hintDisk},
		{0, "# Disk DescriptorFile", "vmdk", "a VMDK disk image's description", hintDisk},
		{0, "vhdxfile", "vhdx", "a VHDX disk image", hintDisk},
		{0, "conectix", "vhd", "a VHD disk image", hintDisk},
		{0x40, "\x7f\x10\xda\xbe", "vdi", "a VDI disk image", hintDisk},
		{0, "QED\x00", "qed", "a QED disk image", hintDisk},
		{0, "LUKS\xba\xbe", "luks", "an encrypted LUKS volume", ""},
		{0, "\x1f\x8b", "gzip", "a gzip file", hintUnpack},
		{0, "\xfd7zXZ\x00", "xz", "an xz file", hintUnpack},
		{0, "\x28\xb5\x2f\xfd", "zstd", "a zstd file", hintUnpack},
		{0, "\x04\x22\x4d\x18", "lz4", "an lz4 file", hintUnpack},
		{0, "BZh", "bzip2", "a bzip2 file", hintUnpack},
		{0, "PK\x03\x04", "zip", "a zip file", hintUnpack},
		{0, "7z\xbc\xaf\x27\x1c", "7z", "a 7z file", hintUnpack},
		{0, "Rar!\x1a\x07", "rar", "a RAR file", hintUnpack},
		{257, "ustar", "tar", "a tar file", hintUnpack},
		{0, "\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00", "raw-cd", "a raw CD dump with 2352-byte sectors", "convert it with bchunk or ccd2iso"},
		{systemArea + 9, "CDROM", "high-sierra", "a High Sierra disc", "the predecessor of ISO 9660"},
		{0, "MSWIM\x00\x00\x00", "wim", "a Windows WIM image", ""},
		{0, "hsqs", "squashfs", "a squashfs file system", ""},
		{0, "XFSB", "xfs", "an XFS file system", ""},
		{1080, "\x53\xef", "ext", "an ext2, ext3 or ext4 file system", ""},
		{3, "NTFS    ", "ntfs", "an NTFS file system", ""},
		{0, "\x7fELF", "elf", "a program (ELF)", ""},
		{0, "MZ", "exe", "a Windows program", ""},
		{0, "!<arch>\n", "ar", "a Debian package or archive", ""},
		{0, "\xed\xab\xee\xdb", "rpm", "an RPM package", ""},
		{0, "%PDF-", "pdf", "a PDF document", hintDownload},
		{0, "d8:announce", "torrent", "a BitTorrent file", "download what it names"},
		{512, "EFI PART", "raw-disk", "a raw disk with a partition table", hintDisk},
	}
}

// identify says what the beginning of a file that is no disc shows. size is the file's.
func identify(head []byte, size int64) error {
	if text := bytes.TrimLeft(bytes.TrimPrefix(head, []byte("\ufeff")), " \t\r\n"); len(text) > 0 && text[0] == '<' {
		if isHTML(text) {
			return &NotDiscError{"html", "an HTML page", hintDownload}
		}
		if bytes.HasPrefix(text, []byte("<?xml")) {
			return &NotDiscError{"xml", "an XML document", hintDownload}
		}
	}
	for _, m := range magics() {
		if m.offset < len(head) && bytes.HasPrefix(head[m.offset:], []byte(m.bytes)) {
			return &NotDiscError{m.format, m.found, m.hint}
		}
	}
	switch {
	case len(head) >= 512 && string(head[510:512]) == "\x55\xaa":
		if len(bytes.Trim(head[446:510], "\x00")) > 0 {
			return &NotDiscError{"raw-disk", "a raw disk with a partition table", hintDisk}
		}
		return &NotDiscError{"boot-sector", "a boot sector with something behind it", "a floppy or a boot loader, not a disc"}
	case len(bytes.TrimLeft(head, "\x00")) == 0:
		return &NotDiscError{"zeroes", "only zeroes", hintDownload}
	case isText(head):
		return &NotDiscError{"text", "a text file", hintDownload}
	case size < systemArea+sectorSize:
		return &NotDiscError{"too-short", "too short for any disc", hintDownload}
	}
	return &NotDiscError{Format: "unknown", Found: "data of an unknown kind"}
}

// isHTML says whether text begins as pages do.
func isHTML(text []byte) bool {
	start := bytes.ToLower(text[:min(len(text), 1024)])
	for _, tag := range []string{"<!doctype html", "<html", "<head", "<body", "<title", "<script"} {
		if bytes.HasPrefix(start, []byte(tag)) {
			return true
		}
	}
	// A page may begin with an XML declaration or a comment.
	return bytes.Contains(start, []byte("<html"))
}

// isText says whether the first kilobyte is UTF-8 that a person could read.
func isText(head []byte) bool {
	for text := head[:min(len(head), 1024)]; len(text) > 0; {
		c, n := utf8.DecodeRune(text)
		if c == utf8.RuneError && n == 1 {
			return len(text) < utf8.UTFMax && len(head) > 1024 // a character that the kilobyte cuts
		}
		if unicode.IsControl(c) && c != '\n' && c != '\r' && c != '\t' && c != '\f' {
			return false
		}
		text = text[n:]
	}
	return true
}
