package agent

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/audit"
	"github.com/trayd/trayd/internal/library"
	"github.com/trayd/trayd/internal/machine"
	"github.com/trayd/trayd/internal/qemutest"
	"github.com/trayd/trayd/internal/wire"
)

// TestEveryChangeIsAudited: each leaves a line with who, what, where, outcome, and how long it
// took; also one that is refused before it has begun.
func TestEveryChangeIsAudited(t *testing.T) {
	r := installedRig(t)
	pool := t.TempDir()
	r.opts.Library.Pools = []library.Pool{{Name: "local", Type: library.Dir, Path: pool}}
	file := filepath.Join(t.TempDir(), "audit.log")
	log := audit.New(nil)
	log.Configure(file, slog.New(slog.DiscardHandler))
	t.Cleanup(log.Close)
	r.opts.Log = slog.New(log.Handler(slog.DiscardHandler))
	disc := r.disc("DISC_A")
	content, err := os.ReadFile(disc)
	require.NoError(t, err)
	r.machine("vm", qemutest.IDE)
	r.start()
	ctx, by := t.Context(), Caller{Name: "anna"}
	a := r.agent

	for _, row := range []struct {
		do                     func() error
		verb, where, whereName string
		code                   Code // of the refusal; "" is done
	}{
		{func() error { _, err := r.do(Insert, "vm", disc); return err }, "insert", "vm", "vm", ""},
		{func() error { _, err := r.do(Eject, "vm", ""); return err }, "eject", "vm", "vm", ""},
		{func() error { _, err := a.Start(Request{VM: "nope", Verb: Insert, Medium: disc, By: by}); return err }, "insert", "vm", "nope", NoSuchVM},
		{func() error { _, err := a.Cancel("vm", "", by.Name); return err }, "cancel", "vm", "vm", NothingToStop},
		{func() error {
			_, err := a.UploadImage(ctx, "local", "a", false, bytes.NewReader(content), int64(len(content)), by)
			return err
		}, "add image", "image", "a", ""},
		{func() error {
			_, err := a.UploadImage(ctx, "local", "b", true, bytes.NewReader(nil), 0, by)
			return err
		}, "add image", "image", "b", ImageCutOff},
		{func() error { _, err := a.RegisterImage(library.Request{Name: "c"}, by); return err }, "register image", "image", "c", ""},
		{func() error { _, err := a.ChangeImage(ctx, "pin", "", "a", by); return err }, "pin image", "image", "a", ""},
		{func() error { _, err := a.ChangeImage(ctx, "verify", "", "a", by); return err }, "verify image", "image", "a", ""},
		{func() error { _, err := a.ChangeImage(ctx, "cancel", "", "a", by); return err }, "cancel image", "image", "a", "image-not-ready"},
		{func() error { return a.RemoveImage(ctx, "", "a", by) }, "remove image", "image", "a", ""},
		{func() error { return a.RemoveImage(ctx, "", "a", by) }, "remove image", "image", "a", library.NoSuchImage},
		{func() error { _, err := a.CollectImages(ctx, 0, false, by); return err }, "gc images", "", "", ""},
		{func() error { _, err := a.CollectVolumes(ctx, false, by); return err }, "gc volumes", "", "", ""},

		{func() error { _, err := r.do(Eject, "m", ""); return err }, "eject", "vm", "m", ""},
		{func() error {
			on := true
			_, err := a.ChangeVM(ctx, "m", wire.MachineChange{Autostart: &on}, by)
			return err
		}, "set autostart", "vm", "m", ""},
		{func() error { n := 2; _, err := a.ChangeVM(ctx, "m", wire.MachineChange{CPUs: &n}, by); return err }, "set", "vm", "m", ""},
		{func() error { _, err := a.StopVM(ctx, "m", nil, false, by); return err }, "stop", "vm", "m", ""},
		{func() error { return a.KillVM(ctx, "m", by) }, "kill", "vm", "m", ""},
		{func() error { return a.ResetVM(ctx, "m", by) }, "reset", "vm", "m", VMNotRunning},
		{func() error { _, err := a.OpenConsole(ctx, "m", machine.VNCSocket, by); return err }, "console", "vm", "m", "no-screen"},
		{func() error { _, err := a.StartVM(ctx, "vm", by); return err }, "start", "vm", "vm", VMForeign},
		{func() error { _, err := a.CaptureVM(ctx, "nope", wire.CaptureRequest{Name: "x"}, by); return err }, "capture", "vm", "nope", NoSuchVM},
		{func() error {
			_, _, err := a.CreateVM(ctx, wire.MachineRequest{Definition: machine.Definition{Name: "m"}}, by)
			return err
		}, "create", "vm", "m", VMExists},
		{func() error { return busy(r, func() error { _, err := a.StartVM(ctx, "m", by); return err }) }, "start", "vm", "m", VMBusy},
		{func() error { return a.RemoveVM(ctx, "m", false, by) }, "rm", "vm", "m", ""},
	} {
		require.NoError(t, os.Truncate(file, 0))
		began := time.Now()
		err := row.do()
		took := time.Since(began)
		require.Equal(t, row.code, CodeOf(err), "%s: %v", row.verb, err)
		line := lineOfVerb(t, file, row.verb)
		if row.where != "" {
			require.Equal(t, row.whereName, line[row.where], "%v", line)
		}
		require.Contains(t, []any{"anna", "test"}, line["by"], "%v", line)
		require.NotEmpty(t, line["time"])
		require.Contains(t, line, "took", "%v", line)
		require.InDelta(t, took.Seconds()*1000, line["took"], took.Seconds()*1000, "milliseconds: %v", line)
		if row.code == "" {
			require.Equal(t, "done", line["outcome"], "%v", line)
			continue
		}
		require.Equal(t, string(row.code), line["code"], "%v", line)
		require.NotEmpty(t, line["error"])
	}
}

// busy does something while a machine's turn is taken.
func busy(r *rig, f func() error) error {
	done, err := r.agent.machines.turn("m", "tested")
	require.NoError(r.t, err)
	defer done()
	return f()
}

// lineOfVerb is the only line of a verb.
func lineOfVerb(t *testing.T, file, verb string) map[string]any {
	t.Helper()
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	var found []map[string]any
	for text := range strings.Lines(string(b)) {
		var m map[string]any
		require.NoError(t, json.Unmarshal([]byte(text), &m), text)
		if m["verb"] == verb {
			found = append(found, m)
		}
	}
	require.Len(t, found, 1, "%s in %s", verb, b)
	return found[0]
}
