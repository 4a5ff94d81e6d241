package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/qemutest"
)

// strategies runs a test with both of blockdev's changers.
func strategies(t *testing.T, f func(*testing.T, func(*Options))) {
	for _, s := range []string{"atomic", "stepwise"} {
		t.Run(s, func(t *testing.T) { f(t, func(o *Options) { o.Strategy = s }) })
	}
}

// TestChangeToNothing: a change to no disc is an eject (O3).
func TestChangeToNothing(t *testing.T) {
	r := newRig(t)
	r.machine("vm", qemutest.IDE)
	r.start()
	r.refused(BadRequest, Insert, "vm", "")
	r.done(Insert, "vm", r.disc("DISC_A"))
	out := r.done(Replace, "vm", "")
	require.Equal(t, Eject, out.Verb)
	r.holds("vm", "")
}

func TestInsertChangeEject(t *testing.T) {
	strategies(t, func(t *testing.T, strategy func(*Options)) {
		for _, kind := range qemutest.Drives {
			t.Run(kind.Name, func(t *testing.T) {
				r := newRig(t, strategy)
				a, b := r.disc("DISC_A"), r.disc("DISC_B")
				m := r.machine("vm", kind)
				r.start()
				if kind.HasDisc {
					r.done(Eject, "vm", "")
				}
				r.holds("vm", "")

				out := r.done(Insert, "vm", a)
				require.False(t, out.Recovered, "the operation's own word")
				require.Equal(t, "test", out.By)
				r.holds("vm", a)
				require.Equal(t, "DISC_A", r.drive("vm").Medium.VolumeID)
				require.Equal(t, []string{a}, m.OpenFiles(t, filepath.Dir(a)))

				r.done(Replace, "vm", b)
				r.holds("vm", b)
				require.Equal(t, []string{b}, m.OpenFiles(t, filepath.Dir(a)), "the old disc is let go")

				r.done(Eject, "vm", "")
				r.holds("vm", "")
				require.Empty(t, m.OpenFiles(t, filepath.Dir(a)))
			})
		}
	})
}

func TestGuestReadsWhatIsIn(t *testing.T) {
	for _, kind := range qemutest.Drives {
		t.Run(kind.Name, func(t *testing.T) {
			r := newRig(t)
			a, b := r.disc("DISC_A"), r.disc("DISC_B")
			g := r.machine("vm", kind).Guest(t)
			r.start()
			if kind.HasDisc {
				require.Equal(t, "BOOT", g.Volume())
				r.done(Eject, "vm", "")
			}
			r.done(Insert, "vm", a)
			require.Equal(t, "DISC_A", g.Volume())
			r.done(Replace, "vm", b)
			require.Equal(t, "DISC_B", g.Volume())
			r.done(Eject, "vm", "")
			require.Equal(t, qemutest.NoMedium, g.Volume())
		})
	}
}

func TestInsertIntoOccupied(t *testing.T) {
	r := newRig(t)
	a, b := r.disc("DISC_A"), r.disc("DISC_B")
	r.machine("vm", qemutest.IDE)
	r.start()
	r.done(Insert, "vm", a)
	err := r.refused(DriveOccupied, Insert, "vm", b)
	require.ErrorContains(t, err, a)
	require.Contains(t, err.Next, "change")
	r.holds("vm", a)
}

// TestSameDiscMovesNothing: asking for the disc that is in is a success, for one that
// we put in and for one that QEMU was started with.
func TestSameDiscMovesNothing(t *testing.T) {
	r := newRig(t)
	boot := r.disc("BOOT")
	m := r.machine("vm", qemutest.Legacy)
	r.start()
	events := m.side.Subscribe(64)
	defer events.Close()
	still := func(disc string) {
		t.Helper()
		node := m.state("ide1-cd0").Node()
		for _, verb := range []string{Insert, Replace} {
			out := r.done(verb, "vm", disc)
			require.Contains(t, out.Reason, "in already")
		}
		require.Equal(t, node, m.state("ide1-cd0").Node())
		for len(events.C) > 0 {
			require.NotEqual(t, "DEVICE_TRAY_MOVED", (<-events.C).Name)
		}
	}
	still(boot)
	require.Empty(t, r.agent.Records(), "nothing became ours by that")
	a := r.disc("DISC_A")
	r.done(Replace, "vm", a)
	for len(events.C) > 0 {
		<-events.C
	}
	still(a)

	t.Log("another file of the same name is another disc")
	require.NoError(t, os.Remove(a))
	require.Equal(t, a, r.disc("DISC_A"))
	require.NotContains(t, r.done(Replace, "vm", a).Reason, "in already")
	r.holds("vm", a)
}

