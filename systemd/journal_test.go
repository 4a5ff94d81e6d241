package systemd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// journald is the journal's end of the socket.
type journald struct {
	t    *testing.T
	path string
	conn *net.UnixConn
}

func newJournald(t *testing.T) *journald {
	t.Helper()
	j := &journald{t: t, path: filepath.Join(t.TempDir(), "socket")}
	j.start()
	return j
}

func (j *journald) start() {
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: j.path, Net: "unixgram"})
	require.NoError(j.t, err)
	j.conn = c
	j.t.Cleanup(func() { c.Close() })
}

// next reads one entry, in a datagram or a sealed memfd.
func (j *journald) next() map[string][]string {
	j.t.Helper()
	require.NoError(j.t, j.conn.SetReadDeadline(time.Now().Add(soon)))
	b, oob := make([]byte, 1<<20), make([]byte, 128)
	n, on, _, _, err := j.conn.ReadMsgUnix(b, oob)
	require.NoError(j.t, err)
	if on == 0 {
		return fields(j.t, b[:n])
	}
	require.Zero(j.t, n)
	messages, err := unix.ParseSocketControlMessage(oob[:on])
	require.NoError(j.t, err)
	fds, err := unix.ParseUnixRights(&messages[0])
	require.NoError(j.t, err)
	f := os.NewFile(uintptr(fds[0]), "entry")
	defer f.Close()
	seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	require.NoError(j.t, err)
	assert.Equal(j.t, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE|unix.F_SEAL_SEAL, seals)
	st, err := f.Stat()
	require.NoError(j.t, err)
	text := make([]byte, st.Size())
	_, err = f.ReadAt(text, 0)
	require.NoError(j.t, err)
	return fields(j.t, text)
}

// fields reads the native protocol as journald does.
func fields(t *testing.T, b []byte) map[string][]string {
	t.Helper()
	all := make(map[string][]string)
	for len(b) > 0 {
		line, rest, ok := bytes.Cut(b, []byte("\n"))
		require.True(t, ok)
		if name, value, short := strings.Cut(string(line), "="); short {
			all[name] = append(all[name], value)
			b = rest
			continue
		}
		n := binary.LittleEndian.Uint64(rest)
		require.Equal(t, byte('\n'), rest[8+n])
		all[string(line)] = append(all[string(line)], string(rest[8:8+n]))
		b = rest[9+n:]
	}
	return all
}

func (j *journald) logger(level slog.Leveler) *slog.Logger {
	return slog.New(newJournalHandler(LogOptions{Identifier: "trayd", Level: level, Socket: j.path}))
}

func TestAttributesAreFields(t *testing.T) {
	j := newJournald(t)
	j.logger(slog.LevelInfo).With("audit", true).Warn("refused", "vm", "vm1", "drive", "cd0", "operation", "",
		"took", 3*time.Millisecond, "error", errors.New("the tray\nis locked"))
	assert.Equal(t, map[string][]string{
		"SYSLOG_IDENTIFIER": {"trayd"},
		"PRIORITY":          {"4"},
		"MESSAGE":           {`refused audit=true vm=vm1 drive=cd0 took=3ms error="the tray\nis locked"`},
		"AUDIT":             {"true"},
		"VM":                {"vm1"},
		"DRIVE":             {"cd0"},
		"TOOK":              {"3ms"},
		"ERROR":             {"the tray\nis locked"},
	}, j.next())
}

func TestPriorities(t *testing.T) {
	j := newJournald(t)
	log := j.logger(slog.LevelDebug)
	for level, want := range map[slog.Level]string{
		slog.LevelDebug: "7", slog.LevelInfo: "6", slog.LevelInfo + 2: "5", slog.LevelWarn: "4", slog.LevelError: "3", slog.LevelError + 4: "3",
	} {
		log.Log(context.Background(), level, "x")
		assert.Equal(t, []string{want}, j.next()["PRIORITY"], level)
	}
}

func TestTheLevelMayChangeWhileRunning(t *testing.T) {
	j := newJournald(t)
	level := new(slog.LevelVar)
	log := j.logger(level)
	log.Debug("unseen")
	level.Set(slog.LevelDebug)
	log.Debug("seen")
	assert.Equal(t, []string{"seen"}, j.next()["MESSAGE"])
}

func TestGroupsAndNames(t *testing.T) {
	j := newJournald(t)
	log := j.logger(slog.LevelInfo)
	log.With("a", 1).WithGroup("qemu").With("pid", 7).Info("m", slog.Group("x", "y-z", 2), slog.Group("", "inline", 3))
	got := j.next()
	assert.Equal(t, []string{"m a=1 qemu.pid=7 qemu.x.y-z=2 qemu.inline=3"}, got["MESSAGE"])
	assert.Equal(t, []string{"7"}, got["QEMU_PID"])
	assert.Equal(t, []string{"2"}, got["QEMU_X_Y_Z"])

	for key, want := range map[string]string{
		"vm": "VM", "volumeID": "VOLUMEID", "2fast": "FIELD_2FAST", "_PID": "FIELD_PID", "message": "FIELD_MESSAGE",
		"priority": "FIELD_PRIORITY", "größe": "GR__E", strings.Repeat("x", 80): strings.Repeat("X", 64),
	} {
		assert.Equal(t, want, fieldName(key), key)
	}
}

