package hook

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/internal/wire"
)

// patience is far more than anything here takes.
const patience = 15 * time.Second

// rig is a folder of hooks, and one that they write into.
type rig struct {
	t         *testing.T
	dir, out  string
	hooks     *Hooks
	log       safeBuffer
	lastEvent uint64
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newRig(t *testing.T, timeout time.Duration) *rig {
	r := &rig{t: t, dir: t.TempDir(), out: t.TempDir()}
	require.NoError(t, os.Chmod(r.dir, 0o755))
	r.hooks = New(Options{Dir: r.dir, Timeout: timeout}, slog.New(slog.NewTextHandler(&r.log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	t.Cleanup(r.hooks.Close)
	return r
}

// script writes a hook; $OUT in it is the folder for what it writes.
func (r *rig) script(name, text string, mode os.FileMode) string {
	r.t.Helper()
	path := filepath.Join(r.dir, name)
	text = "#!/bin/sh\nOUT=" + r.out + "\n" + text + "\n"
	// Renamed into its place: a file that is open for writing can't be executed, and what
	// another test forks has it open for a moment.
	require.NoError(r.t, os.WriteFile(path+".new", []byte(text), 0o600))
	require.NoError(r.t, os.Chmod(path+".new", mode))
	require.NoError(r.t, os.Rename(path+".new", path))
	return path
}

func (r *rig) deliver(n int) {
	for range n {
		r.lastEvent++
		r.hooks.Deliver(wire.Event{ID: r.lastEvent, Type: wire.EventLoaded, VM: "vm1", Drive: "cd0", Detail: "a \"disc\"\nof two lines"})
	}
}

func (r *rig) within(what string, f func() bool) {
	r.t.Helper()
	for end := time.Now().Add(patience); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			require.FailNow(r.t, "waited in vain for "+what, "log: %s", r.log.String())
		}
	}
}

func (r *rig) counted(result string, n uint64) {
	r.t.Helper()
	r.within(fmt.Sprintf("%d %s", n, result), func() bool { return r.hooks.Counts()[result] == n })
}

func (r *rig) read(name string) string {
	b, _ := os.ReadFile(filepath.Join(r.out, name))
	return string(b)
}

func TestWhatAHookGets(t *testing.T) {
	r := newRig(t, patience)
	t.Setenv("SECRET", "of trayd's environment")
	r.script("10-tell", `cat > $OUT/in; env | sort > $OUT/env; pwd > $OUT/pwd; echo to the log; echo and this >&2`, 0o755)
	r.deliver(1)
	r.counted(Done, 1)
	in := r.read("in")
	require.Equal(t, 1, strings.Count(in, "\n"), "one line")
	var e wire.Event
	require.NoError(t, json.Unmarshal([]byte(in), &e))
	require.Equal(t, "a \"disc\"\nof two lines", e.Detail)
	for _, line := range []string{"TRAYD_EVENT_TYPE=loaded", "TRAYD_EVENT_ID=1", "TRAYD_EVENT_VM=vm1", "TRAYD_EVENT_DRIVE=cd0", "LANG=C.UTF-8"} {
		require.Contains(t, r.read("env"), line+"\n")
	}
	require.NotContains(t, r.read("env"), "SECRET")
	require.Equal(t, "/\n", r.read("pwd"))
	require.Contains(t, r.log.String(), `said="to the log\nand this"`)
}

// TestWhoIsRun: root's or our own, executable, plain, of a plain name; the log says why not.
func TestWhoIsRun(t *testing.T) {
	r := newRig(t, patience)
	r.script("good", `echo >> $OUT/good`, 0o755)
	r.script("not-executable", `echo >> $OUT/bad`, 0o644)
	r.script("writable", `echo >> $OUT/bad`, 0o775)
	r.script("dotted.sh", `echo >> $OUT/bad`, 0o755)
	require.NoError(t, os.Symlink(filepath.Join(r.dir, "good"), filepath.Join(r.dir, "link")))
	require.NoError(t, os.Mkdir(filepath.Join(r.dir, "folder"), 0o755))
	require.NoError(t, unix.Mkfifo(filepath.Join(r.dir, "fifo"), 0o755))
	why := map[string]string{"not-executable": "chmod +x", "writable": "written by others", "dotted.sh": "run-parts", "link": "regular", "folder": "regular", "fifo": "regular"}
	if os.Geteuid() == 0 {
		require.NoError(t, os.Chown(r.script("foreign", `echo >> $OUT/bad`, 0o755), 12345, 12345))
		why["foreign"] = "uid 12345"
	}
	r.deliver(2)
	r.counted(Done, 2)
	require.Empty(t, r.read("bad"))
	for name, part := range why {
		path := filepath.Join(r.dir, name)
		require.Equal(t, 1, strings.Count(r.log.String(), "hook="+path+" "), "%s is refused once, not for every event", name)
		require.Contains(t, unfit(path, name), part)
	}

	require.NoError(t, os.Chmod(r.dir, 0o777))
	r.deliver(2)
	r.within("the folder is refused", func() bool { return strings.Count(r.log.String(), "no hook is run") == 1 })
	require.NoError(t, os.Chmod(r.dir, 0o755))
	r.script("new", `echo >> $OUT/new`, 0o755)
	r.deliver(1)
	r.counted(Done, 4)
	require.Equal(t, "\n", r.read("new"), "a new one works at once")
}

// TestOneAtATimeInOrder, while a slow one beside it doesn't hold it up.
func TestOneAtATimeInOrder(t *testing.T) {
	r := newRig(t, patience)
	r.script("a-slow", `sleep 1000`, 0o755)
	r.script("b-order", `mkdir $OUT/lock || echo two at once >> $OUT/order; echo $TRAYD_EVENT_ID >> $OUT/order; rmdir $OUT/lock`, 0o755)
	began := time.Now()
	r.deliver(20)
	require.Less(t, time.Since(began), patience, "nobody waits for a hook")
	r.counted(Done, 20)
	var want strings.Builder
	for i := 1; i <= 20; i++ {
		fmt.Fprintln(&want, i)
	}
	require.Equal(t, want.String(), r.read("order"))
	began = time.Now()
	r.hooks.Close() // ends the sleep
	require.Less(t, time.Since(began), patience)
	r.deliver(1) // after the end: nothing happens
}

// TestTimeIsBounded: the whole group is ended, politely first, whatever it has started.
func TestTimeIsBounded(t *testing.T) {
	r := newRig(t, 300*time.Millisecond)
	r.script("polite", `trap 'echo asked > $OUT/polite; exit 0' TERM; while :; do sleep 0.05; done`, 0o755)
	r.script("stubborn", `trap '' TERM; sleep 1000 & echo $! > $OUT/child; while :; do sleep 0.05; done`, 0o755)
	r.deliver(1)
	r.counted(TimedOut, 2)
	require.Equal(t, "asked\n", r.read("polite"))
	child, err := strconv.Atoi(strings.TrimSpace(r.read("child")))
	require.NoError(t, err)
	r.within("the child's end", func() bool { return gone(child) })
}

// TestWhatIsLeftRunningEnds with the hook, and the end is told truly.
func TestWhatIsLeftRunningEnds(t *testing.T) {
	r := newRig(t, patience)
	r.script("fails", `sleep 1000 & echo $! > $OUT/child; head -c 100000 /dev/zero | tr '\0' x; exit 3`, 0o755)
	r.deliver(1)
	r.counted(Failed, 1)
	child, err := strconv.Atoi(strings.TrimSpace(r.read("child")))
	require.NoError(t, err)
	r.within("the child's end", func() bool { return gone(child) })
	require.Contains(t, r.log.String(), "exit status 3")
	require.Contains(t, r.log.String(), "xxx [...]")
	require.Less(t, len(r.log.String()), 3*mostOutput)
}

// gone reports whether a process has ended; nobody may have reaped it yet.
func gone(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, after, _ := strings.Cut(string(b), ") ")
	return err != nil || strings.HasPrefix(after, "Z") || strings.HasPrefix(after, "X")
}

// TestTooManyEvents: the newest are kept, and a gap is told once at its beginning and once at
// its end.
func TestTooManyEvents(t *testing.T) {
	r := newRig(t, patience)
	r.script("slow", `until [ -e $OUT/go ]; do sleep 0.02; done; echo $TRAYD_EVENT_ID >> $OUT/ids`, 0o755)
	r.deliver(1)
	r.within("the first run", func() bool { return r.queued() == 0 })
	r.deliver(queueLimit + 10)
	require.Equal(t, queueLimit, r.queued())
	require.NoError(t, os.WriteFile(filepath.Join(r.out, "go"), nil, 0o600))
	r.counted(Done, queueLimit+1)
	ids := strings.Fields(r.read("ids"))
	require.Equal(t, "1", ids[0])
	require.Equal(t, "12", ids[1])
	require.Equal(t, strconv.Itoa(queueLimit+11), ids[len(ids)-1])
	require.EqualValues(t, 10, r.hooks.Counts()[Dropped])
	require.Equal(t, 1, strings.Count(r.log.String(), "too slow: the oldest"))
	require.Contains(t, r.log.String(), "dropped=10")
}

func (r *rig) queued() int {
	r.hooks.mu.Lock()
	defer r.hooks.mu.Unlock()
	n := 0
	for _, q := range r.hooks.queues {
		n += len(q.events)
	}
	return n
}

// TestNoHooks: without a folder, or without one that is there, nothing is said.
func TestNoHooks(t *testing.T) {
	r := newRig(t, patience)
	for _, dir := range []string{"", filepath.Join(r.out, "nowhere")} {
		r.hooks.Configure(Options{Dir: dir, Timeout: patience})
		r.deliver(1)
	}
	require.Empty(t, r.log.String())
}
