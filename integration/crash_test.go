//go:build integration

package integration_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/agent"
	"github.com/trayd/trayd/internal/qemutest"
)

// TestKilledAtEveryStep kills trayd at each point of a change and starts it again.
func TestKilledAtEveryStep(t *testing.T) {
	for _, c := range crashes {
		t.Run(c.name(), func(t *testing.T) {
			r, vm, guest := c.crash(t)
			r.start("")
			r.ready()
			c.check(r, guest)
			r.clean(vm, "vm/cd0")
		})
	}
}

// TestRecoveryKilledAtEveryStep kills trayd in a change, kills the recovery as well at
// each of its steps, and starts it once more.
func TestRecoveryKilledAtEveryStep(t *testing.T) {
	for _, c := range crashes {
		t.Run(c.name(), func(t *testing.T) {
			r, vm, guest := c.crash(t)
			for _, step := range c.recovery {
				t.Log("killed at", step)
				r.start(step)
				r.died()
			}
			r.start("")
			r.ready()
			c.check(r, guest)
			r.clean(vm, "vm/cd0")
		})
	}
}

// TestKilledTogether kills trayd at each point, and QEMU with it: nothing may be left
// in the records.
func TestKilledTogether(t *testing.T) {
	for _, c := range crashes {
		t.Run(c.name(), func(t *testing.T) {
			r, vm, _ := c.crash(t)
			vm.Kill()
			r.start("")
			r.ready()
			require.Eventually(t, func() bool {
				return r.must("-o", "json", "state", "show") == "[]\n"
			}, 5*time.Second, 20*time.Millisecond, "records of a machine that is no more")
			require.Contains(t, r.must("state", "check"), "ok: ")
			require.Equal(t, 1, r.trayctl("eject", "vm").code)
		})
	}
}

// crash takes the drive to its beginning and the change to its fail point.
func (c crash) crash(t *testing.T) (*rig, *qemutest.VM, *qemutest.Guest) {
	r := newRig(t)
	r.extra = "strategy = \"" + c.strategy + "\""
	first, second := r.disc(old), r.disc(fresh)
	vm := r.vm("vm", qemutest.IDE.With("")...)
	guest := vm.Guest(t)
	if !c.empty {
		r.start("")
		r.ready()
		r.must("insert", "vm", first)
		r.stop()
	}
	if c.locked {
		guest.Volume() // the change is a unit attention
		guest.Lock()
	}
	r.start(c.point)
	r.ready()
	if c.verb == guestEjects {
		require.Empty(t, guest.Eject())
		r.died()
		return r, vm, guest
	}
	args := []string{c.verb, "vm"}
	if c.verb != agent.Eject {
		args = append(args, second)
	}
	if c.force {
		args = append(args, "--force")
	}
	got := r.trayctl(args...)
	require.Equal(t, 3, got.code, "trayctl must say that nobody knows: %s%s", got.stdout, got.stderr)
	r.died()
	if c.loads {
		require.Empty(t, guest.Load())
	}
	return r, vm, guest
}

// check looks at the end as the guest, QEMU and the records see it.
func (c crash) check(r *rig, guest *qemutest.Guest) {
	t := r.t
	d := r.settled("vm/cd0")
	require.Equal(t, "closed", d.Tray)
	if c.end == none {
		require.Equal(t, agent.StateEmpty, d.State)
		require.Equal(t, qemutest.NoMedium, guest.Volume())
	} else {
		require.Equal(t, agent.StateLoaded, d.State)
		require.True(t, d.Medium.Ours)
		require.Equal(t, c.end, d.Medium.VolumeID)
		require.Equal(t, c.end, guest.Volume(), "what the guest reads")
	}
	require.Contains(t, r.must("state", "check"), "ok: ")
	if c.locked && !c.force {
		// The guest had been asked before trayd died. Its late answer is put right.
		guest.Unlock()
		require.Empty(t, guest.Eject())
		require.Eventually(t, func() bool { return guest.Volume() == c.end }, 5*time.Second, 20*time.Millisecond,
			"a tray that opened late because of us is closed again")
		r.settled("vm/cd0")
	}
}
