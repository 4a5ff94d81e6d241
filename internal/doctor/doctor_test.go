package doctor

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestJudge: what is found leads to a result, and whatever isn't right says what to do.
func TestJudge(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	soon, over := now.Add(24*time.Hour), now.Add(-time.Hour)
	gib := func(free, all uint64) unix.Statfs_t {
		return unix.Statfs_t{Bavail: free << 18, Blocks: all << 18, Bsize: 4096, Files: 1000, Ffree: 500}
	}
	few := gib(100, 200)
	few.Ffree = 7
	for _, row := range []struct {
		name   string
		check  Check
		result wire.CheckResult
		words  string
	}{
		{"QEMU", judgeQEMU("/q", "QEMU emulator version 7.2.19 (Debian 1:7.2)", nil), wire.CheckOK, "version 7.2"},
		{"old QEMU", judgeQEMU("/q", "QEMU emulator version 4.1.0", nil), wire.CheckFailed, "version 4.1"},
		{"oldest QEMU", judgeQEMU("/q", "QEMU emulator version 4.2.0", nil), wire.CheckOK, "4.2"},
		{"broken QEMU", judgeQEMU("/q", "cannot open shared object", errors.New("exit status 127")), wire.CheckFailed, "cannot open shared object"},
		{"no QEMU at all", judgeQEMU("/q", "GNU bash, version 5", nil), wire.CheckWarning, "no version of QEMU"},
		{"KVM", judgeAccel("auto", true), wire.CheckOK, "KVM"},
		{"no KVM", judgeAccel("auto", false), wire.CheckWarning, "no KVM"},
		{"no KVM wanted", judgeAccel("tcg", false), wire.CheckOK, "as configured"},
		{"node", judgeNode("dm", "/dev/x", "modprobe x", true, nil), wire.CheckOK, "/dev/x"},
		{"node needed", judgeNode("dm", "/dev/x", "modprobe x", true, fs.ErrNotExist), wire.CheckFailed, "needs it"},
		{"node not needed", judgeNode("dm", "/dev/x", "modprobe x", false, fs.ErrNotExist), wire.CheckSkipped, "nothing configured"},
		{"clock", judgeClock(now, unix.TIME_OK, 1500, nil), wire.CheckOK, "1.5ms"},
		{"free clock", judgeClock(now, unix.TIME_ERROR, 0, nil), wire.CheckWarning, "no time service"},
		{"empty battery", judgeClock(time.Unix(0, 0), unix.TIME_OK, 0, nil), wire.CheckFailed, "1970"},
		{"clock behind a sandbox", judgeClock(now, 0, 0, unix.EPERM), wire.CheckSkipped, "doesn't say"},
		{"sandbox", judgeSandbox(map[string]string{"Seccomp": "2", "NoNewPrivs": "1"}, 990), wire.CheckOK, "user 990"},
		{"root in a sandbox", judgeSandbox(map[string]string{"Seccomp": "2", "NoNewPrivs": "1"}, 0), wire.CheckWarning, "root"},
		{"no sandbox", judgeSandbox(map[string]string{"Seccomp": "0", "NoNewPrivs": "0"}, 990), wire.CheckWarning, "not in a sandbox"},
		{"files", judgeFiles(10, 100), wire.CheckOK, "10 of 100"},
		{"many files", judgeFiles(91, 100), wire.CheckFailed, "91 of 100"},
		{"space", judgeSpace("s", "/s", leastPool, gib(100, 200), nil), wire.CheckOK, "100 GiB of 200 GiB"},
		{"little space", judgeSpace("s", "/s", 200<<30, gib(100, 200), nil), wire.CheckWarning, "100 GiB"},
		{"full", judgeSpace("s", "/s", leastPool, gib(0, 200), nil), wire.CheckFailed, "0 bytes"},
		{"no files left", judgeSpace("s", "/s", leastPool, few, nil), wire.CheckFailed, "only 7 files"},
		{"gone", judgeSpace("s", "/s", leastPool, unix.Statfs_t{}, unix.EIO), wire.CheckFailed, "input/output error"},
		{"quota", judgeQuota("p", 100<<30, 50<<30), wire.CheckOK, "50 GiB of 100 GiB"},
		{"quota nearly used", judgeQuota("p", 100<<30, 95<<30), wire.CheckWarning, "95 GiB"},
		{"certificate", judgeCertificate(now.Add(1000*time.Hour), now), wire.CheckOK, "2026-06"},
		{"certificate ends", judgeCertificate(soon, now), wire.CheckWarning, "2026-05-02"},
		{"certificate over", judgeCertificate(over, now), wire.CheckFailed, "over"},
		{"token for ever", judgeTokens([]wire.Token{{Name: "a", Role: "admin"}}, now)[0], wire.CheckWarning, "never expires"},
		{"token over", judgeTokens([]wire.Token{{Name: "a", Role: "view", Expires: over}}, now)[0], wire.CheckWarning, "expired"},
		{"tokens", judgeTokens([]wire.Token{{Name: "a", Role: "view"}, {Name: "b", Role: "admin", Expires: soon}}, now)[0], wire.CheckOK, "2"},
		{"waits", judgeOperations([]*wire.OperationStatus{{ID: "o", VM: "v", Drive: "d", Phase: wire.Waiting, Since: now, Deadline: &soon}}, now)[0], wire.CheckWarning, "waits for the guest"},
		{"stuck", judgeOperations([]*wire.OperationStatus{{ID: "o", VM: "v", Drive: "d", Phase: wire.Waiting, Since: now, Deadline: &over}}, now)[0], wire.CheckFailed, "should have ended"},
		{"unsettled", judgeOperations([]*wire.OperationStatus{{ID: "o", VM: "v", Drive: "d", Phase: wire.Unsettled, Since: over}}, now)[0], wire.CheckFailed, "QEMU doesn't answer"},
		{"image failed", judgeImages([]wire.Image{{Name: "i", State: wire.ImageFailed, Failure: &wire.ImageFailure{Cause: "404", Remedy: "spell it right"}}}, now)[0], wire.CheckFailed, "404"},
		{"image damaged", judgeImages([]wire.Image{{Name: "i", State: wire.ImageReady, Failure: &wire.ImageFailure{Cause: "changed", Remedy: "add it again"}}}, now)[0], wire.CheckFailed, "changed"},
		{"image waits", judgeImages([]wire.Image{{Name: "i", State: wire.ImageDownloading, Progress: &wire.ImageProgress{Waiting: "no route"}}}, now)[0], wire.CheckWarning, "no route"},
		{"allocated", judgeImages([]wire.Image{{Name: "i", State: wire.ImageAllocated, Added: over}}, now)[0], wire.CheckWarning, "its turn"},
		{"machine failed", judgeMachine(wire.VMStatus{Name: "m", State: wire.VMFailed, Reason: "no disk"})[0], wire.CheckFailed, "no disk"},
		{"blank machine", judgeMachine(wire.VMStatus{Name: "m", State: "running", Machine: &wire.MachineStatus{Notes: []string{"blank", "and so"}}})[0], wire.CheckWarning, "blank; and so"},
	} {
		require.Equal(t, row.result, row.check.Result, row.name)
		require.Contains(t, row.check.Detail, row.words, row.name)
		right := row.result == wire.CheckOK || row.result == wire.CheckSkipped
		require.Equal(t, right, row.check.Next == "", "%s: what to do", row.name)
		require.NotEmpty(t, row.check.Name, row.name)
	}
	require.Empty(t, judgeMachine(wire.VMStatus{Name: "m", State: wire.VMStopped, Machine: &wire.MachineStatus{Notes: []string{"its disk is blank"}}}), "it is in the making")
	_, told := judgeMonitor(wire.VMStatus{Name: "m", State: wire.VMStopped})
	require.False(t, told)
	k, told := judgeMonitor(wire.VMStatus{Name: "m", State: "unreachable", Reason: "held by socat", Next: "end it"})
	require.True(t, told)
	require.Equal(t, failed("monitors", "m", "end it", "held by socat"), k)
	left := judgeSockets("/r/*", []string{"/r/a", "/r/b", "/r/c"}, []wire.VMStatus{{Name: "a", Socket: "/r/a", Answered: true}, {Name: "b", Socket: "/r/b"}})
	require.Len(t, left, 2)
	require.Contains(t, left[0].Detail, "3 sockets, 1 machines")
	require.Equal(t, "/r/c", left[1].Name)
}