func TestALoggerIsNotItsSiblings(t *testing.T) {
	j := newJournald(t)
	base := j.logger(slog.LevelInfo).With("vm", "vm1")
	one, two := base.With("drive", "one"), base.With("drive", "two")
	one.Info("x")
	two.Info("x")
	assert.Equal(t, []string{"one"}, j.next()["DRIVE"])
	assert.Equal(t, []string{"two"}, j.next()["DRIVE"])
}

func TestALargeEntryGoesAsAFile(t *testing.T) {
	j := newJournald(t)
	var attrs []any
	for i := range 200 { // more than any socket's buffer may be here
		attrs = append(attrs, fmt.Sprintf("f%d", i), strings.Repeat("x", 64<<10))
	}
	j.logger(slog.LevelInfo).Info("large", attrs...)
	got := j.next()
	assert.Len(t, got["F199"][0], 64<<10)
	assert.LessOrEqual(t, len(got["MESSAGE"][0]), maxField+len("…"))
	assert.Equal(t, []string{"6"}, got["PRIORITY"])
}

func TestAStuckJournalHoldsUpNobody(t *testing.T) {
	j := newJournald(t)
	h := newJournalHandler(LogOptions{Level: slog.LevelInfo, Socket: j.path})
	record := slog.NewRecord(time.Now(), slog.LevelInfo, "x", 0)
	taken, dropped := 0, 0
	begin := time.Now()
	for range 3000 {
		if h.Handle(t.Context(), record) == nil {
			taken++
		} else {
			dropped++
		}
		if dropped == 100 {
			break
		}
	}
	require.Equal(t, 100, dropped)
	assert.Less(t, time.Since(begin), 3*time.Second)
	for range taken {
		j.next()
	}
	require.NoError(t, h.Handle(t.Context(), record))
	assert.Equal(t, []string{"100"}, j.next()["DROPPED_ENTRIES"])
	require.NoError(t, h.Handle(t.Context(), record))
	assert.Empty(t, j.next()["DROPPED_ENTRIES"])
}

func TestAJournalThatIsStartedAnewIsFoundAgain(t *testing.T) {
	j := newJournald(t)
	h := newJournalHandler(LogOptions{Level: slog.LevelInfo, Socket: j.path})
	record := slog.NewRecord(time.Now(), slog.LevelInfo, "x", 0)
	require.NoError(t, h.Handle(t.Context(), record))
	j.next()
	j.conn.Close()
	require.NoError(t, os.RemoveAll(j.path))
	require.Error(t, h.Handle(t.Context(), record))
	j.start()
	require.NoError(t, h.Handle(t.Context(), record))
	assert.Equal(t, []string{"1"}, j.next()["DROPPED_ENTRIES"])
}

// TestManyLogAtOnce: each entry is whole, and either comes or is counted, as where the reader
// has no processor for a while.
func TestManyLogAtOnce(t *testing.T) {
	const each = 25
	j := newJournald(t)
	log := j.logger(slog.LevelInfo)
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for k := range each {
				log.With("i", i).Info("x", "k", k)
			}
		})
	}
	wanted := 8 * each
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		all.Wait()
		last := slog.NewRecord(time.Now(), slog.LevelInfo, "last", 0)
		for log.Handler().Handle(t.Context(), last) != nil && t.Context().Err() == nil {
			wanted++ // this one is counted, too
		}
	}()
	came, dropped := 0, 0
	for {
		got := j.next()
		if n := got["DROPPED_ENTRIES"]; n != nil {
			count, err := strconv.Atoi(n[0])
			require.NoError(t, err)
			dropped += count
		}
		if got["MESSAGE"][0] == "last" {
			break
		}
		came++
		assert.Equal(t, []string{fmt.Sprintf("x i=%s k=%s", got["I"][0], got["K"][0])}, got["MESSAGE"])
	}
	<-ended
	require.Equal(t, wanted, came+dropped)
	require.NotZero(t, came)
}

func TestTheJournalIsForAStderrThatGoesThere(t *testing.T) {
	var stderr unix.Stat_t
	require.NoError(t, unix.Fstat(2, &stderr))
	j := newJournald(t)
	var text bytes.Buffer
	o := LogOptions{Socket: j.path}

	t.Setenv("JOURNAL_STREAM", fmt.Sprintf("%d:%d", stderr.Dev, stderr.Ino))
	slog.New(NewLogHandler(&text, o)).Info("to the journal")
	assert.Equal(t, []string{"to the journal"}, j.next()["MESSAGE"])
	assert.Empty(t, text.String())

	for _, elsewhere := range []string{"", "1:1", "nonsense"} {
		t.Setenv("JOURNAL_STREAM", elsewhere)
		text.Reset()
		slog.New(NewLogHandler(&text, o)).Info("as text", "vm", "vm1")
		assert.Contains(t, text.String(), `level=INFO msg="as text" vm=vm1`)
	}
}

func BenchmarkJournal(b *testing.B) {
	path := filepath.Join(b.TempDir(), "socket")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	require.NoError(b, err)
	go func() {
		buffer := make([]byte, 4096)
		for {
			if _, err := c.Read(buffer); err != nil {
				return
			}
		}
	}()
	defer c.Close()
	log := slog.New(newJournalHandler(LogOptions{Level: slog.LevelInfo, Socket: path}))
	b.ReportAllocs()
	for b.Loop() {
		log.Info("loaded", "vm", "vm1", "drive", "cd0", "operation", "abcdefghij")
	}
}
