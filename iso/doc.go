// Package iso says what a disc image is: whether it is an ISO 9660 or UDF file system at all, how large it claims to
// be, what is wrong with it, what it boots and which files it has, before anything else trusts it.
//
// # What it is
//
// A reader of what a disc has, written for input that nobody vouches for: an image may be an HTML page that a proxy
// sent, a download that stopped half-way, or made to do harm. Structures and field positions are those of ECMA-119
// (ISO 9660), SUSP and RRIP (Rock Ridge), the Joliet specification, El Torito, ECMA-167 (the volume structure that UDF
// uses) and OSTA UDF 2.60; the comments name the clause.
//
// # What it promises
//
//   - [Probe] reads at most 64 KiB of an ISO 9660 image and at most 256 KiB of anything, in a handful of reads, and
//     allocates one buffer, whatever the input says. It never panics and never loops on what the input points to.
//   - An image that is shorter than it says is a [TruncatedError], always. The size that a volume declares is a lower
//     bound of its disc: images that carry more behind it (boot images, padding) are whole.
//   - Descriptors that contradict themselves are a [DamagedError]; everything else is a [NotDiscError] that says what
//     the file is instead.
//   - [Inspect] reads more, all that [Report] has, and lists every defect that it finds. Images that real tools make have
//     none. It refuses nothing: what Probe refuses is marked as fatal. At most 16 MiB are read and allocated.
//   - [Files] is the file tree. No call of it allocates more than 16 MiB, and a walk over any input ends.
//
// # What it leaves to others
//
// Whether the files on the disc are intact: only a checksum of the whole image can tell. Which images are allowed,
// where they come from, and what becomes of them. Of HFS, zisofs compression, interleaved files, and UDF with strategy
// 4096 or replaced packets nothing is read.
//
// # Why the trees are read here
//
// github.com/diskfs/go-diskfs reads label and file tree of good ISO 9660 images, and tests make images with it and
// compare. It isn't used otherwise: it validates nothing, reads a truncated image to its end without an error, has no
// UDF, cuts Rock Ridge's long names, misses nested directories of genisoimage's Joliet, and panics, loops or
// allocates gigabytes on damaged input (v1.9.4). A guard before it would have to walk over every path table,
// directory record, system use entry and continuation that it will read, with the same choices; that is the reader
// itself, and a deadline would leave a goroutine that goes on allocating.
package iso
