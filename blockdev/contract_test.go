package blockdev_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/blockdev"
	"github.com/trayd/trayd/internal/qemutest"
	"github.com/trayd/trayd/qmp"
)

// own is the prefix of this test's nodes.
const own = "trayd-test-"

// changers are the implementations that the contract is run over. The second Atomic
// is what a QEMU before 7.1 gets, whose change-medium takes no "force".
var changers = map[string]func(blockdev.Monitor, func(blockdev.Step)) blockdev.Changer{
	"atomic": func(m blockdev.Monitor, report func(blockdev.Step)) blockdev.Changer {
		return blockdev.NewAtomic(m, blockdev.Options{Features: blockdev.Features{ChangeMedium: true, ChangeMediumForce: true}, Own: own, Report: report})
	},
	"atomic-without-force": func(m blockdev.Monitor, report func(blockdev.Step)) blockdev.Changer {
		return blockdev.NewAtomic(m, blockdev.Options{Features: blockdev.Features{ChangeMedium: true}, Own: own, Report: report})
	},
	"stepwise": func(m blockdev.Monitor, report func(blockdev.Step)) blockdev.Changer {
		return blockdev.NewStepwise(m, blockdev.Options{Own: own, Report: report})
	},
}

// bench is one machine with one drive, and what a test does to it.
type bench struct {
	t     testing.TB
	vm    *qemutest.VM
	conn  *qmp.Conn
	drive blockdev.Drive
	dir   string
	steps []blockdev.Step
	blockdev.Changer
}

func newBench(t *testing.T, kind qemutest.Drive, changer string) *bench {
	dir := t.TempDir()
	b := &bench{t: t, dir: dir}
	disc := qemutest.Disc(t, dir, "FIRST")
	b.vm = qemutest.Start(t, dir, "vm", kind.With(disc)...)
	b.conn = b.vm.Dial(t)
	if changer == "atomic" && !b.features().ChangeMediumForce {
		changer = "atomic-without-force"
	}
	b.Changer = changers[changer](b.conn, func(s blockdev.Step) { b.steps = append(b.steps, s) })
	drives := b.drives()
	require.Len(t, drives, 1)
	b.drive = drives[0]
	if kind.HasDisc { // begin with an empty, closed drive, like the others
		require.NoError(t, b.Eject(b.ctx(), b.drive.ID, false))
	}
	b.steps = nil
	t.Cleanup(b.noLeaks)
	return b
}

func (b *bench) features() blockdev.Features {
	f, err := blockdev.Probe(b.ctx(), b.conn)
	require.NoError(b.t, err)
	return f
}

func (b *bench) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	b.t.Cleanup(cancel)
	return ctx
}

func (b *bench) drives() []blockdev.Drive {
	states, err := blockdev.ObserveAll(b.ctx(), b.conn)
	require.NoError(b.t, err)
	var drives []blockdev.Drive
	for _, s := range states {
		d, ok, err := blockdev.Identify(b.ctx(), b.conn, s)
		require.NoError(b.t, err)
		if ok {
			drives = append(drives, d)
		}
	}
	return drives
}

// lend lends a file under a node's name.
func (b *bench) lend(path, node string) blockdev.Disc {
	f, err := os.Open(path)
	require.NoError(b.t, err)
	defer f.Close()
	disc, err := blockdev.Lend(b.ctx(), b.conn, f, own+node)
	require.NoError(b.t, err)
	return disc
}

// swap lends, swaps and takes back, as the agent does.
func (b *bench) swap(path, node string, force bool) error {
	disc := b.lend(path, node)
	err := b.Swap(b.ctx(), b.drive.ID, disc, force)
	require.NoError(b.t, blockdev.TakeBack(b.ctx(), b.conn, disc.FDSet))
	if err != nil {
		b.giveUp(disc)
	}
	return err
}

// giveUp deletes what a failed swap may leave.
func (b *bench) giveUp(disc blockdev.Disc) {
	for _, node := range []string{disc.Node, disc.Node + blockdev.TrySuffix} {
		require.NoError(b.t, blockdev.DeleteNode(b.ctx(), b.conn, node))
	}
}

func (b *bench) state() blockdev.State {
	s, err := blockdev.Observe(b.ctx(), b.conn, b.drive.ID)
	require.NoError(b.t, err)
	return s
}

