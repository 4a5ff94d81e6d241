//go:build integration

package integration_test

import (
	"bytes"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/blockdev"
	"github.com/trayd/trayd/internal/agent"
	"github.com/trayd/trayd/internal/qemutest"
)

// TestKilledWhileRestoring: a stepwise change has taken the old disc out, and QEMU
// refuses the new one, since a backup exports that very node meanwhile. The old disc
// came with QEMU's command line and is gone with its node: its file is opened again,
// and trayd killed just then.
func TestKilledWhileRestoring(t *testing.T) {
	for _, step := range []string{"settle-restore", "outcome-written"} {
		t.Run(step, func(t *testing.T) {
			ctx := t.Context()
			r := newRig(t)
			r.extra = `strategy = "stepwise"`
			first, second := r.disc(old), r.disc(fresh)
			vm, side := r.running("vm", qemutest.Legacy.With(first)...)
			guest := vm.Guest(t)
			require.Equal(t, old, guest.Volume())
			guest.Lock()
			r.start(step)
			r.ready()

			cmd := r.command("change", "vm", second, "--wait", "1m")
			var said bytes.Buffer
			cmd.Stderr = &said
			require.NoError(t, cmd.Start())
			require.Eventually(t, func() bool {
				d := r.driveStatus("vm/ide1-cd0")
				return d.Operation != nil && d.Operation.Phase == agent.Waiting
			}, 5*time.Second, 20*time.Millisecond, "it does not wait for the guest")
			nodes, err := blockdev.Nodes(ctx, side, "trayd-")
			require.NoError(t, err)
			require.Len(t, nodes, 1, "the new disc's node")
			type args = map[string]any
			require.NoError(t, side.Execute(ctx, "nbd-server-start", args{"addr": args{
				"type": "unix", "data": args{"path": filepath.Join(r.dir, "nbd")}}}, nil))
			require.NoError(t, side.Execute(ctx, "block-export-add", args{"type": "nbd", "id": "backup", "node-name": nodes[0]}, nil))
			guest.Unlock()
			require.Error(t, cmd.Wait())
			require.Equal(t, 3, cmd.ProcessState.ExitCode(), said.String())
			r.died()
			require.NoError(t, side.Execute(ctx, "nbd-server-stop", nil, nil))

			if step == "settle-restore" {
				r.start("outcome-written") // and again
				r.died()
			}
			r.start("")
			r.ready()
			d := r.settled("vm/ide1-cd0")
			require.Equal(t, agent.StateLoaded, d.State)
			require.Equal(t, first, d.Medium.Path)
			require.Equal(t, old, guest.Volume())
			require.NotEqual(t, agent.Done, d.Last.Result)
			// The export held the new disc's node when the drive was settled: it is swept
			// up after the connect.
			require.Eventually(t, func() bool {
				got := r.trayctl("state", "check")
				t.Log(got.stdout)
				return got.code == 0
			}, 5*time.Second, 20*time.Millisecond, "something is left")
			r.clean(vm, "vm/ide1-cd0")
		})
	}
}
