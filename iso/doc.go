// Package iso says what a disc image is: whether it is an ISO 9660 or UDF file system at all, how large it claims to
// be, and what is wrong with it, before anything else trusts it.
//
// # What it is
//
// A reader of the few structures that every disc must have, written for input that nobody vouches for: an image may be
// an HTML page that a proxy sent, a download that stopped half-way, or made to do harm. Structures and field positions
// are those of ECMA-119 (ISO 9660), ECMA-167 (the volume structure that UDF uses) and OSTA UDF 2.60; the comments name
// the clause.
//
// # What it promises
//
//   - [Probe] reads at most 64 KiB of an ISO 9660 image and at most 256 KiB of anything, in a handful of reads, and
//     allocates one buffer, whatever the input says. It never panics and never loops on what the input points to.
//   - An image that is shorter than it says is a [TruncatedError], always. The size that a volume declares is a lower
//     bound of its disc: images that carry more behind it (boot images, padding) are whole.
//   - Descriptors that contradict themselves are a [DamagedError]; everything else is a [NotDiscError] that says what
//     the file is instead.
//
// # What it leaves to others
//
// Whether the files on the disc are intact: only a checksum of the whole image can tell. Which images are allowed,
// where they come from, and what becomes of them.
//
// github.com/diskfs/go-diskfs reads label and file tree of good images, and is not used here: it validates nothing,
// reads a truncated image to its end without an error, has no UDF, and panics, loops or allocates gigabytes on damaged
// input (v1.9.4). Tests make images with it.
package iso