// has requires a node in the closed drive; "" for an empty one.
func (b *bench) has(node string) {
	b.t.Helper()
	if node != "" {
		node = own + node
	}
	s := b.state()
	require.Equal(b.t, node, s.Node())
	require.False(b.t, s.TrayOpen, "the tray is closed")
	if s.Medium != nil {
		require.True(b.t, s.Medium.ReadOnly, "discs are read-only")
	}
}

// noLeaks ends every test: no node outside a drive, no descriptor, no open file.
func (b *bench) noLeaks() {
	s := b.state()
	nodes, err := blockdev.Nodes(b.ctx(), b.conn, own)
	require.NoError(b.t, err)
	for _, n := range nodes {
		require.Equal(b.t, s.Node(), n, "a node outside the drive")
	}
	require.NoError(b.t, b.Eject(b.ctx(), b.drive.ID, true))
	// Up to 8.2 a paused QEMU keeps what was taken back (FACTS 2): let it run a
	// moment and take it back again.
	require.NoError(b.t, b.conn.Execute(b.ctx(), "cont", nil, nil))
	loans, err := blockdev.Lent(b.ctx(), b.conn, own)
	require.NoError(b.t, err)
	for _, l := range loans {
		_ = blockdev.TakeBack(b.ctx(), b.conn, l.FDSet) // gone by itself from 10.0 on
	}
	loans, err = blockdev.Lent(b.ctx(), b.conn, own)
	require.NoError(b.t, err)
	require.Empty(b.t, loans, "descriptors lent to nobody")
	require.Empty(b.t, b.vm.OpenFiles(b.t, b.dir+"/"), "files that QEMU still holds open")
}

// TestContract is what every Changer promises, on every kind of drive.
func TestContract(t *testing.T) {
	for changer := range changers {
		for _, kind := range qemutest.Drives {
			t.Run(changer+"/"+kind.Name, func(t *testing.T) {
				b := newBench(t, kind, changer)
				require.Equal(t, kind.Bus, string(b.drive.Bus))
				require.Equal(t, kind.ID, b.drive.Name)
				require.Empty(t, b.drive.Fixed)
				contract(t, b)
			})
		}
	}
}

func contract(t *testing.T, b *bench) {
	first, second := filepath.Join(b.dir, "FIRST.iso"), qemutest.Disc(t, b.dir, "SECOND")
	b.has("")

	require.NoError(t, b.swap(first, "one", false), "insert into an empty drive")
	b.has("one")
	require.NoError(t, b.swap(second, "two", false), "replace")
	b.has("two")

	t.Log("a disc that QEMU can't open leaves the old one in, and the tray where it is")
	events := b.conn.Subscribe(16)
	defer events.Close()
	trayEvents(events) // the first subscriber gets what came before, too
	gone := b.lend(first, "gone")
	require.NoError(t, blockdev.TakeBack(b.ctx(), b.conn, gone.FDSet))
	gone.FDSet = 99999
	b.steps = nil
	for _, force := range []bool{false, true} {
		err := b.Swap(b.ctx(), b.drive.ID, gone, force)
		var refused *qmp.Error
		require.ErrorAs(t, err, &refused)
		require.NotErrorIs(t, err, blockdev.ErrLocked)
		b.has("two")
	}
	b.giveUp(gone)
	require.Empty(t, trayEvents(events), "the tray has not moved")
	require.NotContains(t, b.steps, blockdev.StepEjectAsked, "nobody holds the door")

	t.Log("the same operation again does nothing")
	disc := b.lend(first, "three")
	require.NoError(t, b.Swap(b.ctx(), b.drive.ID, disc, false))
	trayEvents(events)
	require.NoError(t, b.Swap(b.ctx(), b.drive.ID, disc, false))
	require.NoError(t, blockdev.TakeBack(b.ctx(), b.conn, disc.FDSet))
	require.Empty(t, trayEvents(events), "the tray has not moved")
	b.has("three")

	require.NoError(t, b.swap(second, "four", true), "replace by force")
	b.has("four")
	require.NoError(t, b.Eject(b.ctx(), b.drive.ID, false))
	b.has("")
	require.NoError(t, b.Eject(b.ctx(), b.drive.ID, false), "an empty drive is a success")
	b.has("")
	require.NoError(t, b.swap(first, "five", true), "insert by force")
	b.has("five")

	_, err := blockdev.Observe(b.ctx(), b.conn, "nope")
	require.ErrorIs(t, err, blockdev.ErrNoDrive)
	require.Error(t, b.Eject(b.ctx(), "nope", false))
}

