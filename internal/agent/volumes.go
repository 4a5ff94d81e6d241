package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/trayd/trayd/blockdev/volume"
	"github.com/trayd/trayd/internal/library"
)

// Storage is the volumes of this host: a *volume.Host.
type Storage interface {
	library.Storage
	// Orphans lists the volumes that are active and carry this agent's mark.
	Orphans(context.Context) ([]volume.Ref, error)
	// Watch calls f whenever a volume of this agent's is found to hold something else
	// than its hashes say, until the context ends.
	Watch(ctx context.Context, f func(ref volume.Ref, detail string)) error
	// Configure takes new settings. Active volumes stay as they are.
	Configure(volume.Options)
	// DeviceUUID tells a volume that was activated here from another that has its name by
	// now; "" is for all others. Adopt is told of it after a restart; "" means the one that
	// has the name now.
	DeviceUUID(volume.Ref) string
	Adopt(ref volume.Ref, deviceUUID string)
	// Under is the volume that has to be active as long as another one is; nil for most.
	Under(volume.Ref) *volume.Ref
}

const (
	// activateLimit is how long an activation may take. lvm2 needs tens of milliseconds;
	// one that waits for a lost disk never ends.
	activateLimit = 30 * time.Second
	// releaseLimit is the same for a release. lvchange tries a busy volume for 5.6 s.
	releaseLimit = 15 * time.Second
	// A release that failed is tried again after minRelease, then after twice that each
	// time. As long as the volume is held open a try costs a question to the kernel, so
	// that it ends within a second of whatever held it.
	minRelease = 125 * time.Millisecond
	maxRelease = time.Second
)

// volumes is what the agent knows of the volumes that discs are on. Who uses one is
// not kept here: the records say so.
type volumes struct {
	storage Storage

	mu      sync.Mutex // guards below
	locks   map[volume.Ref]*volumeLock
	waiting map[volume.Ref]*waiting // releases that failed
}

// volumeLock is held while a volume is activated or released, so that nobody begins to
// use one that somebody else is about to turn off.
type volumeLock struct {
	turn  chan struct{}
	users int // holders and waiters; guarded by volumes.mu
}

// waiting is why a volume can't be released yet.
type waiting struct {
	Since time.Time
	Tries int
	Why   string
	Busy  bool // held open by somebody; false: another failure
	next  time.Time
}

func newVolumes(s Storage) *volumes {
	return &volumes{storage: s, locks: make(map[volume.Ref]*volumeLock), waiting: make(map[volume.Ref]*waiting)}
}

// lock waits for the volume's turn, as long as ctx lasts.
func (v *volumes) lock(ctx context.Context, ref volume.Ref) (unlock func(), err error) {
	v.mu.Lock()
	l := v.locks[ref]
	if l == nil {
		l = &volumeLock{turn: make(chan struct{}, 1)}
		v.locks[ref] = l
	}
	l.users++
	v.mu.Unlock()
	leave := func() {
		v.mu.Lock()
		defer v.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(v.locks, ref)
		}
	}
	select {
	case l.turn <- struct{}{}:
		return func() { <-l.turn; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}

// due reports whether a release is worth a try now.
func (v *volumes) due(ref volume.Ref) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	w := v.waiting[ref]
	return w == nil || !time.Now().Before(w.next)
}

// why is why a release waits; nil when it doesn't.
func (v *volumes) why(ref volume.Ref) *waiting {
	v.mu.Lock()
	defer v.mu.Unlock()
	if w := v.waiting[ref]; w != nil {
		seen := *w
		return &seen
	}
	return nil
}

// deviceUUID is that of the volume, or of the one that it stands on: only logical volumes
// have one.
func (v *volumes) deviceUUID(ref volume.Ref) string {
	if under := v.storage.Under(ref); under != nil {
		ref = *under
	}
	return v.storage.DeviceUUID(ref)
}

// release releases a volume, a logical one only if it still is that of the uuid: else it is
// off already, and what has its name by now is somebody else's. One that was found held open
// before is only looked at as long as it is.
func (v *volumes) release(ctx context.Context, ref volume.Ref, uuid string) error {
	if ref.Kind == volume.LVM && uuid != "" && v.storage.DeviceUUID(ref) != uuid {
		return nil
	}
	vol, err := v.storage.Volume(ref)
	if err != nil {
		return err
	}
	if w := v.why(ref); w != nil && w.Busy {
		if st, err := vol.State(ctx); err == nil && st.Active && st.Held {
			return errors.New(w.Why)
		}
	}
	return vol.Release(ctx)
}

