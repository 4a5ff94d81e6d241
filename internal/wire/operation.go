package wire

import "time"

// The verbs of a request.
const (
	Insert  = "insert"
	Replace = "change"
	Eject   = "eject"
)

// Phase is where a running operation is.
type Phase string

// The phases.
const (
	Starting   Phase = "starting"
	Waiting    Phase = "waiting-for-guest"
	Activating Phase = "activating" // the volume that holds the disc
	Changing   Phase = "changing"
	Unsettled  Phase = "unsettled" // the outcome is not known; QEMU is being asked
	Running    Phase = "running"   // of what is no change of disc, when no more is known
	// Of an image on its way: it waits for its turn, its bytes come, they are looked at.
	Allocated   Phase = "allocated"
	Downloading Phase = "downloading"
	Verifying   Phase = "verifying"
	Ended       Phase = "ended"
)

// Result is how an operation ended.
type Result string

// The results. An unknown outcome is no result: it stays open until QEMU answers.
const (
	Done       Result = "done"      // it is as was asked
	Failed     Result = "failed"    // the drive is as it was before
	Cancelled  Result = "cancelled" // given up on request; the drive is as it was before
	Overtaken  Result = "overtaken" // somebody else's disc is in the drive, or ours was taken out
	MachineEnd Result = "machine-ended"
)

// Outcome is the end of an operation.
type Outcome struct {
	Operation string    `json:"operation"`
	Verb      string    `json:"verb"`
	Medium    string    `json:"medium,omitempty"`
	By        string    `json:"by,omitempty"`
	Result    Result    `json:"result"`
	Reason    string    `json:"reason,omitempty"`
	At        time.Time `json:"at"`
	// Recovered is set when the outcome was found out afterwards, by asking
	// QEMU, and not by the operation itself.
	Recovered bool `json:"recovered,omitempty"`
}
