package qmp_test

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/qmp"
)

func TestQEMUPeerVersionStatus(t *testing.T) {
	m := startQEMU(t)
	c := dial(t, m.path)
	assert.Equal(t, m.cmd.Process.Pid, c.Peer().PID)
	assert.Equal(t, os.Getuid(), c.Peer().UID)
	assert.GreaterOrEqual(t, c.Version().QEMU.Major, 4)
	status, err := c.QueryStatus(within(t, soon))
	require.NoError(t, err)
	assert.Equal(t, qmp.Status{Running: false, Status: "prelaunch"}, status)

	err = c.Execute(within(t, soon), "no-such-command", nil, nil)
	var refusal *qmp.Error
	require.ErrorAs(t, err, &refusal)
	assert.Equal(t, qmp.ClassCommandNotFound, refusal.Class)
	err = c.Execute(within(t, soon), "eject", map[string]string{"id": "cd0"}, nil)
	require.ErrorAs(t, err, &refusal)
	assert.Equal(t, "eject", refusal.Command)
	assert.Contains(t, []string{qmp.ClassDeviceNotFound, qmp.ClassGeneric}, refusal.Class)
}

// TestQEMUServesOneClient holds a monitor and lets more clients wait than QEMU's queue takes.
func TestQEMUServesOneClient(t *testing.T) {
	m := startQEMU(t)
	holder := dial(t, m.path)
	errs := make(chan error)
	const waiting = 5
	for range waiting {
		go func() {
			c, err := qmp.Dial(context.Background(), m.path, &qmp.Options{Timeout: 200 * time.Millisecond})
			if err == nil {
				c.Close()
			}
			errs <- err
		}()
	}
	for range waiting {
		require.ErrorIs(t, <-errs, qmp.ErrHeld)
	}
	_, err := holder.QueryStatus(within(t, soon))
	require.NoError(t, err)

	// Whoever waits is served when the holder goes.
	for range waiting {
		go func() {
			c, err := qmp.Dial(context.Background(), m.path, &qmp.Options{Timeout: soon})
			if err == nil {
				_, err = c.QueryStatus(context.Background())
				c.Close()
			}
			errs <- err
		}()
	}
	time.Sleep(50 * time.Millisecond)
	holder.Close()
	for range waiting {
		require.NoError(t, <-errs)
	}
}

func TestQEMUEvents(t *testing.T) {
	m := startQEMU(t)
	c := dial(t, m.path)
	s := c.Subscribe(16)
	ctx := within(t, soon)
	begin := time.Now()
	require.NoError(t, c.Execute(ctx, "cont", nil, nil))
	require.NoError(t, c.Execute(ctx, "stop", nil, nil))
	resume, stop := next(t, s), next(t, s)
	assert.Equal(t, "RESUME", resume.Name)
	assert.Equal(t, "STOP", stop.Name)
	assert.WithinDuration(t, begin, stop.Time, soon)

	require.NoError(t, c.Execute(ctx, "quit", nil, nil))
	e := next(t, s)
	assert.Equal(t, "SHUTDOWN", e.Name)
	assert.Contains(t, string(e.Data), "host-qmp-quit")
	require.ErrorIs(t, requireEnded(t, c), io.EOF)
	_, open := <-s.C
	assert.False(t, open)
	require.ErrorIs(t, c.Execute(ctx, "cont", nil, nil), qmp.ErrClosed)
}

func TestQEMUDies(t *testing.T) {
	m := startQEMU(t)
	c := dial(t, m.path)
	require.NoError(t, m.cmd.Process.Signal(syscall.SIGSTOP))
	call, err := c.Send(within(t, soon), "query-block", nil, nil)
	require.NoError(t, err)
	m.kill()
	require.ErrorIs(t, call.Wait(within(t, soon), nil), qmp.ErrUnanswered)
	requireEnded(t, c)
	_, err = qmp.Dial(within(t, soon), m.path, nil)
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
}

