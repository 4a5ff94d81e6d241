package hook

import (
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/internal/wire"
)

// asTrayd has this program be a trayd with hooks in that folder.
const asTrayd = "HOOK_TEST_AS_TRAYD"

func TestMain(m *testing.M) {
	dir := os.Getenv(asTrayd)
	if dir == "" {
		goleak.VerifyTestMain(m)
		return
	}
	status, _ := os.ReadFile("/proc/self/status")
	fmt.Printf("trayd: %s\n", status)
	h := New(Options{Dir: dir, Timeout: patience}, slog.New(slog.NewTextHandler(os.Stdout, nil)))
	h.Deliver(wire.Event{ID: 1, Type: wire.EventLoaded})
	for end := time.Now().Add(patience); len(h.Counts()) == 0 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	h.Close()
}

// TestHooksHaveNoCapabilities, also where trayd has some, as under systemd. Only root can
// give it any.
func TestHooksHaveNoCapabilities(t *testing.T) {
	dir, err := os.MkdirTemp("", "hooks-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	require.NoError(t, os.Chmod(dir, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "look"), []byte("#!/bin/sh\ngrep CapEff /proc/self/status\n"), 0o600))
	require.NoError(t, os.Chmod(filepath.Join(dir, "look"), 0o755))
	// Where go test has it, only its owner gets to it.
	program := filepath.Join(dir, "as.trayd")
	require.NoError(t, exec.Command("cp", os.Args[0], program).Run())
	cmd := exec.CommandContext(t.Context(), program)
	cmd.Env = append(os.Environ(), asTrayd+"="+dir)
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Credential:  &syscall.Credential{Uid: 65534, Gid: 65534},
			AmbientCaps: []uintptr{unix.CAP_DAC_OVERRIDE},
		}
	}
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	if os.Geteuid() == 0 {
		require.Contains(t, string(out), "\nCapAmb:\t0000000000000002\n")
	}
	require.Contains(t, string(out), `said="CapEff:\t0000000000000000"`)
}
