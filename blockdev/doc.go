// Package blockdev is QEMU's block layer as a CD tray needs it: which CD drives
// a machine has, what QEMU says is in each of them, and how a disc gets in and
// out while the guest runs.
//
// # What it promises
//
// Observe reports only what QEMU answers at that moment; nothing is remembered
// between calls, because a reset closes a tray without a word (RESET is the only
// event) and a guest that unmounts unlocks the door with no event at all.
//
// A Changer puts discs in and takes them out. There are two, with one contract:
// Atomic uses the single command blockdev-change-medium, in which QEMU opens the
// new image before it touches the tray; Stepwise walks through blockdev-add,
// open, remove, insert, close. In both, QEMU has opened the new disc before the
// tray moves, a failed Swap leaves the old disc in a closed tray wherever QEMU
// lets it, and a node's name says which operation put it there. Choose picks one
// by what the running QEMU offers, never by its version number.
//
// Discs reach QEMU as descriptors (Lend), never as a path: QEMU needs no
// permission on the file, nobody can exchange it in between, and no string of a
// user is ever interpreted by QEMU (a file name that starts with "json:" or
// "nbd:" would be).
//
// # What it leaves to others
//
// Waiting for a guest that holds the door, deciding what a half-done change
// means, and remembering what was meant: the caller has the policy and the
// journal. The package never matches on QEMU's error texts, which differ between
// versions; it asks QEMU for its state instead.
//
// Everything here is safe for concurrent use on different drives of one monitor;
// two changes of the same drive at once are the caller's to prevent.
package blockdev