// TestFrozenQEMUExecutesLate is why a timeout is not a failure.
func TestFrozenQEMUExecutesLate(t *testing.T) {
	m := startQEMU(t)
	c := dial(t, m.path)
	file := someFile(t, "x")
	require.NoError(t, m.cmd.Process.Signal(syscall.SIGSTOP))
	call, err := c.Send(within(t, soon), "add-fd", map[string]string{"opaque": "late"}, file)
	require.NoError(t, err)
	err = call.Wait(within(t, 50*time.Millisecond), nil)
	require.ErrorIs(t, err, qmp.ErrUnanswered)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	assert.Equal(t, 1, c.Unanswered())

	require.NoError(t, m.cmd.Process.Signal(syscall.SIGCONT))
	sets, err := c.QueryFDSets(within(t, soon))
	require.NoError(t, err)
	require.Len(t, sets, 1, "the answer to a later query tells what became of the command")
	assert.Equal(t, "late", sets[0].FDs[0].Opaque)
	assert.Zero(t, c.Unanswered())
	assert.Equal(t, uint64(1), c.Late())
}

func TestQEMUDescriptors(t *testing.T) {
	m := startQEMU(t)
	c := dial(t, m.path)
	ctx := within(t, soon)
	sets, err := c.QueryFDSets(ctx)
	require.NoError(t, err)
	assert.Empty(t, sets)

	file := someFile(t, "disc")
	one, err := c.AddFD(ctx, file, -1, "op-1")
	require.NoError(t, err)
	two, err := c.AddFD(ctx, file, 7, "")
	require.NoError(t, err)
	assert.Equal(t, 7, two.FDSet)
	target, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(m.cmd.Process.Pid), "fd", strconv.Itoa(one.FD)))
	require.NoError(t, err)
	assert.Equal(t, file.Name(), target)

	sets, err = c.QueryFDSets(ctx)
	require.NoError(t, err)
	assert.ElementsMatch(t, []qmp.FDSet{
		{ID: one.FDSet, FDs: []qmp.FDInfo{{FD: one.FD, Opaque: "op-1"}}},
		{ID: 7, FDs: []qmp.FDInfo{{FD: two.FD}}},
	}, sets)

	// A paused VM keeps them up to 8.2.
	require.NoError(t, c.Execute(ctx, "cont", nil, nil))
	require.NoError(t, c.RemoveFD(ctx, one.FDSet))
	require.NoError(t, c.RemoveFD(ctx, 7))
	sets, err = c.QueryFDSets(ctx)
	require.NoError(t, err)
	assert.Empty(t, sets)
	var refusal *qmp.Error
	require.ErrorAs(t, c.RemoveFD(ctx, 99), &refusal)

	// A command that takes no descriptor leaves nothing behind, and one that lacks it is refused.
	require.ErrorAs(t, c.Execute(ctx, "add-fd", nil, nil), &refusal)
}

func TestQEMUSchema(t *testing.T) {
	m := startQEMU(t)
	c := dial(t, m.path)
	schema, err := c.QuerySchema(within(t, soon))
	require.NoError(t, err)
	for _, command := range []string{"query-block", "blockdev-change-medium", "add-fd"} {
		assert.True(t, schema.HasCommand(command), command)
	}
	for _, command := range []string{"", "query", "query-bloc", "uery-block", "query-block\x00", "\n", "id"} {
		assert.False(t, schema.HasCommand(command), command)
	}
	v := c.Version().QEMU
	assert.Equal(t, v.Major > 7 || v.Major == 7 && v.Minor >= 1, schema.HasArg("blockdev-change-medium", "force"))
	assert.True(t, schema.HasArg("blockdev-change-medium", "filename"))
	assert.True(t, schema.HasArg("add-fd", "opaque"))
	assert.True(t, schema.HasArg("blockdev-add", "node-name"))
	assert.True(t, schema.HasArg("blockdev-add", "filename"), "of the file driver's branch")
	for _, arg := range []string{"", "forc", "orce", "force\x00", "blockdev-change-medium"} {
		assert.False(t, schema.HasArg("blockdev-change-medium", arg), arg)
	}
	assert.False(t, schema.HasArg("query-block", "id"))
	assert.False(t, schema.HasArg("no-such-command", "id"))
}

