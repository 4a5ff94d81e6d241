package access

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/state"
)

// dialEnv has the test's own program connect to a socket and end: it is the peer.
const dialEnv = "TEST_ACCESS_DIAL"

func TestMain(m *testing.M) {
	if path := os.Getenv(dialEnv); path != "" {
		c, err := net.Dial("unix", path)
		if err != nil {
			os.Exit(1)
		}
		_, _ = c.Read(make([]byte, 1)) // until the test has looked
		return
	}
	os.Exit(m.Run())
}

func gid(t *testing.T, group string) uint32 {
	g, err := user.LookupGroup(group)
	require.NoError(t, err)
	n, err := strconv.ParseUint(g.Gid, 10, 32)
	require.NoError(t, err)
	return uint32(n)
}

// TestPeer: who connects is known by the kernel's word, with the groups they are in besides
// their first.
func TestPeer(t *testing.T) {
	require.Zero(t, os.Getuid(), "become root")
	dir, err := os.MkdirTemp("", "peer-")
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	require.NoError(t, os.Chmod(dir, 0o755))
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unix"})
	require.NoError(t, err)
	defer l.Close()
	require.NoError(t, os.Chmod(filepath.Join(dir, "s"), 0o777))
	self, err := os.ReadFile("/proc/self/exe")
	require.NoError(t, err)
	program := filepath.Join(dir, "peer")
	require.NoError(t, os.WriteFile(program, self, 0o755))

	many := make([]uint32, 100) // more than peerGroups asks for at first
	for i := range many {
		many[i] = uint32(50000 + i)
	}
	groups := Groups{Change: "daemon", View: "games"}
	for _, row := range []struct {
		name string
		cred syscall.Credential
		g    Groups
		want Role
	}{
		{"root", syscall.Credential{}, groups, Admin},
		{"first group", syscall.Credential{Uid: 65534, Gid: gid(t, "daemon")}, groups, Change},
		{"one of many", syscall.Credential{Uid: 65534, Gid: 65534, Groups: append(many, gid(t, "daemon"))}, groups, Change},
		{"looks", syscall.Credential{Uid: 65534, Gid: 65534, Groups: []uint32{gid(t, "games")}}, groups, View},
		{"both", syscall.Credential{Uid: 65534, Gid: gid(t, "games"), Groups: []uint32{gid(t, "daemon")}}, groups, Change},
		{"nobody", syscall.Credential{Uid: 65534, Gid: 65534, Groups: many}, groups, None},
		{"root's group alone", syscall.Credential{Uid: 65534, Gid: 0}, groups, None},
		{"no groups", syscall.Credential{Uid: 65534, Gid: gid(t, "daemon")}, Groups{}, None},
		{"groups that don't exist", syscall.Credential{Uid: 65534, Gid: gid(t, "daemon")}, Groups{Change: "no-such-group", View: "nor-this"}, None},
	} {
		t.Run(row.name, func(t *testing.T) {
			cmd := exec.Command(program)
			cmd.Env = []string{dialEnv + "=" + filepath.Join(dir, "s"), "GORACE=atexit_sleep_ms=0"}
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &row.cred}
			require.NoError(t, cmd.Start())
			c, err := l.AcceptUnix()
			require.NoError(t, err)
			id, err := row.g.Peer(c)
			require.NoError(t, err)
			uid, err := UID(c)
			require.NoError(t, err)
			c.Close()
			require.NoError(t, cmd.Wait())
			require.Equal(t, row.want, id.Role)
			require.Equal(t, cmd.Process.Pid, id.PID)
			require.Equal(t, int(row.cred.Uid), uid)
			require.Contains(t, id.Name, "(pid "+strconv.Itoa(id.PID)+")")
		})
	}
}

func newTokens(t *testing.T) (*Tokens, *state.Journal, string) {
	path := filepath.Join(t.TempDir(), "state.journal")
	j, err := state.Open(path, nil)
	require.NoError(t, err)
	t.Cleanup(func() { j.Close() })
	tokens, err := NewTokens(j)
	require.NoError(t, err)
	return tokens, j, path
}