// failed notes that a release failed, and whether that is news.
func (v *volumes) failed(ref volume.Ref, err error) (first bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	w := v.waiting[ref]
	if w == nil {
		w = &waiting{Since: time.Now()}
		v.waiting[ref] = w
	}
	var busy *volume.BusyError
	w.Busy = errors.As(err, &busy) || w.Busy && w.Why == err.Error()
	w.Why = err.Error()
	w.next = time.Now().Add(min(minRelease<<min(w.Tries, 20), maxRelease))
	w.Tries++
	return w.Tries == 1
}

// next is when the first of the queued releases is worth a try.
func (v *volumes) next(queue []Releasing) time.Time {
	v.mu.Lock()
	defer v.mu.Unlock()
	first := time.Now().Add(maxRelease)
	for _, q := range queue {
		if w := v.waiting[q.Volume]; w == nil {
			return time.Now()
		} else if w.next.Before(first) {
			first = w.next
		}
	}
	return first
}

// retryReleases tries every queued release now: something has happened that may have
// ended what one waits for, or the agent has just started.
func (a *Agent) retryReleases() {
	a.volumes.mu.Lock()
	for _, w := range a.volumes.waiting {
		w.next = time.Time{}
	}
	a.volumes.mu.Unlock()
	for _, v := range a.all() {
		for _, d := range v.allDrives() {
			if len(d.record().Releasing) > 0 {
				a.startUnlessStopping(func() { d.retryReleases(a.ctx) })
			}
		}
	}
}

func (v *volumes) released(ref volume.Ref) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.waiting, ref)
}

// users are the drives whose records speak of each volume. It is derived from the
// records each time: a counter could drift.
func (a *Agent) users() map[volume.Ref][]VolumeUser {
	users := make(map[volume.Ref][]VolumeUser)
	for _, v := range a.all() {
		for _, d := range v.allDrives() {
			rec := d.record()
			add := func(ref volume.Ref, state string, foreign bool) {
				users[ref] = append(users[ref], VolumeUser{VM: v.name, Drive: d.name, State: state, Foreign: foreign})
				if under := a.volumes.storage.Under(ref); under != nil {
					users[*under] = append(users[*under], VolumeUser{VM: v.name, Drive: d.name, State: state})
				}
			}
			if in := rec.Loaded; in != nil && in.Medium.Volume != nil {
				add(*in.Medium.Volume, StateLoaded, in.Medium.Foreign)
			}
			if c := rec.Change; c != nil && c.Target != nil && c.Target.Volume != nil {
				add(*c.Target.Volume, string(c.Kind), c.Target.Foreign)
			}
			for _, q := range rec.Releasing {
				add(q.Volume, StateReleasing, false)
			}
		}
	}
	return users
}

// usedBy are the drives that use a volume, those left out that have it to release only.
func (a *Agent) usedBy(ref volume.Ref) []string {
	var by []string
	for _, u := range a.users()[ref] {
		if u.State != StateReleasing {
			by = append(by, u.String())
		}
	}
	return by
}

// claim decides whose activation a volume is that a change is about to use: ours if
// anything of ours uses it or is still to release it, and else whoever's it was before.
// Others can only have activated a logical volume: all else that is active carries our
// mark, and is adopted where no record speaks of it any more. The caller holds the
// volume's lock.
//
// looked is set where that was seen just now, and not known: somebody else may turn the
// volume on or off meanwhile, and Activate tells.
func (a *Agent) claim(ctx context.Context, v volume.Volume) (foreign, looked bool, err error) {
	users := a.users()[v.Ref()]
	for _, u := range users {
		if !u.Foreign {
			return false, false, nil
		}
	}
	if len(users) > 0 {
		return true, false, nil
	}
	if v.Ref().Kind != volume.LVM {
		return false, false, nil
	}
	st, err := v.State(ctx)
	return st.Active, true, err
}

