//go:build integration

package integration_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/agent"
	"github.com/trayd/trayd/internal/edge"
	"github.com/trayd/trayd/internal/qemutest"
)

// host is where a systemd runs.
type host interface {
	// try runs a command and returns what it wrote.
	try(args ...string) (string, error)
	// write writes a file, and the folders that lead to it.
	write(name, text string, mode os.FileMode)
}

// edgeHost is a host with a kernel of its own.
type edgeHost struct{ *edge.Host }

func (h edgeHost) try(args ...string) (string, error)        { return h.Try(args...) }
func (h edgeHost) write(name, text string, mode os.FileMode) { h.Write(name, text, mode) }

// service is trayd on a host, installed as a package installs it.
type service struct {
	t testing.TB
	host
}

// TestSystemd is what an operator's systemd does with the unit files: in a container,
// which is there at once, and in a machine, whose kernel enforces all of them.
func TestSystemd(t *testing.T) {
	t.Run("container", func(t *testing.T) { testService(t, startContainer(t)) })
	t.Run("machine", func(t *testing.T) { testService(t, edgeHost{edge.Start(t)}) })
}

// testService has QEMUs run as another user, who can't read the discs.
func testService(t *testing.T, h host) {
	s := service{t, h}
	t.Cleanup(func() {
		if t.Failed() {
			journal, _ := s.try("journalctl", "--no-pager", "-o", "short-monotonic", "-u", "trayd*")
			t.Logf("journal of trayd:\n%s", journal)
		}
	})
	s.installTrayd()
	s.run("systemctl", "start", "trayd.socket")
	s.machine("vm1", "-device", "ide-cd,id=cd0")
	s.machine("vm2", "-device", "ide-cd,id=cd0,drive=d", "-drive", "if=none,id=d,format=raw,media=cdrom,readonly=on,file=/srv/iso/BOOT.iso")

	t.Run("the first client starts it", s.activates)
	t.Run("it is sandboxed", s.isSandboxed)
	t.Run("it works in its sandbox", s.works)
	t.Run("the journal has fields", s.logs)
	t.Run("reload", s.reloads)
	t.Run("the watchdog ends one that hangs", s.isWatched)
	t.Run("an upgrade leaves discs and machines alone", s.isUpgraded)
	t.Run("a restart leaves socket and machines alone", s.restarts)
}

func (s service) installTrayd() {
	s.install(filepath.Join(bin, "trayd"), "/usr/bin/trayd", 0o755)
	s.install(filepath.Join(bin, "trayctl"), "/usr/bin/trayctl", 0o755)
	for _, unit := range []string{"trayd.service", "trayd.socket", "trayd-network.service", "trayd-network.socket"} {
		s.install("../systemd/"+unit, "/usr/lib/systemd/system/"+unit, 0o644)
	}
	s.install("../systemd/sysusers.d/trayd.conf", "/usr/lib/sysusers.d/trayd.conf", 0o644)
	s.install("../systemd/tmpfiles.d/trayd.conf", "/usr/lib/tmpfiles.d/trayd.conf", 0o644)
	s.run("systemd-sysusers")
	s.run("systemd-tmpfiles", "--create", "trayd.conf")
	s.run("systemctl", "daemon-reload")
	discs := s.t.TempDir()
	for name, mode := range map[string]os.FileMode{"ONE": 0o600, "TWO": 0o600, "BOOT": 0o644} {
		s.install(qemutest.Disc(s.t, discs, name), "/srv/iso/"+name+".iso", mode)
	}
}

// machine starts a QEMU as a user of its own, and waits for its monitor.
func (s service) machine(name string, args ...string) {
	s.t.Helper()
	socket := "/run/qemu/" + name + ".qmp"
	s.run("chown", "games", "/run/qemu") // tmpfiles made it root's at boot
	s.run(append([]string{"systemd-run", "--quiet", "--unit=" + name, "--uid=games", "--gid=games",
		qemutest.Binary(), "-S", "-accel", "tcg", "-nodefaults", "-display", "none", "-M", "pc", "-m", "16",
		"-qmp", "unix:" + socket + ",server=on,wait=off"}, args...)...)
	s.soon("no monitor of "+name, func() bool {
		_, err := s.try("test", "-S", socket)
		return err == nil
	})
}

func (s service) soon(what string, f func() bool) {
	s.t.Helper()
	require.Eventually(s.t, f, 20*time.Second, 50*time.Millisecond, what)
}

// in is a service whose failures are a subtest's.
func (s service) in(t *testing.T) service { return service{t, s.host} }

// run runs a command that has to succeed.
func (s service) run(args ...string) string {
	s.t.Helper()
	out, err := s.try(args...)
	require.NoError(s.t, err)
	return out
}

// install copies a file from here to the host.
func (s service) install(from, to string, mode os.FileMode) {
	s.t.Helper()
	b, err := os.ReadFile(from)
	require.NoError(s.t, err)
	s.write(to, string(b), mode)
}

