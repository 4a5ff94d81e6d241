package blockdev_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/blockdev"
	"github.com/trayd/trayd/internal/qemutest"
	"github.com/trayd/trayd/qmp"
)

// TestVersions holds docs/qemu-versions.md to what the QEMU under test does: each row's cell
// for its version, and what is done about it, whichever version that is. A QEMU that the
// table has no column for has the second part of each test.
func TestVersions(t *testing.T) {
	measures := map[string]func(*testing.T) string{
		"force":      forceOfChange,
		"paused":     takenBackWhilePaused,
		"disconnect": unusedAtDisconnect,
		"device":     deviceWithoutID,
		"duplicate":  wordsOfDuplicate,
		"missing":    wordsOfMissing,
		"absent":     wordsOfAbsent,
		"again":      wordsOfSecondTakingBack,
		"picture":    formatsOfPictures,
		"change":     eventsOfChange,
		"reset":      eventsOfReset,
	}
	said, known := documented(t, qemutest.Version(t, qemutest.Binary()))
	for name, measure := range measures {
		t.Run(name, func(t *testing.T) {
			require.Contains(t, said, name, "it has no row")
			is := measure(t)
			t.Log(is)
			if known {
				require.Equal(t, said[name], is, "docs/qemu-versions.md says something else")
			}
		})
	}
	require.Len(t, said, len(measures), "a row whose test is no more")
}

// documented are the cells of docs/qemu-versions.md for a version, by the name of the test
// that the row names last. known is false when the table has no column for it.
func documented(t *testing.T, version string) (cells map[string]string, known bool) {
	t.Helper()
	text, err := os.ReadFile("../docs/qemu-versions.md")
	require.NoError(t, err)
	cells = make(map[string]string)
	column := 0
	for line := range strings.Lines(string(text)) {
		row := strings.Split(strings.TrimSpace(line), "|")
		if len(row) < 4 {
			continue
		}
		for i := range row {
			row[i] = strings.TrimSpace(row[i])
			if column == 0 && row[i] != "" && strings.HasPrefix(version, row[i]+".") {
				column, known = i, true
			}
		}
		if _, name, ok := strings.Cut(row[len(row)-2], "TestVersions/"); ok {
			cells[strings.Trim(name, "`")] = strings.Trim(row[column], "`")
		}
	}
	require.NotEmpty(t, cells)
	return cells, known
}

// machineWith is a machine with a drive that has an id, and its monitor.
func machineWith(t *testing.T, args ...string) (*qemutest.VM, *qmp.Conn, string) {
	dir := t.TempDir()
	vm := qemutest.Start(t, dir, "vm", append(qemutest.SATA.With(""), args...)...)
	return vm, vm.Dial(t), dir
}

// refusal is what QEMU refuses a command with.
func refusal(t *testing.T, err error) *qmp.Error {
	t.Helper()
	var refused *qmp.Error
	require.True(t, errors.As(err, &refused), "%v", err)
	return refused
}

func yes(is bool) string {
	if is {
		return "yes"
	}
	return "no"
}

// forceOfChange: of a command that it knows QEMU looks for the drive; of one that it
// doesn't, at no drive. The probe says which before anything is tried.
func forceOfChange(t *testing.T) string {
	_, conn, _ := machineWith(t)
	args := map[string]any{"id": "nope", "filename": "nope", "force": true}
	err := refusal(t, conn.Execute(t.Context(), "blockdev-change-medium", args, nil))
	takes := err.Class == qmp.ClassDeviceNotFound
	f, probeErr := blockdev.Probe(t.Context(), conn)
	require.NoError(t, probeErr)
	require.Equal(t, takes, f.ChangeMediumForce, "what QEMU answers, and what was found out")
	return yes(takes)
}