// TestTokens: a token lets in until it is revoked or expires, also after a restart, and what
// is kept of it doesn't.
func TestTokens(t *testing.T) {
	tokens, j, path := newTokens(t)
	now := time.Now()
	made, err := tokens.Create("ci", Change, now.Add(time.Hour), "root")
	require.NoError(t, err)
	_, err = tokens.Create("ci", View, time.Time{}, "root")
	require.ErrorIs(t, err, ErrTokenExists)
	for _, name := range []string{"", "a b", "-a", strings.Repeat("a", 65), "a\n"} {
		_, err = tokens.Create(name, View, time.Time{}, "root")
		require.ErrorIs(t, err, ErrTokenName, "%q", name)
	}
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	_, secret, _ := strings.Cut(strings.TrimPrefix(made.Secret, tokenPrefix), "_")
	require.Contains(t, string(text), made.ID)
	require.NotContains(t, string(text), secret, "the secret is not kept")

	again, err := NewTokens(j)
	require.NoError(t, err)
	for _, tokens := range []*Tokens{tokens, again} {
		id, err := tokens.Check(made.Secret, now)
		require.NoError(t, err)
		require.Equal(t, Identity{Name: "token ci", Key: "token:" + made.ID, Role: Change}, id)
		require.True(t, tokens.Valid(id, now))
		require.False(t, tokens.Valid(id, now.Add(2*time.Hour)))
		for _, wrong := range []string{"", "trayd_", made.ID, secret, made.Secret + "x", made.Secret[:len(made.Secret)-1], strings.Replace(made.Secret, "trayd_", "", 1), tokenPrefix + made.ID + "_"} {
			_, err = tokens.Check(wrong, now)
			require.ErrorIs(t, err, ErrUnknown, "%q", wrong)
		}
		_, err = tokens.Check(made.Secret, now.Add(time.Hour))
		require.ErrorIs(t, err, ErrUnknown, "expired")
	}
	id, err := tokens.Check(made.Secret, now)
	require.NoError(t, err)
	_, err = tokens.Revoke("ci")
	require.NoError(t, err)
	_, err = tokens.Revoke("ci")
	require.ErrorIs(t, err, ErrNoToken)
	_, err = tokens.Check(made.Secret, now)
	require.ErrorIs(t, err, ErrUnknown)
	require.False(t, tokens.Valid(id, now), "its sessions end with it")
	again, err = NewTokens(j)
	require.NoError(t, err)
	require.Empty(t, again.List())
	b, err := json.Marshal(made.Token)
	require.NoError(t, err)
	require.NotContains(t, string(b), "secret")
}

// TestSessions: a session counts in its scope, until its time is over; a one-time secret counts
// once.
func TestSessions(t *testing.T) {
	_, j, _ := newTokens(t)
	now := time.Now()
	s, err := NewSessions(j, now)
	require.NoError(t, err)
	begin := func(scope string) string {
		secret, err := s.Begin(Identity{Name: "a", Key: "uid:1", Role: Change}, scope, now)
		require.NoError(t, err)
		return secret
	}
	oneTime := func() string {
		secret, err := s.OneTime(Identity{Name: "a", Key: "uid:1", Role: Change}, "one", now)
		require.NoError(t, err)
		return secret
	}
	id := Identity{Name: "a", Key: "uid:1", Role: Change}
	secret := begin("one")
	got, ok := s.Find(secret, "one", now)
	require.True(t, ok)
	require.Equal(t, id, got)
	_, ok = s.Find(secret, "two", now)
	require.False(t, ok, "another scope")
	_, ok = s.Find(secret, "one", now.Add(sessionIdle+time.Second))
	require.False(t, ok, "not used for long")

	at := now
	for at.Sub(now) < sessionLength {
		_, ok = s.Find(secret, "one", at)
		require.True(t, ok, "used all the time")
		at = at.Add(sessionIdle)
	}
	_, ok = s.Find(secret, "one", at.Add(time.Second))
	require.False(t, ok, "its end")

	once := oneTime()
	_, ok = s.Find(once, "one", now)
	require.False(t, ok, "it is no session")
	_, _, ok = s.Exchange(once, "two", now)
	require.False(t, ok)
	secret, got, ok = s.Exchange(once, "one", now)
	require.True(t, ok)
	require.Equal(t, id, got)
	_, _, ok = s.Exchange(once, "one", now)
	require.False(t, ok, "used")
	_, ok = s.Find(secret, "one", now)
	require.True(t, ok)
	late := oneTime()
	_, _, ok = s.Exchange(late, "one", now.Add(oneTimeTimeout+time.Second))
	require.False(t, ok, "too late")
	again, err := NewSessions(j, now)
	require.NoError(t, err)
	got, ok = again.Find(secret, "one", now)
	require.True(t, ok, "after a restart")
	require.Equal(t, id, got)
	s.EndScope("one")
	again, err = NewSessions(j, now)
	require.NoError(t, err)
	require.Empty(t, again.all)
	_, ok = s.Find(secret, "one", now)
	require.False(t, ok)
	others, err := s.Begin(Identity{Key: "uid:2"}, "x", now.Add(-time.Minute))
	require.NoError(t, err)
	for range maxSessionsOne + 10 {
		begin("x")
	}
	require.Len(t, s.all, maxSessionsOne+1)
	_, ok = s.Find(others, "x", now)
	require.True(t, ok, "nobody ends others'")
	for i := range maxSessions {
		_, err := s.Begin(Identity{Key: fmt.Sprint("token:", i)}, "x", now)
		require.NoError(t, err)
	}
	require.Len(t, s.all, maxSessions)
	secret = begin("x")
	_, ok = s.Find(secret, "x", now)
	require.True(t, ok, "the last one is there")
}

