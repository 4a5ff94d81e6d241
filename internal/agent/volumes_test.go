package agent

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/blockdev/volume"
	"github.com/trayd/trayd/internal/library"
	"github.com/trayd/trayd/internal/qemutest"
)

// storage is volumes for what real ones don't do on demand: it counts, and fails when
// it is told to. Each is a file. blockdev/volume tests the real ones, and integration
// the agent on them.
type storage struct {
	library.Storage // not called
	damaged         chan volume.Ref
	dir             string

	mu     sync.Mutex          // guards below
	active map[volume.Ref]bool // those that are; true: activated here, and not by others
	fail   map[string]error    // by "activate vg0/a", "open vg0/a" or "release vg0/a"
	log    []string
	during map[string]func() // what others do meanwhile, by the same names, and "before orphans"
}

func newStorage(dir string) *storage {
	return &storage{dir: dir, damaged: make(chan volume.Ref), active: make(map[volume.Ref]bool), fail: make(map[string]error), during: make(map[string]func())}
}

func (s *storage) Volume(ref volume.Ref) (volume.Volume, error) {
	if strings.HasPrefix(ref.Name, "-") {
		return nil, &volume.Error{Ref: ref, Reason: volume.BadName, Detail: "no volume can be called so", Next: "use VG/LV"}
	}
	return &fakeVolume{s, ref}, nil
}

func (s *storage) Orphans(context.Context) ([]volume.Ref, error) {
	s.meanwhile("before orphans")
	defer s.meanwhile("after orphans")
	s.mu.Lock()
	defer s.mu.Unlock()
	orphans := maps.Clone(s.active)
	maps.DeleteFunc(orphans, func(_ volume.Ref, ours bool) bool { return !ours })
	return slices.Collect(maps.Keys(orphans)), nil
}

func (s *storage) Configure(volume.Options) {}

func (s *storage) Under(volume.Ref) *volume.Ref { return nil }

func (s *storage) DeviceUUID(ref volume.Ref) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.active[ref] {
		return "uuid of " + ref.Name
	}
	return ""
}

func (s *storage) Adopt(ref volume.Ref, uuid string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if uuid != "" {
		s.log = append(s.log, "adopt "+ref.Name+" as "+uuid)
	}
}

func (s *storage) Watch(ctx context.Context, f func(volume.Ref, string)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case ref := <-s.damaged:
			f(ref, "block 7 is not what its hash says")
		}
	}
}

// act notes what is done, and fails if it is to.
func (s *storage) act(what string, ref volume.Ref, then func()) error {
	s.meanwhile(what + " " + ref.Name)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = append(s.log, what+" "+ref.Name)
	if err := s.fail[what+" "+ref.Name]; err != nil {
		return err
	}
	then()
	return nil
}

// meanwhile does once what others do in the middle.
func (s *storage) meanwhile(what string) {
	s.mu.Lock()
	f := s.during[what]
	delete(s.during, what)
	s.mu.Unlock()
	if f != nil {
		f()
	}
}

// fails has the next attempts fail, until err is nil.
func (s *storage) fails(what string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail[what] = err
}

// on lists the active volumes, for comparison.
func (s *storage) on() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := []string{}
	for ref := range s.active {
		names = append(names, ref.Name)
	}
	slices.Sort(names)
	return names
}

func (s *storage) happened() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	log := s.log
	s.log = nil
	return log
}

type fakeVolume struct {
	s   *storage
	ref volume.Ref
}

func (v *fakeVolume) Ref() volume.Ref { return v.ref }
func (v *fakeVolume) path() string {
	return filepath.Join(v.s.dir, strings.ReplaceAll(v.ref.Name, "/", "_")+".iso")
}

func (v *fakeVolume) Activate(context.Context) (made bool, err error) {
	err = v.s.act("activate", v.ref, func() {
		if _, on := v.s.active[v.ref]; !on {
			v.s.active[v.ref], made = true, true
		}
	})
	return made, err
}

func (v *fakeVolume) Open(context.Context, string) (*os.File, error) {
	if err := v.s.act("open", v.ref, func() {}); err != nil {
		return nil, err
	}
	return os.Open(v.path())
}

