package qemutest

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/blockdev"
	"github.com/trayd/trayd/qmp"
)

// TestGuest shows that the played guest meets every drive as a driver does, whether the
// machine runs or not; and that another guest can follow.
func TestGuest(t *testing.T) {
	for _, kind := range Drives {
		t.Run(kind.Name, func(t *testing.T) {
			dir := t.TempDir()
			a, b := Disc(t, dir, "DISC_A"), Disc(t, dir, "DISC_B")
			vm := Start(t, dir, "vm", append(kind.With(a), Idle(t, dir)...)...)
			t.Run("stopped", func(t *testing.T) { playGuest(t, newHost(t, vm), vm.Guest(t), a, b) })
			t.Run("running", func(t *testing.T) {
				h := newHost(t, vm)
				Run(t, h.conn)
				playGuest(t, h, vm.Guest(t), a, b)
			})
		})
	}
}

func playGuest(t *testing.T, h host, g *Guest, a, b string) {
	require.NoError(t, h.change(a))
	require.Equal(t, "DISC_A", g.Volume())
	g.EjectRequested() // takes note of the new disc, which is the first event
	require.False(t, g.EjectRequested())

	t.Log("a locked door")
	g.Lock()
	require.Error(t, h.eject(), "QEMU keeps to the lock")
	require.True(t, g.EjectRequested(), "and asks")
	require.False(t, g.EjectRequested(), "once")
	require.NotEmpty(t, g.Eject())
	require.Equal(t, "DISC_A", g.Volume())

	t.Log("an open tray")
	g.Unlock()
	require.Empty(t, g.Eject())
	require.Equal(t, NoMedium, g.Volume())
	require.Empty(t, g.Load())
	require.Equal(t, "DISC_A", g.Volume())

	t.Log("another disc is a unit attention: the guest sees it once")
	require.NoError(t, h.change(b))
	const unitAttention = 6
	testUnitReady := make([]byte, 6)
	require.Eventually(t, func() bool {
		_, sense := g.adapter.send(0, testUnitReady)
		return sense != nil && sense[2]&0xf == unitAttention
	}, time.Second, time.Millisecond)
	require.Equal(t, "DISC_B", g.Volume())
	_, sense := g.adapter.send(0, testUnitReady)
	require.Nil(t, sense)

	t.Log("a reset lets the door go")
	g.Lock()
	h.reset()
	require.Equal(t, "DISC_B", g.Volume())
	require.NoError(t, h.eject())

	t.Log("an empty drive, and so many commands that rings come round")
	for range 70 {
		require.Equal(t, NoMedium, g.Volume())
	}
}

// host is what a test does to the machine from outside.
type host struct {
	t    *testing.T
	conn *qmp.Conn
	id   string // the drive's
}

func newHost(t *testing.T, vm *VM) host {
	h := host{t: t, conn: vm.Dial(t)}
	drives, err := blockdev.ObserveAll(t.Context(), h.conn)
	require.NoError(t, err)
	require.Len(t, drives, 1)
	h.id = drives[0].ID
	return h
}

func (h host) execute(command string, args any) error {
	return h.conn.Execute(h.t.Context(), command, args, nil)
}

func (h host) change(disc string) error {
	return h.execute("blockdev-change-medium", map[string]any{"id": h.id, "filename": disc, "format": "raw", "read-only-mode": "read-only"})
}

func (h host) eject() error { return h.execute("eject", map[string]any{"id": h.id}) }

// reset ends when the machine has been reset, which it is after QEMU's answer.
func (h host) reset() {
	h.t.Helper()
	events := h.conn.Subscribe(64)
	defer events.Close()
	require.NoError(h.t, h.execute("system_reset", nil))
	ctx, cancel := context.WithTimeout(h.t.Context(), 5*time.Second)
	defer cancel()
	for {
		select {
		case e := <-events.C:
			if e.Name == "RESET" {
				return
			}
		case <-ctx.Done():
			require.FailNow(h.t, "no reset")
		}
	}
}
