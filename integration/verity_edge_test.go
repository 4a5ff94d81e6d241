//go:build edge

package integration_test

import (
	"bufio"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/agent"
	"github.com/trayd/trayd/internal/qemutest"
)

// TestVerity: a byte of a disc is changed beneath a verity volume. The guest gets an
// error and not the changed byte, and whoever follows the events hears of it by the
// volume's name.
func TestVerity(t *testing.T) {
	r := newVolumeRig(t)
	r.extra = r.verity("installer", "INSTALLER")
	_, guest := r.machine("vm", qemutest.SATA.With("")...)
	r.machine("vm2", qemutest.SATA.With("")...)
	r.start("")
	r.up()
	r.testVerity(guest)
}

// testVerity wants the machines vm, whose guest it is, and vm2, and the volume dm:installer.
func (r *volumeRig) testVerity(guest *qemutest.Guest) {
	t := r.t
	events := r.events()
	r.must("insert", "vm", "dm:installer")
	r.must("insert", "vm2", "dm:installer")
	r.shows("vm/cd0", "dm:installer", "INSTALLER", guest)
	require.Equal(t, []string{"trayd-installer"}, r.mine())

	flip := func() {
		t.Helper()
		f, err := os.OpenFile(filepath.Join(r.dir, "installer.data"), os.O_RDWR, 0)
		require.NoError(t, err)
		defer f.Close()
		const at = 16*2048 + 100 // where the volume identifier's sector has nothing that anybody reads
		b := make([]byte, 1)
		_, err = f.ReadAt(b, at)
		require.NoError(t, err)
		b[0] ^= 1
		_, err = f.WriteAt(b, at)
		require.NoError(t, err)
		require.NoError(t, f.Sync())
		require.NoError(t, os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0))
	}
	flip()
	since := time.Now()
	said := guest.Volume()
	require.Contains(t, said, "sense key", "what the guest reads")
	require.NotEqual(t, qemutest.NoMedium, said)
	t.Log("the guest:", said)
	heard := make(map[string]agent.Event)
	for len(heard) < 2 { // each of the drives hears of it
		e := r.next(events, agent.EventVolumeCorrupt)
		heard[e.VM+"/"+e.Drive] = e
	}
	t.Logf("the event came %s after the read: %s", time.Since(since).Round(time.Millisecond), heard["vm/cd0"].Detail)
	require.Contains(t, heard["vm/cd0"].Detail, "dm:installer")
	require.Contains(t, heard, "vm2/cd0")

	t.Log("the disc can still be taken out, and one that is damaged isn't let in")
	r.must("eject", "vm")
	r.must("eject", "vm2")
	require.Empty(t, r.mine())
	p := r.fails(1, "insert", "vm", "dm:installer")
	require.Contains(t, []string{string(agent.Unreadable), string(agent.NotADisc)}, p.Code, p.Detail)
	r.shows("vm/cd0", "", "", guest)
	require.Empty(t, r.mine())

	flip()
	r.must("insert", "vm", "dm:installer")
	r.shows("vm/cd0", "dm:installer", "INSTALLER", guest)
	r.must("eject", "vm")
	require.Empty(t, r.mine())
	r.ok()
}

// events follows what `trayctl events` prints.
func (r *volumeRig) events() <-chan agent.Event {
	cmd := r.command("-o", "json", "events")
	out, err := cmd.StdoutPipe()
	require.NoError(r.t, err)
	require.NoError(r.t, cmd.Start())
	events := make(chan agent.Event, 100)
	go func() {
		defer close(events)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var e agent.Event
			if json.Unmarshal(lines.Bytes(), &e) == nil {
				events <- e
			}
		}
		_ = cmd.Wait() // it is killed
	}()
	r.t.Cleanup(func() { _ = cmd.Process.Kill() })
	return events
}

// next waits for an event of a type.
func (r *volumeRig) next(events <-chan agent.Event, kind string) agent.Event {
	r.t.Helper()
	over := time.After(soon)
	for {
		select {
		case e, ok := <-events:
			require.True(r.t, ok, "the events ended")
			if e.Type == kind {
				return e
			}
		case <-over:
			require.FailNow(r.t, "no event", kind)
		}
	}
}
