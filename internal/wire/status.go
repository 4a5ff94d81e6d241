package wire

import "time"

// VMStatus is what may be seen of a machine.
type VMStatus struct {
	Name     string        `json:"name"`
	State    string        `json:"state"` // QEMU's word (running, paused, …), or "unreachable"
	QEMU     string        `json:"qemu,omitempty"`
	PID      int           `json:"pid,omitempty"`
	Socket   string        `json:"socket,omitempty"`
	Reason   string        `json:"reason,omitempty"` // why it is unreachable
	Next     string        `json:"next,omitempty"`   // what to do about it
	Drives   []DriveStatus `json:"drives"`
	Answered bool          `json:"answered"` // QEMU confirmed what is said here, now
	// Own is set for a machine of trayd's own; Machine is what is known of it besides, where
	// one machine was asked for.
	Own     bool           `json:"own,omitempty"`
	Machine *MachineStatus `json:"machine,omitempty"`
}

// The states of a drive beside Loading and Ejecting.
const (
	StateEmpty   = "empty"
	StateLoaded  = "loaded"
	StateUnknown = "unknown"   // QEMU doesn't answer, and nothing was under way
	StateOpen    = "unsettled" // QEMU doesn't answer, and something was under way
)

// DriveStatus is what may be seen of a drive. Tray, lock and medium are what QEMU
// says now; when it doesn't answer they are left out.
type DriveStatus struct {
	VM         string           `json:"vm"`
	Name       string           `json:"name"`
	Aliases    []string         `json:"aliases,omitempty"`
	Bus        string           `json:"bus"`
	Model      string           `json:"model"`
	Changeable bool             `json:"changeable"`
	Reason     string           `json:"reason,omitempty"` // why it can't be changed, or isn't settled
	State      string           `json:"state"`
	Tray       string           `json:"tray,omitempty"` // open, closed
	Locked     bool             `json:"locked"`
	Medium     *MediumStatus    `json:"medium,omitempty"`
	Operation  *OperationStatus `json:"operation,omitempty"`
	Last       *Outcome         `json:"last,omitempty"`
	// Releasing is what earlier discs have left and what can't be released yet, and why.
	Releasing []string `json:"releasing,omitempty"`
}

// MediumStatus is the disc in a drive.
type MediumStatus struct {
	Name     string     `json:"name"`
	Path     string     `json:"path,omitempty"`
	VolumeID string     `json:"volume_id,omitempty"`
	Size     int64      `json:"size"` // bytes
	ReadOnly bool       `json:"read_only"`
	Node     string     `json:"node"`
	Ours     bool       `json:"ours"` // trayd put it in
	Since    *time.Time `json:"since,omitempty"`
}

// OperationStatus is an operation, running or ended: a change of disc (insert, change, eject),
// a machine's start or stop, or an image's add, capture or verify, whose phases are the states
// of an image.
type OperationStatus struct {
	ID       string     `json:"id"`
	VM       string     `json:"vm,omitempty"`
	Drive    string     `json:"drive,omitempty"`
	Image    string     `json:"image,omitempty"` // image:POOL/NAME
	Verb     string     `json:"verb"`
	Medium   string     `json:"medium,omitempty"`
	By       string     `json:"by"`
	Since    time.Time  `json:"since"`
	Phase    Phase      `json:"phase"`
	Deadline *time.Time `json:"deadline,omitempty"` // of the wait for the guest
	// Progress is of an image, while its bytes are coming.
	Progress *ImageProgress `json:"progress,omitempty"`
	Ended    time.Time      `json:"ended,omitzero"`
	Result   Result         `json:"result,omitempty"`
	Reason   string         `json:"reason,omitempty"`
	// Error and Code are set when the operation failed or its outcome is unknown.
	Error string `json:"error,omitempty"`
	Code  Code   `json:"code,omitempty"`
	Next  string `json:"next,omitempty"` // what to do about it
}

// Finding is one place where the records, QEMU and the kernel don't agree.
type Finding struct {
	VM      string `json:"vm"`
	Drive   string `json:"drive,omitempty"`
	Problem string `json:"problem"`
	Next    string `json:"next"`
}

// Summary is the host on one screen.
type Summary struct {
	Version string `json:"version"`
	PID     int    `json:"pid"`
	VMs     struct {
		Attached int `json:"attached"`
		All      int `json:"all"`
	} `json:"vms"`
	Drives     map[string]int     `json:"drives"` // how many are in each state
	Images     map[string]int     `json:"images"` // the same
	Operations []*OperationStatus `json:"operations"`
	Volumes    []VolumeStatus     `json:"volumes"`
	Problems   []Finding          `json:"problems"` // where the records, QEMU and the kernel don't agree
	// Attention is what else needs somebody's: machines that boot nothing, images that don't
	// come, guests that are waited for.
	Attention []Check `json:"attention"`
}
