// Package machine is what a virtual machine of trayd's own is: its definition, QEMU's
// command line for it, its disks, and what it boots from.
//
// # Where a machine lies
//
// Everything of a machine is in its directory beneath machines in the state directory:
//
//	machine.toml  its definition, for people too
//	DISK.qcow2    its disks
//	vars.fd       its UEFI variables
//	seed.iso      cloud-init's disc, until the first boot has ended
//	serial.log    what it said on its serial console
//	qemu.log      what QEMU said, where no journal takes it
//
// The directory is made under another name and renamed, and renamed before it is removed:
// there is no half machine. Tidy removes what a death has left.
//
// # How it is laid out
//
//	definition.go what a definition has to be, and what it is without a word
//	change.go     a definition edited
//	file.go       the file of a definition
//	store.go      the directories of machines
//	command.go    QEMU's command line, purely from a definition; devices.go its devices
//	host.go       what this host's QEMU can do; firmware.go which firmware there is
//	disk.go       blank disks, copies and overlays of images
//	boot.go       what is booted first, and why it may not boot
//	screen.go     what a machine's screen shows
//
// Package launch starts the command; package agent decides when, and puts the discs in.
package machine
