package agent

import (
	"slices"

	"github.com/trayd/trayd/blockdev"
	"github.com/trayd/trayd/internal/library"
)

// Known is the host as the agent knows it without asking anybody: QEMU, the kernel or a
// program. It is for monitoring, which looks often.
type Known struct {
	Drives map[string]int // by state: as QEMU showed them the last time
	// Attached and Unreachable are machines that run; Stopped are those of trayd's own that
	// don't.
	Attached, Unreachable, Stopped int
	// VolumesActive are those that a drive uses, VolumesWaiting those that can't be released.
	VolumesActive, VolumesWaiting int
	Library                       library.Usage
}

// Known sums up what is known.
func (a *Agent) Known() Known {
	k := Known{Drives: make(map[string]int), Library: a.images.Usage()}
	attached, all := a.Attached()
	k.Attached, k.Unreachable = attached, all-attached
	var running []string
	for _, v := range a.list() {
		running = append(running, v.name)
		there := v.reachable()
		for _, d := range v.knownDrives() {
			k.Drives[d.knownState(there)]++
		}
	}
	if a.machines.options().Runner != nil {
		names, _ := a.machines.store().Names() // told of elsewhere
		for _, name := range names {
			if !slices.Contains(running, name) {
				k.Stopped++
			}
		}
	}
	for ref, users := range a.users() {
		switch {
		case a.volumes.why(ref) != nil:
			k.VolumesWaiting++
		case slices.ContainsFunc(users, func(u VolumeUser) bool { return !u.Foreign }):
			k.VolumesActive++
		}
	}
	return k
}

// reachable reports whether the machine could be asked the last time.
func (v *vm) reachable() bool {
	onDemand := v.a.opts().Attach == OnDemand
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.session != nil || onDemand && v.launched && v.why == nil
}

// saw notes what QEMU shows of the drive.
func (d *drive) saw(st blockdev.State) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seen = &st
}

// knownState is the drive's state as QEMU showed it the last time.
func (d *drive) knownState(there bool) string {
	d.mu.Lock()
	rec, st, unsettled := d.rec, d.seen, d.unsettled
	d.mu.Unlock()
	if !there {
		st = nil
	}
	return d.state(rec, st, unsettled)
}
