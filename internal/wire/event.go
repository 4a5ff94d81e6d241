package wire

import "time"

// The types of events.
const (
	EventVMAttached    = "vm-attached"
	EventVMLost        = "vm-lost"     // the monitor's connection ended
	EventVMEnded       = "vm-ended"    // the machine's process ended
	EventStarted       = "started"     // an operation began
	EventWaiting       = "waiting"     // it waits for the guest
	EventFailed        = "failed"      // it was refused or failed; the drive is as it was, or the event before says how
	EventIncomplete    = "incomplete"  // it is done, and something is still to be cleaned up
	EventUnchanged     = "unchanged"   // it is as was asked already: nothing was moved
	EventLoaded        = "loaded"      // a disc of ours is in
	EventEjected       = "ejected"     // a disc is out
	EventRolledBack    = "rolled-back" // the drive is as it was before
	EventUnsettled     = "unsettled"   // the outcome is not known yet
	EventSettled       = "settled"     // an outcome was found out afterwards
	EventGuestEjected  = "guest-ejected"
	EventTrayPutRight  = "tray-put-right" // a late answer of a guest was undone
	EventReleased      = "released"       // a disc of ours left by other hands, or a volume or node is released
	EventReleaseWaits  = "release-waits"  // a volume can't be released yet
	EventVolumeCorrupt = "volume-corrupt" // a verity volume doesn't hold what its hashes say
	EventImageStarted  = "image-started"  // its bytes begin to come, or it begins to be read
	EventImageAdded    = "image-added"
	EventImageVerified = "image-verified" // it is what its checksum says
	EventImageRemoved  = "image-removed"
	EventImageFailed   = "image-failed"
	EventVMCreated     = "vm-created"
	EventVMRemoved     = "vm-removed"
	EventVMStarting    = "vm-starting"
	EventVMStopping    = "vm-stopping"
	EventVMRunsOn      = "vm-runs-on" // it was asked to stop, and has not
	EventVMStarted     = "vm-started" // a machine of trayd's own runs
	EventVMStopped     = "vm-stopped" // and has ended: on its own, or asked to
	EventVMFailed      = "vm-failed"  // it could not be started, or ended badly
	EventVMInstalled   = "vm-installed"
	EventConflict      = "conflict" // somebody else's disc is in
	EventMissed        = "missed"   // some events didn't come: look anew at what you follow
)

// EventTypes is all of them.
func EventTypes() []string {
	return []string{
		EventVMAttached, EventVMLost, EventVMEnded, EventStarted,
		EventWaiting, EventFailed, EventIncomplete, EventUnchanged,
		EventLoaded, EventEjected, EventRolledBack, EventUnsettled,
		EventSettled, EventGuestEjected, EventTrayPutRight, EventReleased,
		EventReleaseWaits, EventVolumeCorrupt, EventImageStarted, EventImageAdded, EventImageVerified, EventImageRemoved,
		EventImageFailed, EventVMCreated, EventVMRemoved, EventVMStarting, EventVMStopping, EventVMRunsOn, EventVMStarted,
		EventVMStopped, EventVMFailed, EventVMInstalled, EventConflict,
		EventMissed,
	}
}

// Event is something that happened. IDs rise by one while trayd runs, and go on higher when
// it is started anew; they stay below 2^53.
type Event struct {
	ID        uint64    `json:"id"`
	Time      time.Time `json:"time"`
	Type      string    `json:"type"`
	VM        string    `json:"vm"`
	Drive     string    `json:"drive,omitempty"`
	Operation string    `json:"operation,omitempty"`
	Detail    string    `json:"detail,omitempty"`
}
