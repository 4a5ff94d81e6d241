package wire

import (
	"fmt"
	"time"
)

// VolumeStatus is what may be seen of a volume that trayd uses, or left.
type VolumeStatus struct {
	Volume string `json:"volume"` // as people write it: lvm:vg0/debian
	Active bool   `json:"active"` // what the kernel says now
	// Users are the drives whose records speak of it. One without any carries trayd's
	// mark and belongs to nobody.
	Users []VolumeUser `json:"users"`
	// Foreign is set when somebody else had activated it: it is left active.
	Foreign bool `json:"foreign,omitempty"`
	// Waiting is why it can't be released yet; Since and Tries say for how long.
	Waiting string     `json:"waiting,omitempty"`
	Since   *time.Time `json:"since,omitempty"`
	Tries   int        `json:"tries,omitempty"`
	Holders []Holder   `json:"holders,omitempty"`
	// Error is why the kernel can't say whether it is active.
	Error string `json:"error,omitempty"`
}

// VolumeUser is a drive that uses a volume.
type VolumeUser struct {
	VM    string `json:"vm"`
	Drive string `json:"drive"`
	State string `json:"state"` // loaded, loading or releasing
	// Foreign is set when somebody else had activated the volume before.
	Foreign bool `json:"foreign,omitempty"`
}

func (u VolumeUser) String() string { return u.VM + "/" + u.Drive }

// StateReleasing is the state of a VolumeUser that waits for the volume's release.
const StateReleasing = "releasing"

// Holder is who holds a volume open: a process, a device above, or a mount.
type Holder struct {
	PID  int    `json:"pid,omitempty"`
	Name string `json:"name"` // the process's or the device's
}

func (h Holder) String() string {
	if h.PID == 0 {
		return h.Name
	}
	return fmt.Sprintf("%s (pid %d)", h.Name, h.PID)
}

// Collected is a volume that CollectVolumes has released, or would.
type Collected struct {
	Volume string `json:"volume"`
	Error  string `json:"error,omitempty"` // why it could not be released
}
