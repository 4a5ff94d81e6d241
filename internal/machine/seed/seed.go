// Package seed makes the disc that cloud-init reads at a machine's first boot: NoCloud's,
// with the volume identifier cidata.
package seed

import "errors"

// Seed is what a machine learns at its first boot.
type Seed struct {
	InstanceID string // cloud-init runs again when it changes
	Hostname   string
	UserData   string   // "" for one that only has the keys
	SSHKeys    []string // lines of authorized_keys
}

// Write makes the disc at path, readable by its owner alone.
func Write(path string, s Seed) error { return errors.New("not made yet") }