func (v *fakeVolume) Release(context.Context) error {
	if open, _ := filepath.Glob("/proc/self/fd/*"); slices.ContainsFunc(open, func(fd string) bool {
		to, _ := os.Readlink(fd)
		return to == v.path()
	}) {
		return &volume.BusyError{Ref: v.ref, Holders: []volume.Holder{{PID: os.Getpid(), Name: "trayd itself"}}}
	}
	return v.s.act("release", v.ref, func() { delete(v.s.active, v.ref) })
}

func (v *fakeVolume) State(context.Context) (volume.State, error) {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	var busy *volume.BusyError
	_, on := v.s.active[v.ref]
	return volume.State{Active: on, Held: errors.As(v.s.fail["release "+v.ref.Name], &busy)}, nil
}

func (v *fakeVolume) Holders(context.Context) ([]volume.Holder, error) { return nil, nil }

// volumeRig is a rig whose discs are on volumes: lvm:vg0/a to lvm:vg0/c.
func volumeRig(t *testing.T, edit ...func(*Options)) (*rig, *storage) {
	t.Helper()
	r := newRig(t, edit...)
	s := newStorage(r.dir + "/media")
	for _, name := range []string{"A", "B", "C"} {
		require.NoError(t, os.Rename(r.disc("DISC_"+name), r.dir+"/media/vg0_"+strings.ToLower(name)+".iso"))
	}
	r.opts.Storage = s
	return r, s
}

var heldOpen = &volume.BusyError{Ref: volume.Ref{Kind: volume.LVM, Name: "vg0/a"}, Holders: []volume.Holder{{PID: 77, Name: "dd"}}}

// TestVolumes: a volume is active exactly as long as a drive uses it.
func TestVolumes(t *testing.T) {
	strategies(t, func(t *testing.T, strategy func(*Options)) {
		r, s := volumeRig(t, strategy)
		r.machine("vm", qemutest.IDE)
		r.start()
		r.done(Insert, "vm", "lvm:vg0/a")
		r.holds("vm", "lvm:vg0/a")
		require.Equal(t, "DISC_A", r.drive("vm").Medium.VolumeID)
		require.Equal(t, []string{"activate vg0/a", "open vg0/a"}, s.happened())
		r.done(Replace, "vm", "lvm:vg0/b")
		require.Equal(t, []string{"vg0/b"}, s.on())
		require.Equal(t, []string{"activate vg0/b", "open vg0/b", "release vg0/a"}, s.happened())
		r.done(Replace, "vm", "lvm:vg0/b") // it is in already
		require.Empty(t, s.happened())
		r.restart()
		require.Equal(t, []string{"vg0/b"}, s.on())
		r.holds("vm", "lvm:vg0/b")
		r.done(Eject, "vm", "")
		require.Empty(t, s.on())
		require.Empty(t, r.record().Releasing)
	})
}

// TestVolumeShared: the last of two machines turns a volume off, also where one has it
// twice.
func TestVolumeShared(t *testing.T) {
	r, s := volumeRig(t)
	r.machine("one", qemutest.IDE)
	r.machine("two", qemutest.Drive{Args: []string{"-M", "q35", "-device", "ide-cd,id=cd0,bus=ide.0", "-device", "ide-cd,id=cd1,bus=ide.1"}})
	r.start()
	for _, drive := range []string{"one", "two/cd0", "two/cd1"} {
		r.done(Insert, drive, "lvm:vg0/a")
	}
	r.done(Eject, "two/cd0", "")
	r.done(Replace, "two/cd1", "lvm:vg0/b")
	require.Equal(t, []string{"vg0/a", "vg0/b"}, s.on())
	r.restart()
	require.Equal(t, []string{"vg0/a", "vg0/b"}, s.on())
	r.done(Eject, "one", "")
	require.Equal(t, []string{"vg0/b"}, s.on())
	r.done(Eject, "two/cd1", "")
	require.Empty(t, s.on())
}

