//go:build integration || edge

// Package integration_test runs trayd and trayctl as they are shipped against real
// QEMU processes, real guests and a real systemd.
package integration_test

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/blockdev"
	"github.com/trayd/trayd/internal/agent"
	"github.com/trayd/trayd/internal/qemutest"
	"github.com/trayd/trayd/qmp"
	"github.com/trayd/trayd/state"
)

// bin holds the programs under test: an edge host has them installed, elsewhere TestMain
// builds them.
var bin = "/usr/bin"

// rig is one host: a directory with sockets, discs, a state file, and a trayd.
type rig struct {
	t       testing.TB
	dir     string
	extra   string // more lines of the [tray] section
	api     string // more lines of the [api] section
	limit   string // command_timeout
	qemuImg string // in place of the one under test
	qemu    string // in place of the one under test, for machines of trayd's own
	units   bool   // machines of trayd's own are units: its places are the installed ones
	daemon  *exec.Cmd
	log     bytes.Buffer
}

func newRig(t testing.TB) *rig {
	// Not t.TempDir: a socket's path has 107 bytes, and test names are long.
	dir, err := os.MkdirTemp("", "trayd-")
	require.NoError(t, err)
	require.NoError(t, os.Chmod(dir, 0o755)) // machines' sockets are another user's
	r := &rig{t: t, dir: dir, limit: commandLimit}
	t.Cleanup(func() {
		r.kill()
		r.killMachines()
		require.NoError(t, os.RemoveAll(dir))
		if t.Failed() {
			t.Logf("what trayd wrote:\n%s", r.log.String())
		}
	})
	for _, sub := range []string{"run", "discs"} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, sub), 0o755))
	}
	return r
}

func (r *rig) discs() string           { return filepath.Join(r.dir, "discs") }
func (r *rig) disc(name string) string { return qemutest.Disc(r.t, r.discs(), name) }
func (r *rig) socket() string          { return filepath.Join(r.dir, "api.sock") }
func (r *rig) stateFile() string       { return filepath.Join(r.dir, "state", "state.journal") }

// vm starts a machine that trayd will find.
func (r *rig) vm(name string, args ...string) *qemutest.VM {
	return qemutest.Start(r.t, filepath.Join(r.dir, "run"), name, args...)
}

// running starts a machine that isn't paused, but whose processor does nothing. It has
// a second monitor, for what another client does.
func (r *rig) running(name string, args ...string) (*qemutest.VM, *qmp.Conn) {
	side := filepath.Join(r.dir, name+".side")
	args = append(args, qemutest.Idle(r.t, r.dir)...)
	vm := r.vm(name, append(args, "-qmp", "unix:"+side+",server=on,wait=off")...)
	conn, err := qmp.Dial(r.t.Context(), side, &qmp.Options{Timeout: time.Minute}) // on a host under load
	require.NoError(r.t, err)
	r.t.Cleanup(func() { conn.Close() })
	qemutest.Run(r.t, conn)
	return vm, conn
}

// start starts trayd, with a fail point if one is named, and waits for its API.
func (r *rig) start(failpoint string) {
	r.t.Helper()
	program := "trayd"
	if failpoint != "" {
		program = "trayd-failpoints"
	}
	config := r.configure(filepath.Join(r.dir, "trayd.toml"), filepath.Join(r.dir, "state"))
	if r.units {
		config = r.configure("/etc/trayd/trayd.toml", "/var/lib/trayd")
	}
	r.daemon = exec.Command(filepath.Join(bin, program), "--config", config)
	r.daemon.Env = append(os.Environ(), "TRAYD_FAILPOINT="+failpoint)
	r.daemon.Stdout, r.daemon.Stderr = &r.log, &r.log
	r.daemon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error, 1)
	daemon := r.daemon
	go func() { // Pdeathsig follows the thread that forked
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		started <- daemon.Start()
		for daemon.ProcessState == nil && daemon.Process != nil {
			if err := syscall.Kill(daemon.Process.Pid, 0); err != nil {
				return
			}
			time.Sleep(50 * time.Millisecond) // the thread only has to live as long
		}
	}()
	require.NoError(r.t, <-started)
}

// commandLimit is command_timeout where nothing else is wanted.
const commandLimit = "2s"

// configure writes a configuration.
func (r *rig) configure(path, stateDir string) string {
	r.t.Helper()
	run := "process"
	if r.units {
		run = "systemd"
	}
	require.NoError(r.t, os.WriteFile(path, fmt.Appendf(nil,
		"state_dir = %q\nmonitors = [%q]\nmedia_roots = [%q]\ncommand_timeout = %q\n[api]\nsocket = %q\n%s\n"+
			"[machines]\nrun = %q\nrun_dir = %q\naccel = \"tcg\"\nqemu_img = %q\nqemu = %q\n[tray]\n%s\n",
		stateDir, filepath.Join(r.dir, "run/*.qmp"), r.discs(), r.limit, r.socket(), r.api, run, r.machinesRun(), cmp.Or(r.qemuImg, qemutest.Image()), cmp.Or(r.qemu, qemutest.Binary()), r.extra), 0o644))
	return path
}