// TestThrottle: who tries many secrets waits, and nobody else does.
func TestThrottle(t *testing.T) {
	h, now := NewThrottle(), time.Now()
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	for range freeFailures - 1 {
		h.Failed(a, "", now)
		require.Zero(t, h.Wait(a, "", now))
	}
	for _, want := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60} {
		h.Failed(a, "", now)
		require.Equal(t, want*time.Second, h.Wait(a, "", now))
	}
	require.Zero(t, h.Wait(b, "", now))
	require.Zero(t, h.Wait(a, "", now.Add(time.Minute)))
	require.Zero(t, h.Wait(a, "ab", now), "a token that there is")
	h.Succeeded(a, "")
	require.Zero(t, h.Wait(a, "", now))

	six, neighbour := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::ffff:1%eth0")
	for range freeFailures {
		h.Failed(six, "", now)
	}
	require.NotZero(t, h.Wait(neighbour, "", now), "one network of IPv6 is one")
	for i := range maxThrottled + 10 {
		h.Failed(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), "", now.Add(time.Duration(i)))
	}
	require.LessOrEqual(t, len(h.all), maxThrottled)
}

// TestWays: a way to the page is of who made it, also after a restart, and there aren't ever
// more of them.
func TestWays(t *testing.T) {
	_, j, path := newTokens(t)
	w, err := NewWays(j)
	require.NoError(t, err)
	a, b, now := Identity{Key: "uid:1"}, Identity{Key: "uid:2"}, time.Now()
	scope, forgotten, err := w.Make(a, now)
	require.NoError(t, err)
	require.Empty(t, forgotten)
	again, err := NewWays(j)
	require.NoError(t, err)
	for _, w := range []*Ways{w, again} {
		require.True(t, w.MadeBy(scope, a))
		require.False(t, w.MadeBy(scope, b))
		require.False(t, w.MadeBy("", a))
	}
	for i := range maxWays {
		_, _, err = w.Make(b, now.Add(time.Duration(i+1)*time.Second))
		require.NoError(t, err)
	}
	require.Len(t, w.all, maxWaysOne+1)
	require.True(t, w.MadeBy(scope, a), "nobody ends others'")
	for i := range maxWays - maxWaysOne {
		_, forgotten, err = w.Make(Identity{Key: fmt.Sprint("token:", i)}, now.Add(time.Hour))
		require.NoError(t, err)
	}
	require.Equal(t, []string{scope}, forgotten, "the oldest")
	require.False(t, w.MadeBy(scope, a))
	_, forgotten, err = w.Make(b, now.Add(2*sessionLength))
	require.NoError(t, err)
	require.Len(t, forgotten, maxWays, "their time is over")
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Contains(t, string(text), wayKey)
}
