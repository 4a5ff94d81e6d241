package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/trayd/trayd/blockdev/volume"
)

// Volumes shows every volume that a record speaks of, and those that carry trayd's mark
// and no record speaks of, by name.
func (a *Agent) Volumes(ctx context.Context) []VolumeStatus {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	orphans, err := a.volumes.storage.Orphans(ctx)
	if err != nil {
		a.log.Warn("the kernel can't be asked for volumes of this trayd", "error", err)
	}
	// The records come second: one is there before its volume is active.
	users := a.users()
	all := []VolumeStatus{}
	for ref, by := range users {
		all = append(all, a.volumeStatus(ctx, ref, by))
	}
	for _, ref := range orphans {
		if _, known := users[ref]; known {
			continue
		}
		if s := a.volumeStatus(ctx, ref, nil); s.Active || s.Error != "" { // not released meanwhile
			all = append(all, s)
		}
	}
	slices.SortFunc(all, func(x, y VolumeStatus) int { return strings.Compare(x.Volume, y.Volume) })
	return all
}

func (a *Agent) volumeStatus(ctx context.Context, ref volume.Ref, users []VolumeUser) VolumeStatus {
	s := VolumeStatus{Volume: ref.String(), Users: users, Foreign: len(users) > 0}
	if users == nil {
		s.Users = []VolumeUser{}
	}
	for _, u := range users {
		s.Foreign = s.Foreign && u.Foreign
	}
	if w := a.volumes.why(ref); w != nil {
		s.Waiting, s.Since, s.Tries = w.Why, &w.Since, w.Tries
	}
	v, err := a.volumes.storage.Volume(ref)
	var st volume.State
	if err == nil {
		st, err = v.State(ctx)
	}
	if err != nil {
		s.Error = err.Error()
		return s
	}
	s.Active = st.Active
	if st.Held {
		holders, _ := v.Holders(ctx) // for information only
		for _, h := range holders {
			s.Holders = append(s.Holders, Holder(h))
		}
	}
	return s
}

// CollectVolumes releases the volumes that carry trayd's mark and that no record speaks
// of. With dry it only says which those are.
func (a *Agent) CollectVolumes(ctx context.Context, dry bool, by Caller) ([]Collected, error) {
	t := a.trace(by, "gc volumes")
	orphans, err := a.volumes.storage.Orphans(ctx)
	if err != nil {
		if !dry {
			t.end(err)
		}
		return nil, newError(Unreadable, "is device-mapper there? `trayctl state check` shows more", "the kernel can't be asked for volumes: %w", err)
	}
	all := []Collected{}
	for _, ref := range orphans {
		if len(a.users()[ref]) > 0 {
			continue
		}
		c := Collected{Volume: ref.String()}
		if !dry {
			one := a.trace(by, "gc volume", "volume", c.Volume)
			if err := a.collect(ctx, ref); err != nil {
				c.Error = err.Error()
			}
			one.end(said(c.Error))
		}
		all = append(all, c)
	}
	if !dry {
		t.end(nil, "released", len(all))
	}
	return all, nil
}

func (a *Agent) collect(ctx context.Context, ref volume.Ref) error {
	ctx, cancel := context.WithTimeout(ctx, releaseLimit)
	defer cancel()
	unlock, err := a.volumes.lock(ctx, ref)
	if err != nil {
		return fmt.Errorf("it is being turned on or off: %w", err)
	}
	defer unlock()
	if len(a.users()[ref]) > 0 {
		return nil // somebody has just begun to use it
	}
	return a.deactivate(ctx, ref, "")
}

// checkVolumes finds volumes that wait for their release, that nobody owns, or that a
// record speaks of and that aren't there.
func (a *Agent) checkVolumes(ctx context.Context) []Finding {
	var findings []Finding
	for _, v := range a.Volumes(ctx) {
		f := Finding{}
		var loaded []string
		for _, u := range v.Users {
			f.VM, f.Drive = u.VM, u.Drive
			if u.State == StateLoaded {
				loaded = append(loaded, u.String())
			}
		}
		switch {
		case v.Waiting != "":
			f.Problem, f.Next = fmt.Sprintf("volume %s can't be released yet: %s", v.Volume, v.Waiting), "trayd goes on trying; end what holds it"
		case len(v.Users) == 0:
			f.Problem, f.Next = fmt.Sprintf("volume %s is active and belongs to nobody", v.Volume), "`trayctl volumes gc` releases it"
		case v.Error != "":
			f.Problem, f.Next = v.Error, "see `trayctl volumes`"
		case len(loaded) > 0 && !v.Active:
			if ref, err := volume.ParseRef(v.Volume); err == nil && !slices.Equal(a.users()[ref], v.Users) {
				continue // it was let go of between the look at the records and the one at the kernel
			}
			f.Problem = fmt.Sprintf("volume %s is not active, and %s uses it", v.Volume, strings.Join(loaded, ", "))
			f.Next = "somebody else has deactivated it; eject the disc, then insert it again"
		default:
			continue
		}
		findings = append(findings, f)
	}
	return findings
}