// TestVolumeOfSomebodyElse: one that was active before is used and left active.
func TestVolumeOfSomebodyElse(t *testing.T) {
	r, s := volumeRig(t)
	a := volume.Ref{Kind: volume.LVM, Name: "vg0/a"}
	s.active[a] = false
	r.machine("one", qemutest.IDE)
	r.machine("two", qemutest.IDE)
	r.start()
	r.done(Insert, "one", "lvm:vg0/a")
	r.done(Insert, "two", "lvm:vg0/a")
	r.done(Eject, "one", "")
	r.restart()
	r.done(Eject, "two", "")
	require.Equal(t, []string{"vg0/a"}, s.on())
	require.NotContains(t, s.happened(), "release vg0/a")
}

// TestVolumeFails: every failure of the flow gives its own error, and leaves the old
// disc in and nothing of the new one on (O8 to O16).
func TestVolumeFails(t *testing.T) {
	cause := &volume.Error{Ref: volume.Ref{Kind: volume.LVM, Name: "vg0/b"}, Reason: volume.PartialGroup, Detail: "a physical volume is missing", Next: "vgs"}
	for _, row := range []struct {
		name, fails, medium string
		with                error
		code                Code
		says                string
	}{
		{"no name", "", "lvm:-x", nil, BadRequest, "no volume can be called so"},
		{"activation", "activate vg0/b", "lvm:vg0/b", cause, GroupPartial, "a physical volume is missing"},
		{"no such volume", "activate vg0/b", "lvm:vg0/b", &volume.Error{Reason: volume.NoSuchVolume, Detail: "there is none", Next: "lvs"}, NoSuchVolume, "there is none"},
		{"opening", "open vg0/b", "lvm:vg0/b", errors.New("input/output error"), Unreadable, "input/output error"},
		{"what is on it", "", "lvm:vg0/text", nil, NotADisc, "text"},
	} {
		t.Run(row.name, func(t *testing.T) {
			r, s := volumeRig(t)
			require.NoError(t, os.WriteFile(r.dir+"/media/vg0_text.iso", []byte(strings.Repeat("text\n", 20000)), 0o600))
			m := r.machine("vm", qemutest.IDE)
			r.start()
			r.done(Insert, "vm", "lvm:vg0/a")
			node := m.state("cd0").Node()
			s.fails(row.fails, row.with)
			err := r.refused(row.code, Replace, "vm", row.medium)
			require.Contains(t, err.Error(), row.says)
			require.Contains(t, err.Error(), row.medium)
			require.Equal(t, []string{"vg0/a"}, s.on())
			require.Equal(t, node, m.state("cd0").Node())
			r.holds("vm", "lvm:vg0/a")
			if row.name != "no name" {
				require.Equal(t, Failed, r.drive("vm").Last.Result)
			}
		})
	}
}

// TestVolumeRefusedByQEMU: the volume of a disc that QEMU refuses is turned off again.
func TestVolumeRefusedByQEMU(t *testing.T) {
	r, s := volumeRig(t)
	r.machine("vm", qemutest.IDE)
	r.start()
	r.done(Insert, "vm", "lvm:vg0/a")
	r.refused(DriveOccupied, Insert, "vm", "lvm:vg0/b")
	require.NotContains(t, s.happened(), "activate vg0/b", "a request that can't be carried out turns nothing on")
}

// TestVolumeWhileTheGuestHolds: the volume of a disc that never got in is turned off,
// the one of the disc that stays in is not.
func TestVolumeWhileTheGuestHolds(t *testing.T) {
	strategies(t, func(t *testing.T, strategy func(*Options)) {
		r, s := volumeRig(t, strategy)
		g := r.machine("vm", qemutest.IDE).Guest(t)
		r.start()
		r.done(Insert, "vm", "lvm:vg0/a")
		g.Volume()
		g.Lock()
		short := func(q *Request) { wait := 100 * time.Millisecond; q.Wait = &wait }
		r.refused(DriveLocked, Replace, "vm", "lvm:vg0/b", short)
		require.Equal(t, []string{"vg0/a"}, s.on())
		require.Equal(t, "DISC_A", g.Volume())
		o := r.begin(Replace, "vm", "lvm:vg0/b")
		r.waiting(o)
		require.Equal(t, []string{"vg0/a", "vg0/b"}, s.on())
		_, err := r.agent.Cancel("vm", "", "root")
		require.NoError(t, err)
		_, err = r.finish(o)
		r.isError(CancelledCode, err)
		require.Equal(t, []string{"vg0/a"}, s.on())
		r.done(Replace, "vm", "lvm:vg0/b", force)
		require.Equal(t, []string{"vg0/b"}, s.on())
	})
}