// trayEvents drains the events so far; QEMU sends them before its answers.
func trayEvents(s *qmp.Subscription) (moved []string) {
	for {
		select {
		case e := <-s.C:
			if e.Name == "DEVICE_TRAY_MOVED" {
				moved = append(moved, string(e.Data))
			}
		case <-time.After(20 * time.Millisecond):
			return moved
		}
	}
}

// TestGuest is the contract towards a guest that holds the door, ejects, or is reset.
func TestGuest(t *testing.T) {
	for changer := range changers {
		for _, kind := range qemutest.Drives {
			t.Run(changer+"/"+kind.Name, func(t *testing.T) {
				b := newBench(t, kind, changer)
				guestContract(t, b, b.vm.Guest(t))
			})
		}
	}
}

func guestContract(t *testing.T, b *bench, guest *qemutest.Guest) {
	first, second := filepath.Join(b.dir, "FIRST.iso"), qemutest.Disc(t, b.dir, "SECOND")
	require.NoError(t, b.swap(first, "one", false))
	require.Equal(t, "FIRST", guest.Volume())

	t.Log("a locked door: the guest is asked, and reads on")
	guest.Lock()
	guest.EjectRequested()
	b.steps = nil
	require.ErrorIs(t, b.swap(second, "two", false), blockdev.ErrLocked)
	require.Contains(t, b.steps, blockdev.StepEjectAsked)
	require.True(t, guest.EjectRequested())
	b.has("one")
	require.Equal(t, "FIRST", guest.Volume())
	require.ErrorIs(t, b.Eject(b.ctx(), b.drive.ID, false), blockdev.ErrLocked)
	b.has("one")

	t.Log("a locked door and a disc that QEMU can't open: the disc is the cause, not the door")
	gone := b.lend(first, "gone")
	require.NoError(t, blockdev.TakeBack(b.ctx(), b.conn, gone.FDSet))
	gone.FDSet = 99999
	for _, force := range []bool{false, true} {
		err := b.Swap(b.ctx(), b.drive.ID, gone, force)
		require.Error(t, err)
		require.NotErrorIs(t, err, blockdev.ErrLocked)
		b.has("one")
	}
	require.True(t, b.state().Locked, "the guest still holds the door")

	t.Log("the guest gives in: it opens the tray, and the next attempt succeeds")
	disc := b.lend(second, "three")
	require.ErrorIs(t, b.Swap(b.ctx(), b.drive.ID, disc, false), blockdev.ErrLocked)
	guest.Unlock()
	require.Empty(t, guest.Eject())
	require.NoError(t, b.Swap(b.ctx(), b.drive.ID, disc, false))
	require.NoError(t, blockdev.TakeBack(b.ctx(), b.conn, disc.FDSet))
	b.has("three")
	require.Equal(t, "SECOND", guest.Volume())

	t.Log("force takes the disc from under a guest that holds the door")
	guest.Lock()
	require.NoError(t, b.swap(first, "four", true))
	b.has("four")
	require.Equal(t, "FIRST", guest.Volume())
	guest.Lock()
	require.NoError(t, b.Eject(b.ctx(), b.drive.ID, true))
	b.has("")
	require.Equal(t, qemutest.NoMedium, guest.Volume())

	t.Log("the guest's own eject leaves the medium in the open tray; a reset closes it without a word")
	guest.Unlock()
	require.NoError(t, b.swap(second, "five", false))
	require.Empty(t, guest.Eject())
	require.True(t, b.state().TrayOpen)
	require.Equal(t, own+"five", b.state().Node())
	events := b.conn.Subscribe(16)
	defer events.Close()
	trayEvents(events) // the first subscriber gets what came before, too
	require.NoError(t, b.conn.Execute(b.ctx(), "system_reset", nil, nil))
	require.Empty(t, trayEvents(events))
	b.has("five")

	t.Log("a medium that the guest ejected is removed from the open tray, and only from there")
	require.Error(t, blockdev.RemoveMedium(b.ctx(), b.conn, b.drive.ID))
	b.has("five")
	guest.Volume() // the reset is a unit attention
	require.Empty(t, guest.Eject())
	require.NoError(t, blockdev.RemoveMedium(b.ctx(), b.conn, b.drive.ID))
	require.NoError(t, blockdev.DeleteNode(b.ctx(), b.conn, own+"five"))
	require.NoError(t, blockdev.CloseTray(b.ctx(), b.conn, b.drive.ID))
	b.has("")
}