// activate turns a volume on, and before it the one that it stands on. The caller holds
// the volume's lock, and a record speaks of it.
func (a *Agent) activate(ctx context.Context, v volume.Volume) (made bool, err error) {
	if under := a.volumes.storage.Under(v.Ref()); under != nil {
		unlock, err := a.volumes.lock(ctx, *under)
		if err != nil {
			return false, err
		}
		defer unlock()
		u, err := a.volumes.storage.Volume(*under)
		if err == nil {
			_, err = u.Activate(ctx)
		}
		if err != nil {
			return false, err
		}
	}
	return v.Activate(ctx)
}

// deactivate turns a volume off, and then the one that it stands on, unless that has other
// users. uuid is what deviceUUID was, "" where it isn't known. The caller holds the volume's
// lock.
func (a *Agent) deactivate(ctx context.Context, ref volume.Ref, uuid string) error {
	under := a.volumes.storage.Under(ref)
	if err := a.volumes.release(ctx, ref, uuid); err != nil || under == nil {
		return err
	}
	unlock, err := a.volumes.lock(ctx, *under)
	if err != nil {
		return err
	}
	defer unlock()
	if len(a.usedBy(*under)) > 0 {
		return nil
	}
	return a.volumes.release(ctx, *under, uuid)
}

// adoptVolumes tells which volumes a record's are, unless the host was booted since: then
// nothing of ours is active any more, and whatever is was activated by somebody else.
func (a *Agent) adoptVolumes(rec Record) {
	if start := rec.Process.Start; start != "" && !strings.HasPrefix(start, a.boot+"/") {
		return
	}
	adopt := func(ref volume.Ref, uuid string) {
		if under := a.volumes.storage.Under(ref); under != nil {
			ref = *under
		}
		a.volumes.storage.Adopt(ref, uuid)
	}
	for _, m := range rec.uses() {
		if !m.Foreign {
			adopt(*m.Volume, m.DeviceUUID)
		}
	}
	for _, q := range rec.Releasing {
		adopt(q.Volume, q.DeviceUUID)
	}
}

// remount mounts again what drives use and what has gone with the mount namespace that a
// unit's sandbox gave the trayd before. QEMU holds its file open all the while.
func (a *Agent) remount() {
	for ref, users := range a.users() {
		if ref.Kind != volume.Mount || !slices.ContainsFunc(users, func(u VolumeUser) bool { return u.State == StateLoaded && !u.Foreign }) {
			continue
		}
		if err := a.activateAgain(ref); err != nil && a.ctx.Err() == nil {
			a.log.Warn("a file system that drives use can't be mounted again", "volume", ref.String(), "error", err)
		}
	}
}

func (a *Agent) activateAgain(ref volume.Ref) error {
	ctx, cancel := context.WithTimeout(a.ctx, activateLimit)
	defer cancel()
	unlock, err := a.volumes.lock(ctx, ref)
	if err != nil {
		return err
	}
	defer unlock()
	v, err := a.volumes.storage.Volume(ref)
	if err != nil || len(a.users()[ref]) == 0 { // nobody any more
		return err
	}
	_, err = a.activate(ctx, v)
	return err
}

// watchVolumes tells of volumes that are found to be damaged while they are read.
func (a *Agent) watchVolumes() {
	err := a.volumes.storage.Watch(a.ctx, func(ref volume.Ref, detail string) {
		e := Event{Type: EventVolumeCorrupt, Detail: fmt.Sprintf("volume %s is damaged: %s", ref, detail)}
		users := a.users()[ref]
		if len(users) == 0 {
			a.publish(e)
		}
		for _, u := range users { // each hears of it by its own name
			e.VM, e.Drive = u.VM, u.Drive
			a.publish(e)
		}
	})
	if err != nil && a.ctx.Err() == nil {
		a.log.Warn("damage of verity volumes can't be watched for: guests see it as read errors all the same", "error", err)
	}
}

// releasing says what the drive still has to release, and why it can't yet.
func (d *drive) releasing(rec Record) []string {
	var words []string
	for _, q := range rec.Releasing {
		why := "to be released"
		if w := d.vm.a.volumes.why(q.Volume); w != nil {
			why = w.Why
		}
		words = append(words, why)
	}
	return append(words, whyLeft(d.vm.leftover(d.name))...)
}
