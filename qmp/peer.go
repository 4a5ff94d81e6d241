package qmp

// A Peer is the process that listened on the monitor socket when the connection was made, as the kernel knows it. That
// is QEMU itself, unless somebody handed it the socket (then it is the one who called listen).
type Peer struct {
	PID int // 0 when it is not known, or lives in another pid namespace
	UID int
	GID int
}
