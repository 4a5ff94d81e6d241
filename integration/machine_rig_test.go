//go:build integration || edge

package integration_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/qemutest"
	"github.com/trayd/trayd/internal/wire"
)

// machinesRun is where machines of trayd's own have their sockets.
func (r *rig) machinesRun() string {
	if r.units {
		return "/run/trayd/machines"
	}
	return filepath.Join(r.dir, "m")
}

func (r *rig) machineDir(name ...string) string {
	if r.units {
		return filepath.Join(append([]string{"/var/lib/trayd/machines"}, name...)...)
	}
	return filepath.Join(append([]string{r.dir, "state", "machines"}, name...)...)
}

// qemus are the processes of this host's machines, by the machine's name.
func (r *rig) qemus() map[string]int {
	all := make(map[string]int)
	procs, err := os.ReadDir("/proc")
	require.NoError(r.t, err)
	for _, p := range procs {
		pid, err := strconv.Atoi(p.Name())
		if err != nil {
			continue
		}
		line, err := os.ReadFile(filepath.Join("/proc", p.Name(), "cmdline"))
		if err != nil || !bytes.Contains(line, []byte(r.machinesRun()+"/")) {
			continue
		}
		exe, err := os.Readlink(filepath.Join("/proc", p.Name(), "exe"))
		if err != nil || !strings.HasPrefix(filepath.Base(exe), "qemu-system") {
			continue
		}
		args := strings.Split(string(line), "\x00")
		if i := slices.IndexFunc(args, func(a string) bool { return strings.HasPrefix(a, "guest=") }); i >= 0 {
			name := strings.TrimPrefix(args[i], "guest=")
			require.Zero(r.t, all[name], "two processes of machine %s", name)
			qemutest.RequireTested(r.t, exe)
			all[name] = pid
		}
	}
	return all
}

// killMachines ends what a test has left running.
func (r *rig) killMachines() {
	for _, pid := range r.qemus() {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
	}
	for end := time.Now().Add(5 * time.Second); len(r.qemus()) > 0 && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
}

// vms are the machines, by name.
func (r *rig) vmStatus() map[string]wire.VMStatus {
	r.t.Helper()
	var list []wire.VMStatus
	require.NoError(r.t, json.Unmarshal([]byte(r.must("-o", "json", "vms")), &list))
	all := make(map[string]wire.VMStatus)
	for _, v := range list {
		all[v.Name] = v
	}
	return all
}

func (r *rig) showVM(name string) wire.VMStatus {
	r.t.Helper()
	var v wire.VMStatus
	require.NoError(r.t, json.Unmarshal([]byte(r.must("-o", "json", "vm", "show", name)), &v))
	return v
}

// untilVM waits until a machine is in a state.
func (r *rig) untilVM(name, state string) {
	r.t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		v := r.vmStatus()[name]
		if v.State == state {
			return
		}
		require.True(r.t, time.Now().Before(end), "%s doesn't become %s: %+v", name, state, v)
	}
}

// whole demands that there is no half machine: each process and each socket is of a machine
// that runs, each directory is a machine's, each machine has its files and no others, and
// what is in a drive is what the definition says.
func (r *rig) whole() {
	t := r.t
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		wrong := r.notWhole(r.vmStatus())
		if wrong == "" {
			break
		}
		t.Log(time.Now().Format("05.000"), wrong)
		require.True(t, time.Now().Before(end), "%s", wrong)
	}
	require.Contains(t, r.must("state", "check"), "ok: ")
}

func (r *rig) notWhole(vms map[string]wire.VMStatus) string {
	qemus := r.qemus()
	for name, v := range vms {
		switch {
		case v.State != "running" && v.State != wire.VMStopped:
			return fmt.Sprintf("%s is %s: %s", name, v.State, v.Reason)
		case v.State == "running" && qemus[name] != v.PID:
			return fmt.Sprintf("%s runs as %d, and is said to run as %d", name, qemus[name], v.PID)
		case v.State != "running" && qemus[name] != 0:
			return fmt.Sprintf("%s is %s, and pid %d runs", name, v.State, qemus[name])
		}
		delete(qemus, name)
		for _, d := range v.Drives {
			if d.Operation != nil || len(d.Releasing) > 0 {
				return fmt.Sprintf("drive %s/%s isn't settled", name, d.Name)
			}
		}
	}
	if len(qemus) > 0 {
		return fmt.Sprintf("processes of no machine: %v", qemus)
	}
	for _, dir := range []string{r.machineDir(), r.machinesRun()} {
		entries, err := os.ReadDir(dir)
		if os.IsNotExist(err) {
			continue
		}
		require.NoError(r.t, err)
		for _, e := range entries {
			v, ok := vms[e.Name()]
			if !ok || dir == r.machinesRun() && v.State != "running" {
				return "what is of no machine: " + filepath.Join(dir, e.Name())
			}
		}
	}
	for name := range vms {
		if wrong := r.filesOf(name); wrong != "" {
			return wrong
		}
	}
	return ""
}

// filesOf compares a machine's files with its definition.
func (r *rig) filesOf(name string) string {
	d := r.showVM(name).Machine.Definition
	want := map[string]bool{"machine.toml": true}
	for _, k := range d.Disks {
		want[k.Name+".qcow2"] = true
	}
	if d.Firmware == wire.FirmwareUEFI {
		want["vars.fd"] = true
	}
	if slices.ContainsFunc(d.CDROMs, func(c wire.CDROM) bool { return c.Seed }) {
		want["seed.iso"] = true
	}
	entries, err := os.ReadDir(r.machineDir(name))
	require.NoError(r.t, err)
	for _, e := range entries {
		switch e.Name() {
		case "lock", "qemu.log", "serial.log": // made by the first start
			continue
		}
		if !want[e.Name()] {
			return "a file of nothing: " + r.machineDir(name, e.Name())
		}
		delete(want, e.Name())
	}
	if len(want) > 0 {
		return fmt.Sprintf("files of %s that are missing: %v", name, want)
	}
	return ""
}

// writeKey writes a public SSH key.
func writeKey(r *rig) string {
	r.t.Helper()
	path := filepath.Join(r.dir, "key.pub")
	require.NoError(r.t, os.WriteFile(path, []byte("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ7eE3Zc0pO1pWJb8g3lq2mF9mJw1e3n2c4x5y6z7A8B someone\n"), 0o644))
	return path
}