// lent lends a file, and returns what ends that.
func lent(t *testing.T, conn *qmp.Conn, dir string) blockdev.Disc {
	t.Helper()
	f, err := os.Open(qemutest.Disc(t, dir, "LENT"))
	require.NoError(t, err)
	defer f.Close()
	disc, err := blockdev.Lend(t.Context(), conn, f, own+"lent")
	require.NoError(t, err)
	return disc
}

func loans(t *testing.T, conn *qmp.Conn) int {
	t.Helper()
	all, err := blockdev.Lent(t.Context(), conn, own)
	require.NoError(t, err)
	return len(all)
}

func keeps(n int) string {
	if n > 0 {
		return "kept"
	}
	return "gone"
}

// takenBackWhilePaused: it is gone at the latest when it has been taken back once more while
// the machine runs.
func takenBackWhilePaused(t *testing.T) string {
	_, conn, dir := machineWith(t, qemutest.Idle(t, t.TempDir())...)
	disc := lent(t, conn, dir)
	require.Equal(t, 1, loans(t, conn))
	require.NoError(t, blockdev.TakeBack(t.Context(), conn, disc.FDSet))
	is := keeps(loans(t, conn))
	qemutest.Run(t, conn)
	_ = blockdev.TakeBack(t.Context(), conn, disc.FDSet) // an error where it is gone
	require.Zero(t, loans(t, conn))
	return is
}

// unusedAtDisconnect: whoever comes back finds it by its tag, and can take it back.
func unusedAtDisconnect(t *testing.T) string {
	vm, conn, dir := machineWith(t, qemutest.Idle(t, t.TempDir())...)
	qemutest.Run(t, conn)
	disc := lent(t, conn, dir)
	require.NoError(t, conn.Close())
	again := vm.Dial(t)
	is := keeps(loans(t, again))
	_ = blockdev.TakeBack(t.Context(), again, disc.FDSet)
	require.Zero(t, loans(t, again))
	require.Empty(t, vm.OpenFiles(t, dir+"/LENT"))
	return is
}

// deviceWithoutID: such a drive is found by any of its names, and by its path only as long
// as QEMU says that path.
func deviceWithoutID(t *testing.T) string {
	dir := t.TempDir()
	vm := qemutest.Start(t, dir, "vm", qemutest.Legacy.With(qemutest.Disc(t, dir, "IN"))...)
	conn := vm.Dial(t)
	states, err := blockdev.ObserveAll(t.Context(), conn)
	require.NoError(t, err)
	for _, s := range states {
		d, ok, err := blockdev.Identify(t.Context(), conn, s)
		require.NoError(t, err)
		if !ok {
			continue
		}
		require.Equal(t, qemutest.Legacy.ID, d.Name, "people's name for it has no number of QEMU's")
		found, err := blockdev.Observe(t.Context(), conn, d.ID)
		require.NoError(t, err)
		require.Equal(t, s, found)
		_, path, ok := strings.Cut(s.ID, "/machine/unattached/")
		require.True(t, ok, s.ID)
		return path
	}
	require.Fail(t, "no drive")
	return ""
}

// wordsOfDuplicate: the same operation once more is known by the node, not by these.
func wordsOfDuplicate(t *testing.T) string {
	_, conn, dir := machineWith(t)
	disc := lent(t, conn, dir)
	node := map[string]any{"driver": "file", "node-name": own + "lent", "read-only": true, "filename": fmt.Sprintf("/dev/fdset/%d", disc.FDSet)}
	require.NoError(t, conn.Execute(t.Context(), "blockdev-add", node, nil))
	err := refusal(t, conn.Execute(t.Context(), "blockdev-add", node, nil))
	require.Equal(t, qmp.ClassGeneric, err.Class)
	require.NoError(t, blockdev.DeleteNode(t.Context(), conn, own+"lent"))
	require.NoError(t, blockdev.DeleteNode(t.Context(), conn, own+"lent"), "what isn't there is deleted")
	return strings.ReplaceAll(err.Desc, own+"lent", "X")
}

