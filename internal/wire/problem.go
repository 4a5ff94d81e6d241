package wire

// ProblemPrefix begins every problem's type; the agent's code follows.
const ProblemPrefix = "urn:trayd:problem:"

// Problem is an error as clients see it (RFC 9457), with Next added: one sentence
// on what to do.
type Problem struct {
	Type      string `json:"type"`
	Title     string `json:"title"`
	Status    int    `json:"status"`
	Detail    string `json:"detail"`
	Next      string `json:"next,omitempty"`
	VM        string `json:"vm,omitempty"`
	Drive     string `json:"drive,omitempty"`
	Operation string `json:"operation,omitempty"`
	Code      string `json:"code"`
}

// Error is the detail.
func (p *Problem) Error() string { return p.Detail }

// Code is the stable name of a kind of error, for programs. It is part of the
// API: codes are added, never renamed.
type Code string

// The codes.
const (
	NoSuchVM       Code = "no-such-vm"
	NoSuchDrive    Code = "no-such-drive"
	AmbiguousDrive Code = "ambiguous-drive"
	DriveFixed     Code = "drive-fixed"       // its disc can't be changed while the machine runs
	DriveOccupied  Code = "drive-occupied"    // insert into a drive that has a disc
	DriveEmpty     Code = "drive-empty"       // an action that needs a disc (Harvester)
	DriveBusy      Code = "drive-busy"        // another operation is under way
	DriveLocked    Code = "drive-locked"      // the guest holds the door
	NothingToStop  Code = "nothing-to-cancel" // no operation that waits for a guest
	CancelledCode  Code = "cancelled"
	BadRequest     Code = "bad-request"
	Forbidden      Code = "forbidden"
	NoSuchMedium   Code = "no-such-medium"
	OutsideRoots   Code = "medium-outside-roots"
	Unreadable     Code = "medium-unreadable"
	NotADisc       Code = "not-a-disc"
	NotADisk       Code = "not-a-disk"
	DiskRefused    Code = "disk-refused" // a disk image that names another file, is encrypted, or isn't sound
	Truncated      Code = "medium-truncated"
	Unreachable    Code = "vm-unreachable" // gone, held by another client, or silent
	QEMURefused    Code = "qemu-refused"
	Unknown        Code = "outcome-unknown"
	Incomplete     Code = "incomplete" // done in the machine; something is still to be cleaned up
	OvertakenCode  Code = "overtaken"
	MachineEnded   Code = "machine-ended"
	StateRefused   Code = "state-file-refused" // the journal can't take the intent
	Stopping       Code = "stopping"
	NoSuchGroup    Code = "no-such-volume-group"
	NoSuchVolume   Code = "no-such-volume"
	GroupPartial   Code = "volume-group-partial"  // physical volumes are missing
	GroupExported  Code = "volume-group-exported" // vgexport
	VolumeSnapshot Code = "volume-snapshot"
	VolumeThin     Code = "volume-thin"
	NoSuchPool     Code = "no-such-pool"
	ImageExists    Code = "image-exists"
	ImageInUse     Code = "image-in-use"
	NoSpace        Code = "no-space"    // the pool can't hold the image
	OverQuota      Code = "over-quota"  // of the pool
	PoolFailed     Code = "pool-failed" // the pool's storage refused or failed
	ImageNotReady  Code = "image-not-ready"
	ImageDamaged   Code = "image-damaged"    // its content has changed since it was added
	ImageUnsigned  Code = "image-unverified" // this host wants a checksum or a signature
	ImageCutOff    Code = "image-interrupted"
	VMExists       Code = "vm-exists"
	VMRunning      Code = "vm-running" // it has to be stopped for that
	VMNotRunning   Code = "vm-not-running"
	VMBusy         Code = "vm-busy"            // something else is done to the machine
	VMForeign      Code = "vm-not-ours"        // trayd attaches to it, and doesn't run it
	VMInvalid      Code = "definition-refused" // of a machine
	StartFailed    Code = "start-failed"
	GuestRunsOn    Code = "guest-runs-on" // it was asked to power off, and did not in time
	HostLacks      Code = "host-lacks"    // a program or firmware that the machine needs
	NoScreen       Code = "no-screen"
	ConsoleTaken   Code = "console-taken" // a serial console serves one at a time
	ManyConsoles   Code = "too-many-consoles"
)

// SourceCode begins the codes of failures of an image's source: source-not-found,
// source-tls-expired and so on; VerifyCode those of checksums and signatures:
// verify-mismatch, verify-unknown-key and so on.
const (
	SourceCode = "source-"
	VerifyCode = "verify-"
)
