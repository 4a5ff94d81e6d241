package volume

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// subject is a volume that the contract is checked with.
type subject struct {
	host    *Host
	ref     Ref
	content []byte // what it begins with
	rel     string // the file in it, of a file system
	other   *subject
	absent  Ref              // can be activated no more than it exists
	foreign func(*testing.T) // has somebody else activate it; nil: nobody else can
	// always is set of those that are active as long as they exist.
	always bool
}

func (s *subject) volume(t *testing.T) Volume { return volumeOf(t, s.host, s.ref) }

func volumeOf(t *testing.T, h *Host, ref Ref) Volume {
	t.Helper()
	v, err := h.Volume(ref)
	require.NoError(t, err)
	require.Equal(t, ref, v.Ref())
	return v
}

// contract is what each implementation of Volume promises.
func contract(t *testing.T, make func(t *testing.T) *subject) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	t.Cleanup(cancel)
	leaks := goleak.IgnoreCurrent()
	s := make(t)
	t.Cleanup(func() { goleak.VerifyNone(t, leaks) })
	v := s.volume(t)
	t.Cleanup(func() { require.NoError(t, v.Release(context.Background())) })

	active := func(t *testing.T, v Volume, want bool) {
		t.Helper()
		st, err := v.State(ctx)
		require.NoError(t, err)
		require.Equal(t, want || s.always, st.Active)
	}
	reads := func(t *testing.T, s *subject) {
		t.Helper()
		f, err := s.volume(t).Open(ctx, s.rel)
		require.NoError(t, err)
		defer f.Close()
		got := bytes.Repeat([]byte{'x'}, len(s.content))
		_, err = io.ReadFull(f, got)
		require.NoError(t, err)
		require.True(t, bytes.Equal(s.content, got), "the volume's own bytes")
		_, err = f.WriteAt(got[:1], 0)
		require.Error(t, err, "it is read-only")
	}

	t.Run("activate, read, release", func(t *testing.T) {
		active(t, v, false)
		made, err := v.Activate(ctx)
		require.NoError(t, err)
		require.Equal(t, !s.always, made)
		active(t, v, true)
		made, err = v.Activate(ctx)
		require.NoError(t, err, "active already")
		require.False(t, made)
		reads(t, s)
		require.NoError(t, v.Release(ctx))
		active(t, v, false)
		require.NoError(t, v.Release(ctx), "inactive already")
		if !s.always {
			_, err := v.Open(ctx, s.rel)
			require.Error(t, err, "it has to be active")
		}
	})

	t.Run("held by another process", func(t *testing.T) {
		require.NoError(t, activate(ctx, v))
		f, err := v.Open(ctx, s.rel)
		require.NoError(t, err)
		pid, end := hold(t, f)
		holders, err := v.Holders(ctx)
		require.NoError(t, err)
		require.Contains(t, holders, Holder{PID: pid, Name: "sleep"})
		if !s.always {
			begin := time.Now()
			var busy *BusyError
			require.ErrorAs(t, v.Release(ctx), &busy)
			require.Less(t, time.Since(begin), 4*time.Second, "it doesn't wait long")
			require.Equal(t, s.ref, busy.Ref)
			require.Contains(t, busy.Holders, Holder{PID: pid, Name: "sleep"})
			st, err := v.State(ctx)
			require.NoError(t, err)
			require.Equal(t, State{Active: true, Held: s.ref.Kind != Mount}, st)
			require.NoError(t, activate(ctx, v), "used again meanwhile")
			reads(t, s)
			require.ErrorAs(t, v.Release(ctx), &busy)
		}
		end()
		require.NoError(t, v.Release(ctx))
		active(t, v, false)
	})

	t.Run("held by this process", func(t *testing.T) {
		if s.always {
			return
		}
		require.NoError(t, activate(ctx, v))
		f, err := v.Open(ctx, s.rel)
		require.NoError(t, err)
		st, err := v.State(ctx)
		require.NoError(t, err)
		require.Equal(t, State{Active: true}, st, "it is left out")
		var busy *BusyError
		require.ErrorAs(t, v.Release(ctx), &busy)
		go func() {
			time.Sleep(50 * time.Millisecond)
			f.Close()
		}()
		require.NoError(t, v.Release(ctx), "who holds it for a moment is waited for")
		active(t, v, false)
	})

	t.Run("two at once", func(t *testing.T) {
		o := s.other
		if o == nil {
			return
		}
		require.NoError(t, activate(ctx, v))
		require.NoError(t, activate(ctx, o.volume(t)))
		reads(t, s)
		reads(t, o)
		require.NoError(t, v.Release(ctx))
		reads(t, o)
		require.NoError(t, o.volume(t).Release(ctx))
	})

	t.Run("active by somebody else", func(t *testing.T) {
		if s.foreign == nil {
			return
		}
		s.foreign(t)
		active(t, v, true)
		require.NoError(t, activate(ctx, v))
		reads(t, s)
		require.NoError(t, v.Release(ctx))
		active(t, v, false)
	})

	t.Run("out of time", func(t *testing.T) {
		over, cancel := context.WithCancel(ctx)
		cancel()
		require.ErrorIs(t, activate(over, v), context.Canceled)
		active(t, v, false)
		soon, cancel := context.WithTimeout(ctx, time.Millisecond)
		defer cancel()
		if err := activate(soon, v); err != nil {
			require.ErrorIs(t, err, context.DeadlineExceeded)
			active(t, v, false)
		}
		require.NoError(t, v.Release(ctx))
	})

	t.Run("absent", func(t *testing.T) {
		v := volumeOf(t, s.host, s.absent)
		var e *Error
		require.ErrorAs(t, activate(ctx, v), &e)
		require.Contains(t, []Reason{NoSuchVolume, NoSuchGroup, Undefined}, e.Reason)
		require.NotEmpty(t, e.Next)
		st, err := v.State(ctx)
		require.NoError(t, err)
		require.Zero(t, st)
		holders, err := v.Holders(ctx)
		require.NoError(t, err)
		require.Empty(t, holders)
		_, err = v.Open(ctx, s.rel)
		require.ErrorAs(t, err, &e)
		require.NoError(t, v.Release(ctx), "what doesn't exist is released")
	})

	orphans, err := s.host.Orphans(ctx)
	require.NoError(t, err)
	require.Empty(t, orphans, "nothing is left")
}

