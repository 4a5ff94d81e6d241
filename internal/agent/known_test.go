package agent

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/qemutest"
)

// TestKnownWithoutAsking: what monitoring sees follows what happens, also where the guest
// did it, and no QEMU is asked for it.
func TestKnownWithoutAsking(t *testing.T) {
	r := newRig(t)
	disc := r.disc("DISC_A")
	m := r.machine("a", qemutest.IDE)
	r.machine("b", qemutest.IDE)
	r.start()
	known := func(drives map[string]int) func() bool {
		return func() bool {
			k := r.agent.Known()
			return len(k.Drives) == len(drives) && k.Drives["empty"] == drives["empty"] && k.Drives["loaded"] == drives["loaded"] && k.Drives["unknown"] == drives["unknown"]
		}
	}
	r.within("two empty drives", known(map[string]int{"empty": 2}))
	r.done(Insert, "a", disc)
	r.within("a disc", known(map[string]int{"empty": 1, "loaded": 1}))
	r.done(Eject, "a", "")
	r.within("none", known(map[string]int{"empty": 2}))
	r.done(Insert, "a", disc)
	k := r.agent.Known()
	require.Equal(t, [3]int{2, 0, 0}, [3]int{k.Attached, k.Unreachable, k.Stopped})

	// A QEMU that doesn't answer doesn't hold it up.
	m.Freeze(t)
	defer m.Thaw(t)
	began := time.Now()
	r.agent.Known()
	require.Less(t, time.Since(began), r.opts.Command/2)
}