// TestReleaseWaits: a volume that can't be released is done in the machine and not
// cleaned up; it is said, shown, and tried again until it can.
func TestReleaseWaits(t *testing.T) {
	for _, row := range []struct {
		name, verb string
		err        error
		restart    bool
		gone       bool
	}{
		{"held open", Eject, heldOpen, false, false},
		{"held open, after a change", Replace, heldOpen, false, false},
		{"another failure", Eject, errors.New("lvchange: cannot get the lock"), false, false},
		{"over a restart", Eject, heldOpen, true, false},
		{"the machine ends meanwhile", Eject, heldOpen, false, true},
		{"both", Eject, heldOpen, true, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			r, s := volumeRig(t)
			m := r.machine("vm", qemutest.IDE)
			r.start()
			r.done(Insert, "vm", "lvm:vg0/a")
			s.fails("release vg0/a", row.err)
			medium := ""
			if row.verb == Replace {
				medium = "lvm:vg0/b"
			}
			err := r.refused(Incomplete, row.verb, "vm", medium)
			require.Contains(t, err.Error(), row.err.Error())
			require.Equal(t, row.err.Error(), r.event(EventReleaseWaits).Detail)
			r.holds("vm", medium)
			require.Equal(t, Done, r.drive("vm").Last.Result)
			require.Equal(t, []string{row.err.Error()}, r.drive("vm").Releasing)
			require.Len(t, r.agent.Check(t.Context()), 1)
			r.done(Replace, "vm", "lvm:vg0/c") // the drive is free, and this leaves nothing
			if row.gone {
				m.Kill()
				r.within("the machine to be gone", func() bool { return len(r.agent.list()) == 0 })
			}
			if row.restart {
				r.restart()
			}
			s.fails("release vg0/a", nil)
			r.within("the release", func() bool { return !slices.Contains(s.on(), "vg0/a") })
			r.within("the record to say so", func() bool { return len(r.agent.users()[volume.Ref{Kind: volume.LVM, Name: "vg0/a"}]) == 0 })
			if row.gone {
				r.within("nothing to be left", func() bool { return len(s.on()) == 0 && len(r.agent.Records()) == 0 })
			}
		})
	}
}

// TestReleaseIsCheapWhileHeld: as long as somebody holds a volume open, the kernel is
// asked whether they still do, and nothing else is tried.
func TestReleaseIsCheapWhileHeld(t *testing.T) {
	r, s := volumeRig(t)
	r.machine("vm", qemutest.IDE)
	r.start()
	r.done(Insert, "vm", "lvm:vg0/a")
	s.fails("release vg0/a", heldOpen)
	r.refused(Incomplete, Eject, "vm", "")
	s.happened()
	time.Sleep(4 * minRelease)
	require.Empty(t, s.happened())
	s.fails("release vg0/a", nil)
	began := time.Now()
	r.within("the release", func() bool { return len(s.on()) == 0 })
	require.Less(t, time.Since(began), 2*maxRelease)
}

// TestVolumeOfAnEndedMachine: a machine's end releases what it had, also when trayd
// wasn't there to see it.
func TestVolumeOfAnEndedMachine(t *testing.T) {
	for _, there := range []bool{true, false} {
		r, s := volumeRig(t)
		m := r.machine("vm", qemutest.IDE)
		r.start()
		r.done(Insert, "vm", "lvm:vg0/a")
		if !there {
			r.stop()
		}
		m.Kill()
		if !there {
			r.start()
		}
		r.within("the release", func() bool { return len(s.on()) == 0 })
		r.within("the record to go", func() bool { return len(r.agent.Records()) == 0 })
	}
}

// TestVolumeTurnedOnAgain: a volume that went off beneath a disc, as a mount does with
// its namespace, is on again after a restart, and off after the eject.
func TestVolumeTurnedOnAgain(t *testing.T) {
	r, s := volumeRig(t)
	r.machine("vm", qemutest.IDE)
	r.start()
	r.done(Insert, "vm", "lvm:vg0/a")
	r.stop()
	clear(s.active)
	r.start()
	r.within("the volume to be on", func() bool { return len(s.on()) == 1 })
	r.settled()
	r.done(Eject, "vm", "")
	require.Empty(t, s.on())
}