// wordsOfMissing: a disc that QEMU can't open is told from a locked door by trying, not by these.
func wordsOfMissing(t *testing.T) string {
	_, conn, _ := machineWith(t)
	node := map[string]any{"driver": "file", "node-name": own + "none", "read-only": true, "filename": "/dev/fdset/99"}
	err := refusal(t, conn.Execute(t.Context(), "blockdev-add", node, nil))
	require.Equal(t, qmp.ClassGeneric, err.Class)
	f, probeErr := blockdev.Probe(t.Context(), conn)
	require.NoError(t, probeErr)
	changer := blockdev.Choose(conn, blockdev.Options{Features: f, Own: own})
	swap := changer.Swap(t.Context(), "cd0", blockdev.Disc{Node: own + "none", FDSet: 99}, true)
	require.NotErrorIs(t, swap, blockdev.ErrLocked)
	refusal(t, swap)
	return err.Desc
}

// wordsOfAbsent: whether a node is there is looked up after a refusal.
func wordsOfAbsent(t *testing.T) string {
	_, conn, _ := machineWith(t)
	err := refusal(t, conn.Execute(t.Context(), "blockdev-del", map[string]string{"node-name": own + "none"}, nil))
	require.Equal(t, qmp.ClassGeneric, err.Class)
	return strings.ReplaceAll(err.Desc, own+"none", "X")
}

// wordsOfSecondTakingBack: what has been taken back is gone, whatever a second try is told.
func wordsOfSecondTakingBack(t *testing.T) string {
	_, conn, dir := machineWith(t)
	disc := lent(t, conn, dir)
	require.NoError(t, blockdev.TakeBack(t.Context(), conn, disc.FDSet))
	err := blockdev.TakeBack(t.Context(), conn, disc.FDSet)
	if err == nil {
		return "none"
	}
	return strings.ReplaceAll(refusal(t, err).Desc, fmt.Sprint(disc.FDSet), "N")
}

// formatsOfPictures: every QEMU writes PPM, which is what is asked for.
func formatsOfPictures(t *testing.T) string {
	_, conn, dir := machineWith(t, "-device", "VGA")
	schema, err := conn.QuerySchema(t.Context())
	require.NoError(t, err)
	path := filepath.Join(dir, "screen")
	require.NoError(t, conn.Execute(t.Context(), "screendump", map[string]any{"filename": path}, nil))
	picture, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "P6", string(picture[:2]))
	if schema.HasArg("screendump", "format") {
		return "PPM, PNG"
	}
	return "PPM"
}

// eventsOfChange: a change is confirmed by what is in the drive then.
func eventsOfChange(t *testing.T) string {
	_, conn, dir := machineWith(t)
	events := conn.Subscribe(16)
	defer events.Close()
	f, err := blockdev.Probe(t.Context(), conn)
	require.NoError(t, err)
	changer := blockdev.Choose(conn, blockdev.Options{Features: f, Own: own})
	require.NoError(t, changer.Swap(t.Context(), "cd0", lent(t, conn, dir), false))
	s, err := blockdev.Observe(t.Context(), conn, "cd0")
	require.NoError(t, err)
	require.Equal(t, own+"lent", s.Node())
	return fmt.Sprint(len(trayEvents(events)))
}

// eventsOfReset: the tray is closed, whatever was said about it.
func eventsOfReset(t *testing.T) string {
	_, conn, _ := machineWith(t)
	ctx := t.Context()
	events := conn.Subscribe(16)
	defer events.Close()
	require.NoError(t, blockdev.OpenTray(ctx, conn, "cd0"))
	trayEvents(events)
	require.NoError(t, conn.Execute(ctx, "system_reset", nil, nil))
	var s blockdev.State
	for range 200 { // QEMU resets in its main loop, after its answer
		var err error
		s, err = blockdev.Observe(ctx, conn, "cd0")
		require.NoError(t, err)
		if !s.TrayOpen {
			break
		}
	}
	require.False(t, s.TrayOpen, "a reset closes it")
	return fmt.Sprint(len(trayEvents(events)))
}