// property is a property of trayd.service.
func (s service) property(name string) string {
	s.t.Helper()
	return strings.TrimSpace(s.run("systemctl", "show", "--value", "--property="+name, "trayd.service"))
}

// serves waits until trayctl has an answer, and returns it.
func (s service) serves() []agent.VMStatus {
	s.t.Helper()
	var vms []agent.VMStatus
	require.NoError(s.t, json.Unmarshal([]byte(s.run("trayctl", "-o", "json", "vms")), &vms))
	return vms
}

func (s service) drive(name string) agent.DriveStatus {
	s.t.Helper()
	var d agent.DriveStatus
	require.NoError(s.t, json.Unmarshal([]byte(s.run("trayctl", "-o", "json", "drives", name)), &d))
	return d
}

func (s service) activates(t *testing.T) {
	s = s.in(t)
	require.Equal(t, "inactive", s.property("ActiveState"))
	require.Len(t, s.serves(), 2, "the first client is answered when the machines are known")
	s.soon("not ready", func() bool { return s.property("ActiveState") == "active" })
	assert.Equal(t, "attached to 2 of 2 machines", s.property("StatusText"))
	assert.Equal(t, "666 root root", strings.TrimSpace(s.run("stat", "-c", "%a %U %G", "/run/trayd/api.sock")))
	assert.Equal(t, "700 trayd trayd", strings.TrimSpace(s.run("stat", "-c", "%a %U %G", "/var/lib/trayd")))
}

func (s service) isSandboxed(t *testing.T) {
	s = s.in(t)
	pid := s.property("MainPID")
	status := make(map[string]string)
	for _, line := range strings.Split(s.run("cat", "/proc/"+pid+"/status"), "\n") {
		if name, value, ok := strings.Cut(line, ":"); ok {
			status[name] = strings.TrimSpace(value)
		}
	}
	const allowed = 1<<1 | 1<<3 | 1<<19 | 1<<21 // CAP_DAC_OVERRIDE, FOWNER, SYS_PTRACE, SYS_ADMIN
	for _, set := range []string{"CapEff", "CapBnd"} {
		caps, err := strconv.ParseUint(status[set], 16, 64)
		require.NoError(t, err)
		assert.EqualValues(t, allowed, caps, set)
	}
	assert.Equal(t, "1", status["NoNewPrivs"])
	assert.Equal(t, "2", status["Seccomp"], "no filter")
	// As trayd sees it, the host's files are read only.
	_, err := s.try("nsenter", "--target", pid, "--mount", "--", "touch", "/usr/trayd-was-here")
	assert.ErrorContains(t, err, "Read-only file system")
	assert.Equal(t, "closed", s.property("DevicePolicy")) // TestUnitHasVolumes tries the devices

	for unit, most := range map[string]float64{"trayd.service": 2.0, "trayd-network.service": 1.4} {
		var exposure float64
		out := s.run("systemd-analyze", "security", "--no-pager", unit)
		_, err = fmt.Sscanf(out[strings.Index(out, "level for "+unit):], "level for "+unit+": %f", &exposure)
		require.NoError(t, err)
		t.Logf("systemd-analyze security %s: %.1f", unit, exposure)
		assert.LessOrEqual(t, exposure, most, unit)
	}
}

func (s service) works(t *testing.T) {
	s = s.in(t)
	s.run("trayctl", "insert", "vm1/cd0", "/srv/iso/ONE.iso")
	s.run("trayctl", "change", "vm1", "TWO.iso")
	d := s.drive("vm1/cd0")
	require.NotNil(t, d.Medium)
	assert.Equal(t, "TWO", d.Medium.VolumeID)
	assert.True(t, d.Medium.Ours)

	// That QEMU holds this very file is seen in another user's /proc/PID/fd.
	out := s.run("trayctl", "-o", "json", "change", "vm2", "/srv/iso/BOOT.iso")
	assert.Contains(t, out, "already", "the disc that is in moves nothing")
	assert.False(t, s.drive("vm2/cd0").Medium.Ours)

	_, err := s.try("runuser", "-u", "games", "--", "trayctl", "vms")
	assert.ErrorContains(t, err, "become root, or a member of the group trayd")
	s.run("runuser", "-u", "games", "-G", "trayd", "--", "trayctl", "vms")
}

func (s service) logs(t *testing.T) {
	s = s.in(t)
	s.run("journalctl", "--sync")
	out := s.run("journalctl", "-o", "json", "--no-pager", "_SYSTEMD_UNIT=trayd.service", "VM=vm1", "DRIVE=cd0", "AUDIT=true", "VERB=insert")
	var entry map[string]any
	require.NoError(t, json.Unmarshal([]byte(strings.TrimSpace(out)), &entry), out)
	assert.Equal(t, "trayd", entry["SYSLOG_IDENTIFIER"])
	assert.Equal(t, "6", entry["PRIORITY"])
	assert.Equal(t, "/srv/iso/ONE.iso", entry["MEDIUM"])
	assert.Contains(t, entry["BY"], "root (pid")
	assert.NotEmpty(t, entry["OPERATION"])
	assert.Equal(t, "journal", entry["_TRANSPORT"])
	assert.Contains(t, entry["MESSAGE"], "vm=vm1 drive=cd0", "what journalctl shows by default says it too")
}