// TestVolumeKnownAgain: a trayd after this one is told which volume it was that had the name,
// of one that is in and of one that is to be released; not if the host was booted since.
func TestVolumeKnownAgain(t *testing.T) {
	r, s := volumeRig(t)
	r.machine("vm", qemutest.IDE)
	r.start()
	r.done(Insert, "vm", "lvm:vg0/a")
	s.fails("release vg0/a", heldOpen)
	r.refused(Incomplete, Replace, "vm", "lvm:vg0/b")
	s.happened()
	r.restart()
	log := s.happened()
	require.Contains(t, log, "adopt vg0/a as uuid of vg0/a")
	require.Contains(t, log, "adopt vg0/b as uuid of vg0/b")

	rec := r.agent.Records()[0]
	rec.Process.Start = "another0" + strings.TrimPrefix(rec.Process.Start, r.agent.boot)
	r.agent.adoptVolumes(rec)
	require.NotContains(t, strings.Join(s.happened(), " "), "adopt")
	require.NoError(t, r.agent.volumes.release(t.Context(), volume.Ref{Kind: volume.LVM, Name: "vg0/b"}, "uuid of another"), "it is off already")
	require.Contains(t, s.on(), "vg0/b")
	s.fails("release vg0/a", nil)
	r.within("the release", func() bool { return len(s.on()) == 1 })
}

// TestVolumeOfAnother: a volume that was turned on by the name that another had, which
// somebody else had turned on for a drive and renamed since, is turned off again.
func TestVolumeOfAnother(t *testing.T) {
	r, s := volumeRig(t)
	r.machine("one", qemutest.IDE)
	r.machine("two", qemutest.IDE)
	r.start()
	a := volume.Ref{Kind: volume.LVM, Name: "vg0/a"}
	s.active[a] = false
	r.done(Insert, "one", "lvm:vg0/a")
	s.mu.Lock()
	delete(s.active, a)
	s.mu.Unlock()
	err := r.refused(NoSuchVolume, Insert, "two", "lvm:vg0/a")
	require.ErrorContains(t, err, "is another now than the one that a drive has by this name")
	require.Empty(t, s.on())
	r.holds("one", "lvm:vg0/a")
	r.holds("two", "")
	r.done(Eject, "one", "")
}

// TestVolumeCorrupt: damage is told by the volume's name and for each drive that has it.
func TestVolumeCorrupt(t *testing.T) {
	r, s := volumeRig(t)
	r.machine("one", qemutest.IDE)
	r.machine("two", qemutest.IDE)
	r.start()
	r.done(Insert, "one", "lvm:vg0/a")
	r.done(Insert, "two", "lvm:vg0/a")
	s.damaged <- volume.Ref{Kind: volume.LVM, Name: "vg0/a"}
	var vms []string
	for range 2 {
		e := r.event(EventVolumeCorrupt)
		require.Contains(t, e.Detail, "lvm:vg0/a")
		vms = append(vms, e.VM)
	}
	require.ElementsMatch(t, []string{"one", "two"}, vms)
}

// TestVolumeOfTheGuestsEject: the guest's own eject ends with the volume off.
func TestVolumeOfTheGuestsEject(t *testing.T) {
	r, s := volumeRig(t)
	m := r.machine("vm", qemutest.IDE)
	g := m.Guest(t)
	r.start()
	r.done(Insert, "vm", "lvm:vg0/a")
	require.Equal(t, "DISC_A", g.Volume())
	require.Empty(t, g.Eject())
	r.within("the release", func() bool { return len(s.on()) == 0 })
	r.holds("vm", "")
}

