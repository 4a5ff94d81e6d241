package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

type rig struct {
	t       *testing.T
	path    string
	log     *Log
	logger  *slog.Logger
	journal bytes.Buffer // what the program's own handler is given
	seen    []Change
}

func newRig(t *testing.T, level slog.Level) *rig {
	r := &rig{t: t, path: filepath.Join(t.TempDir(), "logs", "audit.log")}
	r.log = New(func(c Change) { r.seen = append(r.seen, c) })
	next := slog.NewTextHandler(&r.journal, &slog.HandlerOptions{Level: level})
	r.logger = slog.New(r.log.Handler(next))
	r.log.Configure(r.path, slog.New(next))
	t.Cleanup(r.log.Close)
	return r
}

func (r *rig) change(medium string) {
	r.logger.With("audit", true, "by", "anna").Info("done", "verb", "insert", "medium", medium)
}

func (r *rig) lines(path string) (all []map[string]any) {
	r.t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(r.t, err)
	for line := range strings.Lines(string(b)) {
		var m map[string]any
		require.NoError(r.t, json.Unmarshal([]byte(line), &m), "%q", line)
		all = append(all, m)
	}
	return all
}

// media are the media of the lines in a file.
func (r *rig) media(path string) (all []string) {
	for _, l := range r.lines(path) {
		all = append(all, l["medium"].(string))
	}
	return all
}

func TestLine(t *testing.T) {
	r := newRig(t, slog.LevelInfo)
	old := unix.Umask(0o077) // as under systemd
	defer unix.Umask(old)
	require.NoError(t, os.Remove(r.path))
	r.logger.Info("nothing changed", "vm", "vm1")
	r.logger.Info("nor here", "audit", false)
	r.logger.With("audit", true, "by", "anna (pid 7)", "verb", "insert", "vm", "vm1").Warn("failed", "drive", "cd0",
		"medium", "/srv/\"a\"\n.iso", "operation", "", "code", "not-a-disc", "error", errors.New("line\nbreak"), "took", 1500*time.Microsecond)
	lines := r.lines(r.path)
	require.Len(t, lines, 1)
	at, err := time.Parse(time.RFC3339, lines[0]["time"].(string))
	require.NoError(t, err)
	require.WithinDuration(t, time.Now(), at, time.Minute)
	delete(lines[0], "time")
	require.Equal(t, map[string]any{"outcome": "failed", "by": "anna (pid 7)", "verb": "insert", "vm": "vm1", "drive": "cd0",
		"medium": "/srv/\"a\"\n.iso", "code": "not-a-disc", "error": "line\nbreak", "took": 1.5}, lines[0])
	require.Equal(t, []Change{{Verb: "insert", Outcome: "failed", Code: "not-a-disc", Took: 1500 * time.Microsecond}}, r.seen)
	require.Equal(t, 3, strings.Count(r.journal.String(), "\n"), "the journal has all records")
	st, err := os.Stat(r.path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o640), st.Mode())
}

// TestLevel: changes are written also where the log is silent.
func TestLevel(t *testing.T) {
	r := newRig(t, slog.LevelError)
	r.change("a")
	require.Len(t, r.lines(r.path), 1)
	require.Empty(t, r.journal.String())
	require.False(t, r.logger.Enabled(t.Context(), slog.LevelDebug))
}

// TestRotation: by rename with and without a new file, by copying and truncating, by removal
// of the whole directory. No line is lost, and none is torn.
func TestRotation(t *testing.T) {
	r := newRig(t, slog.LevelInfo)
	r.change("1")
	require.NoError(t, os.Rename(r.path, r.path+".1"))
	r.change("2")
	require.Equal(t, []string{"1"}, r.media(r.path+".1"))
	require.Equal(t, []string{"2"}, r.media(r.path))

	require.NoError(t, os.Rename(r.path, r.path+".2"))
	require.NoError(t, os.WriteFile(r.path, nil, 0o640)) // as logrotate's create
	r.change("3")
	require.Equal(t, []string{"3"}, r.media(r.path))

	require.NoError(t, os.Truncate(r.path, 0))
	r.change("4")
	require.Equal(t, []string{"4"}, r.media(r.path), "no hole before it")

	require.NoError(t, os.RemoveAll(filepath.Dir(r.path)))
	r.change("5")
	require.Equal(t, []string{"5"}, r.media(r.path))
	require.NotContains(t, r.journal.String(), "audit log")
}

