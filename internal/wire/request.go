package wire

// OnlyDrive is the drive name that means the machine's only CD drive. No QEMU id
// begins with a hyphen.
const OnlyDrive = "-"

// Version is the answer to GET /v1/version.
type Version struct {
	Version string `json:"version"`
	PID     int    `json:"pid"`
}

// ChangeRequest is the body of insert, change and eject.
type ChangeRequest struct {
	Medium     string `json:"medium,omitempty"`
	Wait       string `json:"wait,omitempty"` // a Go duration; empty means the agent's default
	Force      bool   `json:"force,omitempty"`
	ThenForce  bool   `json:"then_force,omitempty"`
	NoValidate bool   `json:"no_validate,omitempty"`
}