// TestRoots are of real directories.
func TestRoots(t *testing.T) {
	dir := t.TempDir()
	look := func(path string) Check {
		st, err := os.Stat(path)
		return judgeRoot(path, st, err)
	}
	require.Equal(t, wire.CheckOK, look(dir).Result)
	require.Contains(t, look(dir).Detail, "written by root")
	require.NoError(t, os.Chmod(dir, 0o777))
	require.Equal(t, wire.CheckWarning, look(dir).Result)
	require.Contains(t, look(dir).Next, "chmod o-w")
	require.Equal(t, wire.CheckWarning, look(filepath.Join(dir, "nope")).Result)
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o644))
	require.Equal(t, wire.CheckFailed, look(file).Result)
	require.Equal(t, wire.CheckFailed, judgeRoot(dir, nil, fs.ErrPermission).Result)
}

// TestSlow: what doesn't answer is a finding, holds up nothing else, and isn't asked twice.
func TestSlow(t *testing.T) {
	hang, asked := make(chan struct{}), 0
	d := &Doctor{busy: make(map[string]*look), probes: []probe{
		{"quick", func(context.Context) []Check { return []Check{ok("quick", "it", "answers")} }},
		{"slow", func(context.Context) []Check { asked++; <-hang; return nil }},
	}}
	for range 2 {
		began := time.Now()
		all := d.Examine(t.Context())
		require.Less(t, time.Since(began), 2*limit)
		require.Len(t, all, 2)
		require.Equal(t, wire.CheckOK, all[0].Result)
		require.Equal(t, wire.CheckFailed, all[1].Result)
		require.NotEmpty(t, all[1].Next)
	}
	close(hang)
	require.Eventually(t, func() bool { d.mu.Lock(); defer d.mu.Unlock(); return d.busy["slow"] == nil }, time.Second, time.Millisecond)
	require.Equal(t, 1, asked)
}

// TestAtOnce: who asks while somebody else does gets what that one does, and isn't told that it
// took too long.
func TestAtOnce(t *testing.T) {
	var asked atomic.Int32
	goOn := make(chan struct{})
	d := &Doctor{busy: make(map[string]*look), probes: []probe{
		{"it", func(context.Context) []Check { asked.Add(1); <-goOn; return []Check{ok("it", "it", "answers")} }},
	}}
	first, gone := context.WithCancel(t.Context())
	var work sync.WaitGroup
	work.Go(func() { d.Examine(first) })
	require.Eventually(t, func() bool { return asked.Load() == 1 }, time.Second, time.Millisecond)
	results := make(chan []Check, 3)
	for range cap(results) {
		work.Go(func() { results <- d.Examine(t.Context()) })
	}
	gone() // who came first waits no longer; the others do
	time.Sleep(50 * time.Millisecond)
	close(goOn)
	work.Wait()
	for range cap(results) {
		require.Equal(t, wire.CheckOK, (<-results)[0].Result)
	}
	require.LessOrEqual(t, asked.Load(), int32(2), "one who comes late may look again")
}
