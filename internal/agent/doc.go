// Package agent is the heart of trayd: it attaches to the machines of a host,
// takes one drive at a time from a request to a settled state, and after any
// crash puts in order what it owns.
//
// # How it decides
//
// Everything that follows from a record (what we own and meant) and an
// observation (what QEMU says) is decided by one pure function, plan. A change
// that goes well, a failed one, an unknown outcome, a guest's own eject, a
// reconnect and a start after a crash all end in the same loop: observe, plan,
// carry out, until there is nothing left to do (settle).
//
// # How it is laid out
//
//	record.go     what is durable about a drive
//	plan.go       the decision; steps.go carries its steps out
//	operation.go  a request from intent to outcome: prepare.go is all that touches
//	              nothing, wait.go waits for a guest, progress.go is for those who wait
//	drive.go      one drive: who works on it, settle
//	session.go    one connection to one QEMU: drives, events; features.go what it offers
//	vm.go         one machine: attach, reconnect, let go; process.go which QEMU it is
//	watch.go      which machines there are
//	medium.go     a medium's name to an open descriptor beneath an allowed root
//	events.go     what happens, for those who follow
//	status.go     what others may see; attached.go counts without asking
//	check.go      records against QEMU and the kernel
//	volumes.go    the volumes that discs are on: whose they are, turned on and off;
//	              volumes_status.go what others may see of them
//	images.go     the library's images, and which drives use them
//	machines.go   machines of trayd's own: machine_make.go, machine_change.go, machine_start.go
//	              (machine_discs.go: what is in when it begins), machine_stop.go,
//	              machine_boot.go (what is booted next), machine_end.go, machine_begin.go
//	              (trayd's own start), machine_images.go, machine_status.go
//	machine_console.go, screen.go  consoles and screens
//	leftover.go   nodes that QEMU can't delete yet
//	errors.go     errors for the person at the keyboard, with a code for programs
//
// Lock order: Agent.mu, then vm.mu, then drive.mu. None is held across a call to
// QEMU, to the journal or to the file system.
package agent