// TestVolumeOvertaken: a disc that somebody else puts in while a volume is being
// activated, which may take seconds, is left alone.
func TestVolumeOvertaken(t *testing.T) {
	for _, verb := range []string{Insert, Replace} {
		strategies(t, func(t *testing.T, strategy func(*Options)) {
			r, s := volumeRig(t, strategy)
			m := r.machine("vm", qemutest.IDE)
			r.start()
			if verb == Replace {
				r.done(Insert, "vm", "lvm:vg0/b")
			}
			theirs := r.disc("THEIRS")
			s.during["activate vg0/a"] = func() { m.puts("cd0", theirs) }
			r.refused(OvertakenCode, verb, "vm", "lvm:vg0/a")
			require.Equal(t, theirs, m.state("cd0").Medium.File)
			require.Empty(t, s.on())
		})
	}
}

// TestVolumeOfNobody: a volume that carries our mark and that no record speaks of, after
// the state file was repaired perhaps, is ours again for who uses it, and off after them.
func TestVolumeOfNobody(t *testing.T) {
	r, s := volumeRig(t)
	s.active[volume.Ref{Kind: volume.DM, Name: "vg0_a"}] = true
	r.machine("vm", qemutest.IDE)
	r.start()
	require.Equal(t, "volume dm:vg0_a is active and belongs to nobody", r.agent.Check(t.Context())[0].Problem)
	r.done(Insert, "vm", "dm:vg0_a")
	require.Empty(t, r.agent.Check(t.Context()))
	r.done(Eject, "vm", "")
	require.Empty(t, s.on())
}

// TestVolumesMeanwhile: a volume that is activated or released while they are listed is
// not taken for one of nobody's.
func TestVolumesMeanwhile(t *testing.T) {
	for _, at := range []string{"before orphans", "after orphans"} {
		r, s := volumeRig(t)
		r.machine("vm", qemutest.IDE)
		r.start()
		s.during[at] = func() { r.done(Insert, "vm", "lvm:vg0/a") }
		require.Empty(t, r.agent.checkVolumes(t.Context()))
		s.during[at] = func() { r.done(Eject, "vm", "") }
		require.Empty(t, r.agent.checkVolumes(t.Context()))
	}
}

// TestVolumeRestored: an old disc that has to be opened again is its volume's, whatever
// its device's name leads to by now.
func TestVolumeRestored(t *testing.T) {
	r, s := volumeRig(t)
	m := r.machine("vm", qemutest.IDE)
	r.start()
	r.done(Insert, "vm", "lvm:vg0/a")
	r.done(Eject, "vm", "")
	v := r.agent.vm("vm")
	d, err := v.findDrive(t.Context(), "")
	require.NoError(t, err)
	session, release := v.current()
	defer release()
	ref, device := volume.Ref{Kind: volume.LVM, Name: "vg0/a"}, r.disc("ANOTHER")
	d.setRecord(Record{VM: "vm", Drive: d.name, Process: session.process, Loaded: &Loaded{Medium: Medium{Path: device, Volume: &ref}}})
	require.NoError(t, d.restore(t.Context(), session, Restore{Path: device, Node: r.agent.mark + "old"}))
	require.Equal(t, []string{"vg0/a"}, s.on())
	require.Equal(t, "DISC_A", m.Guest(t).Volume())
	d.setRecord(Record{VM: "vm", Drive: d.name, Process: session.process, Loaded: &Loaded{Medium: Medium{Volume: &ref}, Node: r.agent.mark + "old"}})
	r.done(Eject, "vm", "")
	require.Empty(t, s.on())
}

// TestVolumeSharedWithOneAtWork: a drive is done with a volume that another drive is about
// to use at once, however long that takes.
func TestVolumeSharedWithOneAtWork(t *testing.T) {
	r, s := volumeRig(t)
	r.machine("one", qemutest.IDE)
	r.machine("two", qemutest.IDE)
	r.start()
	r.done(Insert, "one", "lvm:vg0/a")
	s.during["activate vg0/a"] = func() { r.done(Eject, "one", "") }
	r.done(Insert, "two", "lvm:vg0/a")
	require.Equal(t, []string{"vg0/a"}, s.on())
	r.done(Eject, "two", "")
	require.Empty(t, s.on())
}