// TestRotationUnderLoad: many write while the file is renamed again and again.
func TestRotationUnderLoad(t *testing.T) {
	r := newRig(t, slog.LevelError)
	r.log.observe = func(Change) {}
	const writers, each = 8, 200
	var all sync.WaitGroup
	for range writers {
		all.Go(func() {
			for range each {
				r.change("x")
			}
		})
	}
	names := []string{r.path}
	for i := range 20 {
		to := r.path + "." + string(rune('a'+i))
		if os.Rename(r.path, to) == nil {
			names = append(names, to)
		}
		time.Sleep(time.Millisecond)
	}
	all.Wait()
	r.change("x")
	n := 0
	for _, name := range names {
		n += len(r.lines(name))
	}
	require.Equal(t, writers*each+1, n)
}

// TestRefused: what isn't a plain file of ours is not written to; said once, and once when it
// works again.
func TestRefused(t *testing.T) {
	for name, put := range map[string]func(path, other string) error{
		"symbolic link": func(path, other string) error { return os.Symlink(other, path) },
		"dangling link": func(path, other string) error { return os.Symlink(other+".no", path) },
		"fifo":          func(path, _ string) error { return unix.Mkfifo(path, 0o666) },
		"directory":     func(path, _ string) error { return os.Mkdir(path, 0o755) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, slog.LevelInfo)
			other := filepath.Join(t.TempDir(), "other")
			require.NoError(t, os.WriteFile(other, []byte("theirs"), 0o600))
			require.NoError(t, os.Remove(r.path))
			require.NoError(t, put(r.path, other))
			r.change("lost")
			r.change("lost")
			require.Equal(t, 1, strings.Count(r.journal.String(), "can't be written to the audit log"))
			b, err := os.ReadFile(other)
			require.NoError(t, err)
			require.Equal(t, "theirs", string(b))
			require.NoFileExists(t, other+".no")
			require.NoError(t, os.Remove(r.path))
			r.change("kept")
			require.Equal(t, []string{"kept"}, r.media(r.path))
			require.Contains(t, r.journal.String(), "is written again")
			require.Contains(t, r.journal.String(), "lost=2")
			require.Len(t, r.seen, 3, "all are counted")
		})
	}
}

// TestReconfigured: another path from now on, and none.
func TestReconfigured(t *testing.T) {
	r := newRig(t, slog.LevelInfo)
	r.change("1")
	r.log.Configure(r.path+".other", r.logger)
	r.change("2")
	r.log.Configure("", nil)
	r.change("3")
	require.Equal(t, []string{"1"}, r.media(r.path))
	require.Equal(t, []string{"2"}, r.media(r.path+".other"))
}

// TestFullDisk: a write that breaks off is told once, spoils no later line, and later ones
// are written as soon as there is room. A limit on the size of files is the full disk here.
func TestFullDisk(t *testing.T) {
	r := newRig(t, slog.LevelInfo)
	r.change("1")
	st, err := os.Stat(r.path)
	require.NoError(t, err)
	signal.Ignore(unix.SIGXFSZ)
	defer signal.Reset(unix.SIGXFSZ)
	var old unix.Rlimit
	require.NoError(t, unix.Prlimit(0, unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: uint64(st.Size()) + 10, Max: unix.RLIM_INFINITY}, &old))
	r.change("2")
	r.change("3")
	require.NoError(t, unix.Prlimit(0, unix.RLIMIT_FSIZE, &old, nil))
	r.change("4")
	r.change("5")
	require.Equal(t, 1, strings.Count(r.journal.String(), "can't be written to the audit log"))
	require.Contains(t, r.journal.String(), "lost=2")
	b, err := os.ReadFile(r.path)
	require.NoError(t, err)
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	require.Len(t, lines, 4)
	require.Equal(t, `{"time":"2`, lines[1], "what was written of the second")
	require.Contains(t, lines[0], `"medium":"1"`)
	require.Contains(t, lines[2], `"medium":"4"`)
	require.Contains(t, lines[3], `"medium":"5"`)
}