func TestPrettyQEMU(t *testing.T) {
	m := startQEMUWithMonitor(t, ",pretty=on")
	c := dial(t, m.path)
	_, err := c.QuerySchema(within(t, soon))
	require.NoError(t, err)
	status, err := c.QueryStatus(within(t, soon))
	require.NoError(t, err)
	assert.Equal(t, "prelaunch", status.Status)
}

func TestHumanMonitor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hmp")
	startQEMU(t, "-monitor", "unix:"+path+",server=on,wait=off")
	awaitSocket(t, path)
	_, err := qmp.Dial(within(t, soon), path, nil)
	require.ErrorContains(t, err, "not a QMP message")
	require.ErrorContains(t, err, "QEMU")
}

// TestQEMUPipelined sends many commands before it reads a single reply.
func TestQEMUPipelined(t *testing.T) {
	m := startQEMU(t)
	c := dial(t, m.path)
	var calls []*qmp.Call
	for range 200 {
		call, err := c.Send(within(t, soon), "query-status", nil, nil)
		require.NoError(t, err)
		calls = append(calls, call)
	}
	for _, call := range calls {
		var status qmp.Status
		require.NoError(t, call.Wait(within(t, soon), &status))
		assert.Equal(t, "prelaunch", status.Status)
	}
}

func TestQEMUChangesADisc(t *testing.T) {
	m := startQEMU(t, "-device", "ide-cd,id=cd0")
	c := dial(t, m.path)
	s := c.Subscribe(16)
	ctx := within(t, soon)
	fd, err := c.AddFD(ctx, someFile(t, string(make([]byte, 64<<10))), -1, "op-7")
	require.NoError(t, err)
	require.NoError(t, c.Execute(ctx, "blockdev-change-medium", map[string]string{
		"id": "cd0",
		"filename": `json:{"driver":"raw","node-name":"op-7","read-only":true,` +
			`"file":{"driver":"file","filename":"/dev/fdset/` + strconv.Itoa(fd.FDSet) + `"}}`,
		"read-only-mode": "read-only",
	}, nil))
	assert.Contains(t, string(next(t, s).Data), `"tray-open": true`)
	assert.Contains(t, string(next(t, s).Data), `"tray-open": false`)
	var drives []struct {
		QDev     string
		Inserted *struct {
			NodeName string `json:"node-name"`
		}
	}
	require.NoError(t, c.Execute(ctx, "query-block", nil, &drives))
	require.Len(t, drives, 1)
	assert.Equal(t, "cd0", drives[0].QDev)
	assert.Equal(t, "op-7", drives[0].Inserted.NodeName)
}

// TestQEMUPipelinedDescriptors would end with descriptors lost or exchanged if QEMU read ahead of the command that it
// executes.
func TestQEMUPipelinedDescriptors(t *testing.T) {
	m := startQEMU(t)
	c := dial(t, m.path)
	const n = 10
	var files []*os.File
	var calls []*qmp.Call
	for i := range n {
		files = append(files, someFile(t, ""))
		call, err := c.Send(within(t, soon), "add-fd", map[string]string{"opaque": strconv.Itoa(i)}, files[i])
		require.NoError(t, err)
		calls = append(calls, call)
	}
	for i, call := range calls {
		var fd qmp.FD
		require.NoError(t, call.Wait(within(t, soon), &fd))
		target, err := os.Readlink(filepath.Join("/proc", strconv.Itoa(m.cmd.Process.Pid), "fd", strconv.Itoa(fd.FD)))
		require.NoError(t, err)
		assert.Equal(t, files[i].Name(), target)
	}
}
