// Package launch runs a machine as a process of its own, which ends neither with trayd
// nor with trayd's upgrade, and which can do less than trayd can.
//
// # Two ways to the same process
//
// A Runner starts `trayd launch NAME`: Units as an instance of trayd-vm@.service, whose
// limits, journal and order at shutdown are systemd's, and Detached as a process in a
// session of its own, where there is no systemd. Choose says which. The launcher opens
// what QEMU may have, gives everything else up, and becomes QEMU (Exec). QEMU gets
// descriptors; by path it can open nothing that is trayd's. Under systemd each machine is
// a user of its own, and sees nothing of another. Processes without systemd are one user's:
// a QEMU that its guest has taken over could reach the monitor of another.
//
// # What runs is what holds the lock
//
// A machine's process holds a lock (flock(2)) on the file "lock" in the machine's
// directory from before its first step until the kernel has taken its last descriptor.
// So two starts can't both succeed, whichever way they take; nothing that is left on
// disk ever claims that a machine runs; and a trayd that was started anew finds the
// machines that its predecessor started. The file also says who holds the lock.
//
// # What it leaves to others
//
// What a machine is, and QEMU's command line, is package machine's. Asking a guest to
// power off, before a Kill, is its monitor's; PowerOff is there for systemd, which does
// it at a host's shutdown.
package launch