// hold gives an open file to a process of its own.
func hold(t *testing.T, f *os.File) (pid int, end func()) {
	t.Helper()
	cmd := exec.Command("sleep", "600")
	cmd.Stdin = f
	require.NoError(t, cmd.Start())
	require.NoError(t, f.Close())
	over := false
	end = func() {
		if !over {
			over = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	t.Cleanup(end)
	require.Eventually(t, func() bool { return processName(cmd.Process.Pid) == "sleep" }, 5*time.Second, time.Millisecond)
	return cmd.Process.Pid, end
}

// needRoot ends a test that can't run for an ordinary user.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("devices are root's")
	}
}

// tool runs a program that has to succeed.
func tool(t *testing.T, args ...string) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	path, err := findTool(args[0])
	require.NoError(t, err)
	cmd := exec.Command(path, args[1:]...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	require.NoError(t, cmd.Run(), "%s: %s%s", strings.Join(args, " "), &stdout, &stderr)
	return strings.TrimSpace(stdout.String())
}

// content is size bytes that no other seed gives.
func content(seed, size int64) []byte {
	b := make([]byte, size)
	rand.New(rand.NewSource(seed)).Read(b)
	return b
}

func file(t *testing.T, dir, name string, b []byte) string {
	t.Helper()
	path := filepath.Join(dir, name)
	require.NoError(t, os.WriteFile(path, b, 0o600))
	return path
}

// fileSystem makes an image of an ext4 file system with the files disc.iso and sub/b.iso.
func fileSystem(t *testing.T, dir, label string, disc []byte) string {
	t.Helper()
	from := filepath.Join(dir, label+".d")
	require.NoError(t, os.MkdirAll(filepath.Join(from, "sub"), 0o755))
	file(t, from, "disc.iso", disc)
	file(t, filepath.Join(from, "sub"), "b.iso", disc)
	require.NoError(t, os.Symlink("/etc/passwd", filepath.Join(from, "away")))
	require.NoError(t, os.Symlink("sub/b.iso", filepath.Join(from, "link")))
	image := filepath.Join(dir, label+".img")
	tool(t, "mke2fs", "-q", "-t", "ext4", "-d", from, "-L", label, image, "16M")
	return image
}

func reason(t *testing.T, err error) Reason {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		require.Fail(t, "no *Error", "%v", err)
	}
	require.NotEmpty(t, e.Detail)
	require.NotEmpty(t, e.Next)
	t.Logf("%v; %s", e, e.Next)
	return e.Reason
}

// activate is Activate for those who don't ask whether it did anything.
func activate(ctx context.Context, v Volume) error {
	_, err := v.Activate(ctx)
	return err
}
