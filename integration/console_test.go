//go:build integration

package integration_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/agent"
	"github.com/trayd/trayd/internal/qemutest"
	"github.com/trayd/trayd/internal/wire"
)

// consoleRig is a host on which trayd runs machines of its own.
func consoleRig(t *testing.T) *rig {
	r := newRig(t)
	r.start("")
	r.ready()
	return r
}

// echoing makes a machine whose guest echoes, and starts it.
func (r *rig) echoing(name string, args ...string) {
	r.t.Helper()
	boot := filepath.Join(r.dir, "boot")
	disc := filepath.Join(r.discs(), "echo.iso")
	if _, err := os.Stat(disc); err != nil {
		require.NoError(r.t, os.Mkdir(boot, 0o755))
		require.NoError(r.t, os.WriteFile(filepath.Join(boot, "boot.bin"), append(echo, make([]byte, 2048-len(echo))...), 0o644))
		out, err := exec.Command("xorriso", "-as", "mkisofs", "-quiet", "-V", "ECHO", "-b", "boot.bin", "-no-emul-boot", "-boot-load-size", "4", "-o", disc, boot).CombinedOutput()
		require.NoError(r.t, err, "%s", out)
	}
	r.must(append([]string{"vm", "create", name, "--iso", disc, "--memory", "64M", "--network", "none", "--start"}, args...)...)
	var vm wire.VMStatus
	require.NoError(r.t, json.Unmarshal([]byte(r.must("vm", "show", name, "-o", "json")), &vm))
	r.t.Cleanup(func() { // before trayd is killed: it is a process of its own
		if r.daemon != nil && r.trayctl("vm", "kill", name).code == 0 {
			return
		}
		if cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", vm.PID)); bytes.Contains(cmdline, []byte(r.dir)) {
			_ = syscall.Kill(vm.PID, syscall.SIGKILL) // it may just have ended
		}
	})
	require.Eventually(r.t, func() bool {
		return r.piped(name, "a", "200ms").stdout == "A"
	}, 20*time.Second, 100*time.Millisecond, "the guest of %s does not answer", name)
}

// dial opens a console as a browser does, or gives the answer that refuses it.
func (r *rig) dial(path string, h http.Header) (*websocket.Conn, *http.Response, error) {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", r.socket())
	}}
	ws, resp, err := websocket.Dial(r.t.Context(), "ws://trayd"+path, &websocket.DialOptions{HTTPClient: &http.Client{Transport: transport}, HTTPHeader: h, Subprotocols: []string{"binary"}})
	if err == nil {
		ws.SetReadLimit(-1)
	}
	return ws, resp, err
}

// refused wants a console to be refused with a problem.
func (r *rig) refused(path string, h http.Header, status int, code string) wire.Problem {
	r.t.Helper()
	_, resp, err := r.dial(path, h)
	require.Error(r.t, err)
	require.NotNil(r.t, resp, "%v", err)
	require.Equal(r.t, status, resp.StatusCode)
	require.Equal(r.t, "application/problem+json", resp.Header.Get("Content-Type"))
	var p wire.Problem
	require.NoError(r.t, json.NewDecoder(io.LimitReader(resp.Body, 1<<10)).Decode(&p))
	require.Equal(r.t, code, p.Code)
	require.NotEmpty(r.t, p.Next)
	return p
}

// opened is a console that has to be had.
func (r *rig) opened(path string) *websocket.Conn {
	r.t.Helper()
	ws, _, err := r.dial(path, nil)
	require.NoError(r.t, err)
	r.t.Cleanup(func() { ws.CloseNow() })
	return ws
}