func TestEjectEmptyIsASuccess(t *testing.T) {
	r := newRig(t)
	r.machine("vm", qemutest.SATA)
	r.start()
	require.Contains(t, r.done(Eject, "vm", "").Reason, "empty")
}

func TestWhichDrive(t *testing.T) {
	r := newRig(t)
	a := r.disc("DISC_A")
	r.machine("one", qemutest.IDE)
	r.machine("two", qemutest.SATA, "-device", "ide-cd,id=cd1,bus=ide.1")
	r.launch("none", "-M", "q35")
	r.start()

	require.Contains(t, r.refused(NoSuchVM, Insert, "three", a).Next, "one")
	require.Contains(t, r.refused(NoSuchDrive, Insert, "one/cd7", a).Next, "one/cd0")
	require.Contains(t, r.refused(AmbiguousDrive, Insert, "two", a).Next, "two/cd0, two/cd1")
	r.refused(NoSuchDrive, Insert, "none", a)

	_, err := r.agent.Drive(context.Background(), "two", "")
	r.isError(AmbiguousDrive, err)
	r.done(Insert, "two/cd1", a)
	st, err := r.agent.Drive(context.Background(), "two", "cd1")
	require.NoError(t, err)
	require.Equal(t, a, st.Medium.Name)
	r.done(Eject, "two/cd1", "")
	require.Len(t, r.agent.VMs(context.Background()), 3)
}

func TestDriveThatCannotBeChanged(t *testing.T) {
	r := newRig(t)
	fixed := qemutest.Disc(t, r.dir, "FIXED")
	r.launch("vm", "-M", "q35", "-drive", "if=none,id=d,media=disk,readonly=on,format=raw,file="+fixed, "-device", "virtio-blk-pci,id=vda,drive=d")
	r.start()
	require.False(t, r.drive("vm").Changeable)
	require.Contains(t, r.refused(DriveFixed, Replace, "vm", r.disc("DISC_B")).Error(), "virtio")
}

func TestBadRequests(t *testing.T) {
	r := newRig(t)
	a := r.disc("DISC_A")
	r.machine("vm", qemutest.IDE)
	r.start()
	r.refused(BadRequest, "open", "vm", a)
	r.refused(BadRequest, Insert, "vm", a, wait(-time.Second))
	r.refused(BadRequest, Insert, "vm", "")
	_, err := r.agent.Cancel("vm", "cd0", "test")
	r.isError(NothingToStop, err)
	_, err = r.agent.Cancel("nope", "cd0", "test")
	r.isError(NoSuchVM, err)
}

func TestOneOperationPerDrive(t *testing.T) {
	r := newRig(t)
	a, b := r.disc("DISC_A"), r.disc("DISC_B")
	g := r.machine("vm", qemutest.IDE).Guest(t)
	r.machine("other", qemutest.IDE)
	r.start()
	r.done(Insert, "vm", a)
	g.Lock()
	first := r.begin(Replace, "vm", b)
	r.waiting(first)
	err := r.refused(DriveBusy, Eject, "vm", "")
	require.Equal(t, first.ID, err.Operation)
	require.Contains(t, err.Next, "cancel vm/cd0")
	r.done(Insert, "other", a)
	g.Unlock()
	require.Empty(t, g.Eject())
	_, e := r.finish(first)
	require.NoError(t, e)
	r.done(Eject, "vm", "")

	known, ok := r.agent.Operation(first.ID)
	require.True(t, ok)
	require.Equal(t, Done, known.Status().Result)
}

// TestManyDrivesAtOnce changes several drives of several machines at the same moment.
func TestManyDrivesAtOnce(t *testing.T) {
	r := newRig(t)
	a, b := r.disc("DISC_A"), r.disc("DISC_B")
	var drives []string
	for i := range 3 {
		name := fmt.Sprint("vm", i)
		r.machine(name, qemutest.SATA, "-device", "ide-cd,id=cd1,bus=ide.1", "-device", "ide-cd,id=cd2,bus=ide.2")
		drives = append(drives, name+"/cd0", name+"/cd1", name+"/cd2")
	}
	r.start()
	for _, step := range []struct{ verb, disc string }{{Insert, a}, {Replace, b}, {Replace, a}, {Eject, ""}, {Insert, b}} {
		var ops []*Operation
		for _, d := range drives {
			ops = append(ops, r.begin(step.verb, d, step.disc))
		}
		for _, o := range ops {
			_, err := r.finish(o)
			require.NoError(t, err)
		}
	}
	for _, vm := range r.agent.VMs(context.Background()) {
		for _, d := range vm.Drives {
			require.Equal(t, b, d.Medium.Name)
		}
	}
}
