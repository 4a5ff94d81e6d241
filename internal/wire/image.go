package wire

import "time"

// ImageState is how far an image is on its way into a pool.
type ImageState string

// The states.
const (
	ImageAllocated   ImageState = "allocated"   // it has its name and waits for its turn
	ImageDownloading ImageState = "downloading" // its bytes are coming, from a URL, a file, a stream or a machine's disk
	ImageVerifying   ImageState = "verifying"   // they are here and are looked at
	ImageReady       ImageState = "ready"       // the only state in which it can be put into a drive
	ImageFailed      ImageState = "failed"      // Failure says why, and what to do
	ImageRemoving    ImageState = "removing"    // its removal was cut off, and goes on
)

// ImageKind is what an image can be to a machine.
type ImageKind string

// The kinds.
const (
	ImageDisc ImageKind = "disc" // of a CD drive, read-only
	ImageDisk ImageKind = "disk" // of which a machine's disk is made
)

// Image is one image of the catalogue. What isn't known yet is zero.
type Image struct {
	Name  string     `json:"name"`
	Pool  string     `json:"pool"`
	State ImageState `json:"state"`
	Size  int64      `json:"size"` // bytes; its volume may be larger
	// SHA256 is of its content, which is stored once in a pool, whatever it is called.
	SHA256 string    `json:"sha256"`
	Kind   ImageKind `json:"kind,omitempty"`   // "" until it was inspected
	Format string    `json:"format,omitempty"` // of a disc iso9660, udf or bridge, of a disk qcow2 or raw
	// VirtualSize is how large the disk is that a machine sees, in bytes; 0 for a disc.
	VirtualSize int64 `json:"virtual_size,omitempty"`
	// VolumeID and Boot are what was found in it; Bootable is what was declared.
	VolumeID string     `json:"volume_id,omitempty"`
	Boot     *ImageBoot `json:"boot,omitempty"`
	Bootable *bool      `json:"bootable,omitempty"`
	OSType   string     `json:"os_type,omitempty"`
	Site     string     `json:"site,omitempty"`
	// Source is a URL without its query, "upload", the image of another pool that it is a
	// staged copy of, or the machine's disk that it was captured from.
	Source   string `json:"source,omitempty"`
	Checksum string `json:"checksum,omitempty"` // that it was compared with
	Signer   string `json:"signer,omitempty"`   // whose signature was verified
	// Integrity is "verity" when its content is checked on every read, against RootHash.
	Integrity string    `json:"integrity,omitempty"`
	RootHash  string    `json:"root_hash,omitempty"`
	Pinned    bool      `json:"pinned,omitempty"` // never removed to make room
	Added     time.Time `json:"added"`
	Used      time.Time `json:"used,omitzero"` // when it was last put into a drive, or a machine was made from it, to the hour
	// Place is the file or the logical volume that holds it.
	Place    string         `json:"place,omitempty"`
	Progress *ImageProgress `json:"progress,omitempty"` // while its bytes are coming
	Failure  *ImageFailure  `json:"failure,omitempty"`
	Users    []string       `json:"users,omitempty"` // the drives that have it, and the machines whose disks stand on it
}

// String is the image as people name it.
func (i Image) String() string { return "image:" + i.Pool + "/" + i.Name }

// ImageBoot is what a machine can boot from an image.
type ImageBoot struct {
	BIOS      bool `json:"bios"`
	UEFIx64   bool `json:"uefi_x64"`
	UEFIarm64 bool `json:"uefi_arm64"`
}

// ImageProgress is how far the bytes are.
type ImageProgress struct {
	Bytes   int64  `json:"bytes"`
	Total   int64  `json:"total,omitempty"`        // 0: not known
	Rate    int64  `json:"rate,omitempty"`         // bytes in a second
	Left    int64  `json:"left_seconds,omitempty"` // 0: not known
	Attempt int    `json:"attempt,omitempty"`
	URL     string `json:"url,omitempty"`     // without its query
	Waiting string `json:"waiting,omitempty"` // why the next attempt is waited for
}

// ImageFailure is why an image could not be had, or can't be used any more.
type ImageFailure struct {
	Code   Code      `json:"code"`
	Cause  string    `json:"cause"`
	Remedy string    `json:"remedy"`
	At     time.Time `json:"at"`
	// Kept is how many bytes a retry goes on from.
	Kept int64 `json:"kept,omitempty"`
}

// ImageRequest asks for an image. It comes with the bytes, or has URLs of them.
type ImageRequest struct {
	Name string `json:"name"`
	Pool string `json:"pool,omitempty"` // "": the default one
	// URLs are of the same file, in the order in which they are tried.
	URLs []string `json:"urls,omitempty"`
	// Checksum is ALGORITHM:HEX, bare hex, {ALGORITHM}HEX, or file: and the URL of a file of
	// sums. Sums is that file's content where the client has it.
	Checksum string `json:"checksum,omitempty"`
	Sums     string `json:"sums,omitempty"`
	// FileName is what Sums calls the image; "" is the last part of the URL.
	FileName string `json:"file_name,omitempty"`
	// Signature is the URL of a detached signature, SignatureData its content where the
	// client has it. It is of the image, or of the sums (SignatureOf "sums").
	Signature     string `json:"signature,omitempty"`
	SignatureData []byte `json:"signature_data,omitempty"`
	SignatureOf   string `json:"signature_of,omitempty"`
	AllowWeak     bool   `json:"allow_weak_checksum,omitempty"` // MD5, SHA-1
	OSType        string `json:"os_type,omitempty"`
	Site          string `json:"site,omitempty"`
	Bootable      *bool  `json:"bootable,omitempty"`
	Integrity     string `json:"integrity,omitempty"` // "verity", or "" for what the pool says
	// Format is what the bytes have to be: a Format of Image, or "iso" for any disc. "" takes
	// what they are, but not a raw disk image, which nothing tells from other bytes for sure.
	Format string `json:"format,omitempty"`
}

// ImageRemoval is one thing that `image gc` has removed, or would.
type ImageRemoval struct {
	What  string `json:"what"` // image:POOL/NAME, or a file
	Why   string `json:"why"`
	Bytes int64  `json:"bytes"`
	Error string `json:"error,omitempty"`
}

// DescriptorHeader is the field of an upload by which a client says under which number it
// has the file open: trayd may share its blocks then, and answers without the bytes.
const DescriptorHeader = "Trayd-Descriptor"

// AnyPool stands in a path for the pool that has an image of that name; for a new image,
// for the default pool.
const AnyPool = "-"