func (s service) reloads(t *testing.T) {
	s = s.in(t)
	pid := s.property("MainPID")
	logged := func(text string) func() bool {
		return func() bool {
			return strings.Contains(s.run("journalctl", "--no-pager", "-o", "cat", "-u", "trayd.service"), text)
		}
	}
	s.write("/etc/trayd/trayd.toml", "look = \"30s\"\n", 0o644)
	s.run("systemctl", "reload", "trayd")
	s.soon("not reloaded", logged("the new configuration is in effect"))
	s.soon("still reloading", func() bool { return s.property("ActiveState") == "active" })
	assert.Equal(t, "attached to 2 of 2 machines", s.property("StatusText"))

	s.write("/etc/trayd/trayd.toml", "lok = \"30s\"\n", 0o644)
	_, err := s.try("systemctl", "reload", "trayd")
	require.Error(t, err, "the person who types it is told")
	s.soon("no reason", logged("/etc/trayd/trayd.toml:1: lok: no such key; did you mean look?"))
	s.run("systemctl", "kill", "--signal=HUP", "--kill-whom=main", "trayd")
	s.soon("not refused", func() bool {
		return s.property("ActiveState") == "active" && strings.HasPrefix(s.property("StatusText"), "the new configuration is refused")
	})
	assert.Equal(t, pid, s.property("MainPID"), "it went on")
	s.serves()
	s.run("rm", "/etc/trayd/trayd.toml")
}

func (s service) isWatched(t *testing.T) {
	s = s.in(t)
	s.write("/run/systemd/system/trayd.service.d/fast.conf", "[Service]\nWatchdogSec=3\n", 0o644)
	s.run("systemctl", "daemon-reload")
	s.run("systemctl", "restart", "trayd")
	pid := s.property("MainPID")
	time.Sleep(7 * time.Second)
	require.Equal(t, pid, s.property("MainPID"), "a healthy one is left alone")

	s.run("kill", "-STOP", pid)
	s.soon("it isn't started anew", func() bool {
		now := s.property("MainPID")
		return now != pid && now != "0" && s.property("ActiveState") == "active"
	})
	assert.Equal(t, "1", s.property("NRestarts"))
	assert.Contains(t, s.run("journalctl", "--no-pager", "-o", "cat", "-u", "trayd.service"), "Watchdog timeout")
	d := s.drive("vm1/cd0")
	require.NotNil(t, d.Medium)
	assert.Equal(t, "TWO", d.Medium.VolumeID)
	assert.True(t, d.Medium.Ours, "what it owns outlived it")
}

// isUpgraded replaces the program as a package does, and restarts it.
func (s service) isUpgraded(t *testing.T) {
	s = s.in(t)
	before := s.drive("vm1/cd0")
	require.NotNil(t, before.Medium)
	qemu := s.serves()
	s.run("cp", "--preserve", "/usr/bin/trayd", "/usr/bin/trayd.new")
	s.run("mv", "/usr/bin/trayd.new", "/usr/bin/trayd")
	require.Contains(t, s.run("readlink", "/proc/"+s.property("MainPID")+"/exe"), "(deleted)", "it runs the old one")
	s.run("systemctl", "restart", "trayd")
	require.Equal(t, "/usr/bin/trayd\n", s.run("readlink", "/proc/"+s.property("MainPID")+"/exe"))
	after := s.serves()
	require.Len(t, after, len(qemu))
	for i := range after {
		assert.Equal(t, qemu[i].PID, after[i].PID)
	}
	assert.Equal(t, before.Medium, s.drive("vm1/cd0").Medium)
}

func (s service) restarts(t *testing.T) {
	s = s.in(t)
	identity := func() string { return s.run("stat", "-c", "%i", "/run/trayd/api.sock") }
	before, qemu := identity(), s.serves()
	s.run("systemctl", "restart", "trayd")
	require.Len(t, s.serves(), 2)
	s.run("systemctl", "stop", "trayd.service")
	assert.Equal(t, "inactive", s.property("ActiveState"))
	assert.Equal(t, "success", s.property("Result"))
	assert.Equal(t, before, identity())
	after := s.serves()
	require.Len(t, after, 2, "the next client starts it again")
	for i := range after {
		assert.Equal(t, qemu[i].PID, after[i].PID)
	}
	s.run("trayctl", "eject", "vm1")
	s.run("trayctl", "state", "check")
}
