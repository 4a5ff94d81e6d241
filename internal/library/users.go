package library

import (
	"slices"
	"strings"
	"sync"

	"github.com/trayd/trayd/internal/wire"
)

// usersOf are the drives that have an image, the machines whose disks stand on it, and those
// that are being made from it. Where its content has several names, those that asked for it
// by another one don't count.
func (l *Library) usersOf(e *entry) []User {
	var by []User
	l.mu.Lock()
	if l.lent[e.key()] > 0 {
		by = append(by, User{Medium: e.String()})
	}
	l.mu.Unlock()
	p, err := l.pool(e.Pool)
	if err != nil || e.Place == "" || l.users == nil {
		return by
	}
	place, ok := l.placeOf(p, e)
	if !ok {
		return by
	}
	place.Image = e.String()
	users := l.users(place)
	if len(users) == 0 {
		return by
	}
	var others []string
	for _, o := range l.sharing(e) {
		others = append(others, "image:"+o.Name, o.String())
	}
	for _, u := range users {
		if !slices.Contains(others, u.Medium) {
			by = append(by, u)
		}
	}
	return by
}

// named are users as people know them; one that has no name yet is a machine that is being
// made.
func named(users []User) []string {
	var all []string
	for _, u := range users {
		switch {
		case u.Machine != "":
			all = append(all, u.Machine+" (linked)")
		case u.Drive != "":
			all = append(all, u.Drive)
		default:
			all = append(all, "a machine that is being made")
		}
	}
	return all
}

// inUse is why an image that has users stays.
func inUse(e *entry, by []User) *Error {
	var machines, drives []string
	for _, u := range by {
		switch {
		case u.Machine != "" && !slices.Contains(machines, u.Machine):
			machines = append(machines, u.Machine)
		case u.Drive != "":
			drives = append(drives, u.Drive)
		}
	}
	switch {
	case len(machines) > 0:
		return problem(InUse, "remove those machines first", "image:%s is the base of the disks of %s (linked)", e.Name, strings.Join(machines, ", "))
	case len(drives) > 0:
		return problem(InUse, "eject it first", "image %s of pool %s is in use by %s", e.Name, e.Pool, strings.Join(drives, ", "))
	}
	return problem(InUse, "wait for it to end", "a machine is being made from image:%s", e.Name)
}

// Lend finds a disk image as FindDisk does, and keeps it from being removed and from making
// room until the caller, who makes a machine from it, calls done. By then Users has to name
// that machine, if its disk stands on the image. It may be lent any number of times.
func (l *Library) Lend(name string) (at Place, i Image, done func(), err error) {
	_, i, err = l.FindDisk(name)
	if err != nil {
		return at, i, nil, err
	}
	p, err := l.pool(i.Pool)
	if err != nil {
		return at, i, nil, err
	}
	k := key(i.Pool, i.Name)
	l.mu.Lock()
	if l.busy[k] || l.jobs[k] != nil {
		l.mu.Unlock()
		return at, i, nil, beingChanged(i.Name)
	}
	l.lent[k]++
	l.mu.Unlock()
	done = sync.OnceFunc(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.lent[k]--; l.lent[k] == 0 {
			delete(l.lent, k)
		}
	})
	// Whoever removes it from here on sees that it is lent; it may have gone before.
	e, ok := l.entry(i.Pool, i.Name)
	if ok = ok && e.State == wire.ImageReady; ok {
		at, ok = l.placeOf(p, e)
	}
	if !ok {
		done()
		return at, i, nil, problem(NoSuchImage, "`trayctl image ls` shows those that there are", "no image %s any more", name)
	}
	l.noteUse(e)
	return at, e.Image, done, nil
}
