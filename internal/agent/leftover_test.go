package agent

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/qemutest"
)

// exports is another client that exports a node, as a backup does; the function ends it.
func (m *testVM) exports(node string) (end func()) {
	m.r.t.Helper()
	m.qemu("nbd-server-start", map[string]any{"addr": map[string]any{
		"type": "unix", "data": map[string]any{"path": filepath.Join(m.r.dir, "nbd")}}})
	m.qemu("block-export-add", map[string]any{"type": "nbd", "id": "backup", "node-name": node})
	return func() { m.r.t.Helper(); m.qemu("nbd-server-stop", nil) }
}

// TestLeftOver: a disc is out, but a backup still exports its node. The caller hears
// that it is done and what is left; the node goes as soon as the backup ends.
func TestLeftOver(t *testing.T) {
	strategies(t, func(t *testing.T, strategy func(*Options)) {
		for _, restart := range []bool{false, true} {
			r := newRig(t, strategy)
			a, b := r.disc("DISC_A"), r.disc("DISC_B")
			m := r.machine("vm", qemutest.IDE)
			r.start()
			r.done(Insert, "vm", a)
			node := m.state("cd0").Node()
			end := m.exports(node)

			err := r.refused(Incomplete, Eject, "vm", "")
			require.Contains(t, err.Error(), "is done in the machine")
			require.Contains(t, err.Error(), node)
			r.event(EventIncomplete)
			st := r.drive("vm")
			require.Equal(t, StateEmpty, st.State)
			require.Equal(t, "closed", st.Tray)
			require.Equal(t, Done, st.Last.Result)
			require.Len(t, st.Releasing, 1)
			require.Contains(t, st.Releasing[0], node)
			found := r.agent.Check(t.Context())
			require.Len(t, found, 1)
			require.Contains(t, found[0].Problem, node)

			r.done(Insert, "vm", b) // the drive is free, and this change left nothing
			r.done(Eject, "vm", "")
			if restart {
				r.restart()
			}
			end()
			if !restart { // else it may be gone before anybody looks
				require.Contains(t, r.event(EventReleased).Detail, node)
			}
			r.within("the node to go", func() bool { return len(r.agent.Check(t.Context())) == 0 })
			require.Empty(t, r.drive("vm").Releasing)
		}
	})
}

// TestLeftOverByChange: the same where the old disc is replaced step by step; its node
// is QEMU's own until it is deleted.
func TestLeftOverByChange(t *testing.T) {
	r := newRig(t, func(o *Options) { o.Strategy = "stepwise" })
	a, b := r.disc("DISC_A"), r.disc("DISC_B")
	m := r.machine("vm", qemutest.IDE)
	r.start()
	r.done(Insert, "vm", a)
	node := m.state("cd0").Node()
	end := m.exports(node)
	err := r.refused(Incomplete, Replace, "vm", b)
	require.Contains(t, err.Error(), node)
	r.holds("vm", b)
	end()
	r.event(EventReleased)
	r.settled()
}
