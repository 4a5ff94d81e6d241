package access

import "fmt"

// Role is what somebody may do. A role includes those below it.
type Role int

// The roles.
const (
	None Role = iota
	View
	Change
	Admin
)

var roleNames = [...]string{None: "none", View: "view", Change: "change", Admin: "admin"}

// String is the role's name in the API, in the configuration and in the audit log.
func (r Role) String() string { return roleNames[r] }

// MarshalText is String.
func (r Role) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText is ParseRole.
func (r *Role) UnmarshalText(text []byte) (err error) {
	*r, err = ParseRole(string(text))
	return err
}

// ParseRole reads a role that somebody can be given.
func ParseRole(name string) (Role, error) {
	for r := View; r <= Admin; r++ {
		if r.String() == name {
			return r, nil
		}
	}
	return None, fmt.Errorf("there is no role %q: use view, change or admin", name)
}

// Identity is who asks.
type Identity struct {
	// Name is for people: "alice (pid 12)", "token ci (192.0.2.7)".
	Name string `json:"name"`
	// Key tells identities apart: "uid:1000", "token:ab12cd34", "cert:edge-7".
	Key  string `json:"key"`
	Role Role   `json:"role"`
	PID  int    `json:"pid,omitempty"` // of a process on this host; 0 elsewhere
	UID  int    `json:"uid,omitempty"` // of that process
}
