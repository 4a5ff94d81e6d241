package agent

import "github.com/trayd/trayd/internal/wire"

// What others see of the agent has its names and shapes in wire.
type (
	VMStatus        = wire.VMStatus
	DriveStatus     = wire.DriveStatus
	MediumStatus    = wire.MediumStatus
	OperationStatus = wire.OperationStatus
	Finding         = wire.Finding
	Summary         = wire.Summary
	Phase           = wire.Phase
	Result          = wire.Result
	Outcome         = wire.Outcome
	Event           = wire.Event
	Holder          = wire.Holder
	Code            = wire.Code
	VolumeUser      = wire.VolumeUser
	VolumeStatus    = wire.VolumeStatus
	Collected       = wire.Collected
)

// The words of those shapes.
const (
	StateEmpty         = wire.StateEmpty
	StateLoaded        = wire.StateLoaded
	StateUnknown       = wire.StateUnknown
	StateOpen          = wire.StateOpen
	Insert             = wire.Insert
	Replace            = wire.Replace
	Eject              = wire.Eject
	Starting           = wire.Starting
	Waiting            = wire.Waiting
	Activating         = wire.Activating
	Changing           = wire.Changing
	Unsettled          = wire.Unsettled
	Ended              = wire.Ended
	Done               = wire.Done
	Failed             = wire.Failed
	Cancelled          = wire.Cancelled
	Overtaken          = wire.Overtaken
	MachineEnd         = wire.MachineEnd
	EventVMAttached    = wire.EventVMAttached
	EventVMLost        = wire.EventVMLost
	EventVMEnded       = wire.EventVMEnded
	EventStarted       = wire.EventStarted
	EventWaiting       = wire.EventWaiting
	EventFailed        = wire.EventFailed
	EventIncomplete    = wire.EventIncomplete
	EventUnchanged     = wire.EventUnchanged
	EventLoaded        = wire.EventLoaded
	EventEjected       = wire.EventEjected
	EventRolledBack    = wire.EventRolledBack
	EventUnsettled     = wire.EventUnsettled
	EventSettled       = wire.EventSettled
	EventGuestEjected  = wire.EventGuestEjected
	EventTrayPutRight  = wire.EventTrayPutRight
	EventReleased      = wire.EventReleased
	EventReleaseWaits  = wire.EventReleaseWaits
	EventVolumeCorrupt = wire.EventVolumeCorrupt
	EventImageAdded    = wire.EventImageAdded
	EventImageRemoved  = wire.EventImageRemoved
	EventImageFailed   = wire.EventImageFailed
	EventConflict      = wire.EventConflict
	NoSuchVM           = wire.NoSuchVM
	NoSuchDrive        = wire.NoSuchDrive
	AmbiguousDrive     = wire.AmbiguousDrive
	DriveFixed         = wire.DriveFixed
	DriveOccupied      = wire.DriveOccupied
	DriveBusy          = wire.DriveBusy
	DriveLocked        = wire.DriveLocked
	NothingToStop      = wire.NothingToStop
	CancelledCode      = wire.CancelledCode
	BadRequest         = wire.BadRequest
	Forbidden          = wire.Forbidden
	NoSuchMedium       = wire.NoSuchMedium
	OutsideRoots       = wire.OutsideRoots
	Unreadable         = wire.Unreadable
	NotADisc           = wire.NotADisc
	NotADisk           = wire.NotADisk
	DiskRefused        = wire.DiskRefused
	Truncated          = wire.Truncated
	Unreachable        = wire.Unreachable
	QEMURefused        = wire.QEMURefused
	Unknown            = wire.Unknown
	Incomplete         = wire.Incomplete
	OvertakenCode      = wire.OvertakenCode
	MachineEnded       = wire.MachineEnded
	StateRefused       = wire.StateRefused
	Stopping           = wire.Stopping
	NoSuchGroup        = wire.NoSuchGroup
	NoSuchVolume       = wire.NoSuchVolume
	GroupPartial       = wire.GroupPartial
	GroupExported      = wire.GroupExported
	VolumeSnapshot     = wire.VolumeSnapshot
	VolumeThin         = wire.VolumeThin
	NoSuchPool         = wire.NoSuchPool
	ImageExists        = wire.ImageExists
	ImageInUse         = wire.ImageInUse
	NoSpace            = wire.NoSpace
	OverQuota          = wire.OverQuota
	PoolFailed         = wire.PoolFailed
	ImageNotReady      = wire.ImageNotReady
	ImageDamaged       = wire.ImageDamaged
	ImageUnsigned      = wire.ImageUnsigned
	ImageCutOff        = wire.ImageCutOff
	StateReleasing     = wire.StateReleasing
)