// TestConsoleLimits: there is an end to consoles, every end gives back its place, and trayd
// stops at once whoever looks.
func TestConsoleLimits(t *testing.T) {
	r := consoleRig(t)
	r.echoing("m1")
	fds := func() int {
		all, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", r.daemon.Process.Pid))
		require.NoError(t, err)
		return len(all)
	}
	before := fds()
	var open []*websocket.Conn
	for range agent.MaxConsoles {
		open = append(open, r.opened("/v1/vms/m1/console"))
	}
	r.refused("/v1/vms/m1/console", nil, 503, "too-many-consoles")
	r.refused("/v1/vms/m1/serial", nil, 503, "too-many-consoles")
	require.Contains(t, r.trayctl("vm", "console", "m1").stderr, "next: close one of them", "before anything listens")
	got := r.trayctl("vm", "console", "m1", "--serial")
	require.Equal(t, 1, got.code)
	require.Contains(t, got.stderr, "next: close one of them")
	for _, ws := range open {
		ws.CloseNow()
	}
	require.Eventually(t, func() bool { return fds() <= before }, 5*time.Second, 20*time.Millisecond, "descriptors are left")
	r.echoes("m1", "b", "B")

	for range agent.MaxConsoles { // of clients that neither read nor answer
		r.opened("/v1/vms/m1/console")
	}
	began := time.Now()
	r.stop()
	require.Less(t, time.Since(began), 4*time.Second)
	require.Equal(t, 2*agent.MaxConsoles, len(regexp.MustCompile(`msg=closed audit=true .* console=vnc `).FindAllString(r.log.String(), -1)))
	require.Contains(t, r.log.String(), "reason=\"trayd stops\"")
}

// TestConsoleRefused: who can't have a console is told why, and what to do.
func TestConsoleRefused(t *testing.T) {
	r := consoleRig(t)
	r.echoing("m1")
	r.vm("theirs", qemutest.SATA.With("")...)
	r.must("vm", "create", "off", "--memory", "64M", "--network", "none")
	r.must("vm", "create", "bare", "--memory", "64M", "--network", "none", "--vnc=false", "--serial=false", "--start")
	require.Eventually(t, func() bool { return strings.Contains(r.must("vms"), "theirs") }, 10*time.Second, 50*time.Millisecond)
	for _, row := range []struct {
		vm, code string
		status   int
	}{
		{"nope", "no-such-vm", 404},
		{"..%2f..%2fetc", "no-such-vm", 404},
		{"theirs", "vm-not-ours", 409},
		{"off", "vm-not-running", 409},
		{"bare", "no-screen", 409},
	} {
		for _, kind := range []string{"console", "serial"} {
			r.refused("/v1/vms/"+row.vm+"/"+kind, nil, row.status, row.code)
		}
		if strings.Contains(row.vm, "%") {
			continue
		}
		for _, args := range [][]string{{"--serial"}, {}} {
			got := r.trayctl(append([]string{"vm", "console", row.vm}, args...)...)
			require.Equal(t, 1, got.code, "%s", got.stderr)
			require.Contains(t, got.stderr, "\nnext: ")
			require.NotContains(t, got.stdout, "vnc://")
		}
	}
	t.Log("pages of others")
	for _, path := range []string{"/v1/vms/m1/console", "/v1/vms/m1/serial"} {
		r.refused(path, http.Header{"Origin": {"http://evil.example"}}, 403, "forbidden")
		ws, _, err := r.dial(path, http.Header{"Origin": {"http://trayd"}})
		require.NoError(t, err)
		ws.CloseNow()
	}
	t.Log("wrong usage")
	for _, args := range [][]string{
		{"--listen", "0.0.0.0:5901"}, {"--listen", ":5901"}, {"--listen", "5901"}, {"--listen", "[::]:0"},
		{"--for", "5s"}, {"--serial", "--for", "-1s"}, {"--serial", "--listen", "127.0.0.1:0"},
	} {
		got := r.trayctl(append([]string{"vm", "console", "m1"}, args...)...)
		require.Equal(t, 2, got.code, "%v: %s", args, got.stderr)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	got := r.trayctl("vm", "console", "m1", "--listen", l.Addr().String())
	require.Equal(t, 1, got.code)
	require.Contains(t, got.stderr, "next: use another port")
	r.must("vm", "kill", "bare")
	r.stop()
	got = r.trayctl("vm", "console", "m1", "--serial")
	require.Equal(t, 4, got.code)
}
