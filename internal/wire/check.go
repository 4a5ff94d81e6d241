package wire

// CheckResult is how a check of the host ended.
type CheckResult string

// The results.
const (
	CheckOK      CheckResult = "ok"
	CheckWarning CheckResult = "warning" // it works, and may not for long, or not as safely as it could
	CheckFailed  CheckResult = "failed"
	CheckSkipped CheckResult = "skipped" // it could not be looked at, or isn't used here
)

// Check is one thing that `trayctl doctor` has looked at.
type Check struct {
	Area   string      `json:"area"` // such as qemu, monitors, space
	Name   string      `json:"name"` // what was looked at
	Result CheckResult `json:"result"`
	Detail string      `json:"detail"`
	Next   string      `json:"next,omitempty"` // what to do about it
}