// ready waits until trayd's API answers; it may die instead, at a fail point.
func (r *rig) ready() {
	r.t.Helper()
	require.Eventually(r.t, func() bool {
		return r.trayctl("version").code == 0 && r.trayctl("vms").code == 0
	}, 10*time.Second, 20*time.Millisecond, "trayd does not answer: %s", &r.log)
}

// died waits for trayd's own death at its fail point.
func (r *rig) died() {
	r.t.Helper()
	done := make(chan error, 1)
	go func() { done <- r.daemon.Wait() }()
	select {
	case err := <-done:
		require.ErrorContains(r.t, err, "killed", "trayd died of something else than its fail point")
	case <-time.After(15 * time.Second):
		require.FailNow(r.t, "trayd did not come to its fail point")
	}
	r.daemon = nil
}

// kill kills trayd as the out-of-memory killer would.
func (r *rig) kill() {
	if r.daemon != nil {
		_ = r.daemon.Process.Kill() // it may have died
		_ = r.daemon.Wait()
		r.daemon = nil
	}
}

// stop stops trayd as systemd does.
func (r *rig) stop() {
	r.t.Helper()
	require.NoError(r.t, r.daemon.Process.Signal(syscall.SIGTERM))
	require.NoError(r.t, r.daemon.Wait())
	r.daemon = nil
}

// result is what a command printed and how it ended.
type result struct {
	code           int
	stdout, stderr string
}

func (r *rig) trayctl(args ...string) result { return r.trayctlIn("", args...) }

// command is a trayctl that asks this host's trayd.
func (r *rig) command(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(bin, "trayctl"), args...)
	cmd.Env = append(os.Environ(), "TRAYD_SOCKET="+r.socket())
	return cmd
}

// trayctlIn runs trayctl in a directory.
func (r *rig) trayctlIn(dir string, args ...string) result {
	r.t.Helper()
	cmd := r.command(args...)
	cmd.Dir = dir
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if cmd.ProcessState == nil {
		require.NoError(r.t, err)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

// must runs a command that has to succeed.
func (r *rig) must(args ...string) string {
	r.t.Helper()
	got := r.trayctl(args...)
	require.Zero(r.t, got.code, "trayctl %s: %s", strings.Join(args, " "), got.stderr)
	return got.stdout
}

func (r *rig) driveStatus(name string) agent.DriveStatus {
	r.t.Helper()
	var d agent.DriveStatus
	require.NoError(r.t, json.Unmarshal([]byte(r.must("-o", "json", "drives", name)), &d))
	return d
}

// settled waits until nothing is under way on a drive and the check finds nothing.
func (r *rig) settled(name string) agent.DriveStatus {
	r.t.Helper()
	var d agent.DriveStatus
	require.Eventually(r.t, func() bool {
		got := r.trayctl("-o", "json", "drives", name)
		d = agent.DriveStatus{}
		return got.code == 0 && json.Unmarshal([]byte(got.stdout), &d) == nil &&
			d.Operation == nil && (d.State == agent.StateEmpty || d.State == agent.StateLoaded)
	}, 10*time.Second, 50*time.Millisecond, "the drive does not settle: %+v", d)
	return d
}

// clean is the leak check that ends every test: the records agree with QEMU, and
// nothing is left in QEMU or the kernel but what is in the drive.
func (r *rig) clean(vm *qemutest.VM, drive string) {
	r.t.Helper()
	d := r.settled(drive)
	require.Equal(r.t, "closed", d.Tray)
	r.stop() // the monitor serves one client
	conn := vm.Dial(r.t)
	defer conn.Close()
	ctx := r.t.Context()
	// A paused QEMU up to 8.2 keeps descriptors until it runs.
	require.NoError(r.t, conn.Execute(ctx, "cont", nil, nil))
	loans, err := blockdev.Lent(ctx, conn, "trayd-")
	require.NoError(r.t, err)
	for _, l := range loans {
		_ = blockdev.TakeBack(ctx, conn, l.FDSet) // gone by itself from 10.0 on
	}
	nodes, err := blockdev.Nodes(ctx, conn, "trayd-")
	require.NoError(r.t, err)
	var in []string
	if d.Medium != nil && d.Medium.Ours {
		in = []string{d.Medium.Node}
	}
	require.ElementsMatch(r.t, in, nodes, "nodes in no drive")
	open := vm.OpenFiles(r.t, r.discs())
	if d.Medium == nil {
		require.Empty(r.t, open, "files that QEMU still holds open")
	} else {
		require.Len(r.t, open, 1, "files that QEMU holds open")
	}
	report, err := state.Check(r.stateFile())
	require.NoError(r.t, err)
	require.Nil(r.t, report.Damage)
}