// TestReleaseWhileWaiting: what is queued for release is tried again also while the drive's
// next operation waits for its guest.
func TestReleaseWhileWaiting(t *testing.T) {
	r, s := volumeRig(t)
	g := r.machine("vm", qemutest.IDE).Guest(t)
	r.start()
	r.done(Insert, "vm", "lvm:vg0/a")
	s.fails("release vg0/a", heldOpen)
	r.refused(Incomplete, Replace, "vm", "lvm:vg0/b")
	g.Volume()
	g.Lock()
	o := r.begin(Replace, "vm", "lvm:vg0/c", wait(time.Minute))
	r.waiting(o)
	s.fails("release vg0/a", nil)
	r.within("the release", func() bool { return !slices.Contains(s.on(), "vg0/a") })
	require.Equal(t, Waiting, o.Phase())
	_, err := r.agent.Cancel("vm", "", "root")
	require.NoError(t, err)
	_, err = r.finish(o)
	r.isError(CancelledCode, err)
	require.Equal(t, []string{"vg0/b"}, s.on())
}

// slowActivation begins to activate vg0/c in a drive, and returns how to let it end.
func slowActivation(r *rig, s *storage) (*Operation, func()) {
	begun, end := make(chan struct{}), make(chan struct{})
	s.mu.Lock()
	s.during["activate vg0/c"] = func() { close(begun); <-end }
	s.mu.Unlock()
	o := r.begin(Replace, "vm", "lvm:vg0/c")
	<-begun
	require.Equal(r.t, Activating, o.Phase())
	return o, func() { close(end) }
}

// TestReleaseWhileActivating: a disk that takes its time holds up no release.
func TestReleaseWhileActivating(t *testing.T) {
	r, s := volumeRig(t)
	r.machine("vm", qemutest.IDE)
	r.start()
	r.done(Insert, "vm", "lvm:vg0/a")
	s.fails("release vg0/a", heldOpen)
	r.refused(Incomplete, Replace, "vm", "lvm:vg0/b")
	o, end := slowActivation(r, s)
	s.fails("release vg0/a", nil)
	r.within("the release", func() bool { return !slices.Contains(s.on(), "vg0/a") })
	require.Equal(t, Activating, o.Phase())
	end()
	_, err := r.finish(o)
	require.NoError(t, err)
	r.holds("vm", "lvm:vg0/c")
	require.Equal(t, []string{"vg0/c"}, s.on())
	r.settled()
}

// TestCancelWhileActivating: whoever waits for a disk can stop that, and the agent's own
// end does.
func TestCancelWhileActivating(t *testing.T) {
	r, s := volumeRig(t)
	r.machine("vm", qemutest.IDE)
	r.start()
	r.done(Insert, "vm", "lvm:vg0/a")
	o, end := slowActivation(r, s)
	_, err := r.agent.Cancel("vm", "", "root")
	require.NoError(t, err)
	end()
	_, err = r.finish(o)
	require.ErrorContains(t, r.isError(CancelledCode, err), "the drive is as it was")
	r.holds("vm", "lvm:vg0/a")
	require.Equal(t, []string{"vg0/a"}, s.on())
	r.settled()

	o, end = slowActivation(r, s)
	stopped := make(chan struct{})
	go func() { defer close(stopped); r.stop() }()
	r.within("the operation to be stopped", o.stopped)
	end()
	<-stopped
	_, err = r.finish(o)
	r.isError(CancelledCode, err)
	r.start()
	r.holds("vm", "lvm:vg0/a")
	require.Equal(t, []string{"vg0/a"}, s.on())
}

// TestVolumeTakenMeanwhile: whose a volume is, is decided by who turned it on, also when
// that was somebody else a moment after we looked.
func TestVolumeTakenMeanwhile(t *testing.T) {
	ref := volume.Ref{Kind: volume.LVM, Name: "vg0/a"}
	for _, on := range []bool{true, false} {
		r, s := volumeRig(t)
		r.machine("vm", qemutest.IDE)
		r.start()
		if !on {
			s.active[ref] = false
		}
		s.during["activate vg0/a"] = func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			if on {
				s.active[ref] = false
			} else {
				delete(s.active, ref)
			}
		}
		r.done(Insert, "vm", "lvm:vg0/a")
		r.restart()
		r.done(Eject, "vm", "")
		require.Equal(t, on, len(s.on()) > 0)
		r.stop()
	}
}
