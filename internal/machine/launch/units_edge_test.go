//go:build edge

package launch

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	osexec "os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/qmp"
)

// These run inside the edge host, against its systemd and polkit, with trayd installed.

var hostDirs = Dirs{State: "/var/lib/trayd/machines", Run: "/run/trayd/machines"}

// host is the edge host. What it asks of systemd, it asks as the user trayd.
type host struct {
	t testing.TB
	*Units
}

func newHost(t testing.TB) *host {
	t.Helper()
	h := &host{t, NewUnits(hostDirs)}
	h.launcher()
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(h.tool("journalctl", "--no-pager", "-o", "short-monotonic", "-n", "60"))
		}
	})
	return h
}

// launcher has the units run this test's launcher in place of trayd's: it starts any command,
// where trayd's starts what a definition says.
func (h *host) launcher() {
	const program, conf = "/usr/local/bin/launch.test", "/run/systemd/system/trayd-vm@.service.d/launcher.conf"
	self, err := os.Executable()
	require.NoError(h.t, err)
	h.tool("install", "-D", "-m", "755", self, program)
	require.NoError(h.t, os.MkdirAll(filepath.Dir(conf), 0o755))
	require.NoError(h.t, os.WriteFile(conf, []byte("[Service]\nExecStart=\nExecStart="+program+" be-unit %i\n"), 0o644))
	h.tool("systemctl", "daemon-reload")
	h.tool("systemctl", "mask", "--runtime", "trayd.service") // units want one, which would take their monitors
	h.t.Cleanup(func() {
		h.tool("systemctl", "unmask", "--runtime", "trayd.service")
		require.NoError(h.t, os.Remove(conf))
		require.NoError(h.t, os.Remove(program))
		h.tool("systemctl", "daemon-reload")
	})
}

func (h *host) tool(args ...string) string {
	h.t.Helper()
	out, err := osexec.Command(args[0], args[1:]...).CombinedOutput()
	require.NoError(h.t, err, "%s: %s", strings.Join(args, " "), out)
	return strings.TrimSpace(string(out))
}

// as is a command as a user and the group systemd-journal.
func (h *host) as(name string, args ...string) *osexec.Cmd {
	h.t.Helper()
	id := func(s string) uint32 { n, err := strconv.Atoi(s); require.NoError(h.t, err); return uint32(n) }
	u, err := user.Lookup(name)
	require.NoError(h.t, err)
	journal, err := user.LookupGroup("systemd-journal")
	require.NoError(h.t, err)
	cmd := osexec.Command(args[0], args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: id(u.Uid), Gid: id(u.Gid), Groups: []uint32{id(journal.Gid)}}}
	return cmd
}

// trayd calls a method of Units as trayd does.
func (h *host) trayd(verb, name string) (State, error) {
	h.t.Helper()
	self, err := os.Executable()
	require.NoError(h.t, err)
	// trayd's own directory is not to be searched for the test binary.
	program := "/run/launch.test"
	if _, err := os.Stat(program); err != nil {
		h.tool("install", "-m", "755", self, program)
	}
	out, err := h.as("trayd", program, "be-units", verb, name).Output()
	require.NoError(h.t, err)
	var a answer
	require.NoError(h.t, json.Unmarshal(out, &a), "%s", out)
	if a.Error != "" {
		return a.State, fmt.Errorf("%s", a.Error)
	}
	return a.State, nil
}

func (h *host) define(name string, c Command) {
	h.t.Helper()
	b, err := json.Marshal(c)
	require.NoError(h.t, err)
	dir := filepath.Join(hostDirs.State, name)
	h.tool("install", "-d", "-o", "trayd", "-g", "trayd", "-m", "700", dir)
	require.NoError(h.t, os.WriteFile(dir+"/command.json", b, 0o600))
	h.t.Cleanup(func() {
		require.NoError(h.t, h.Kill(context.Background(), name))
		_, running, err := held(hostDirs, name)
		require.NoError(h.t, err)
		require.False(h.t, running)
		require.NoDirExists(h.t, filepath.Join(hostDirs.Run, name))
	})
}

func (h *host) qemu(name string, more ...string) Command {
	h.t.Helper()
	at := filepath.Join(hostDirs.Run, name)
	c := Command{Path: qemuPath(h.t), Args: append([]string{"-S", "-accel", "tcg", "-nodefaults", "-display", "none", "-m", "16", "-M", "pc",
		"-qmp", "unix:" + at + "/qmp,server=on,wait=off", "-qmp", "unix:" + at + "/" + PowerSocket + ",server=on,wait=off"}, more...)}
	h.define(name, c)
	return c
}

// monitor connects to a machine's, which has just started.
func (h *host) monitor(name string) *qmp.Conn {
	h.t.Helper()
	at := filepath.Join(hostDirs.Run, name)
	h.soon("no sockets", func() bool {
		_, err := os.Stat(at + "/" + PowerSocket)
		return err == nil
	})
	c, err := qmp.Dial(context.Background(), at+"/qmp", nil)
	require.NoError(h.t, err)
	h.t.Cleanup(func() { c.Close() })
	return c
}

func (h *host) soon(what string, f func() bool) {
	h.t.Helper()
	require.Eventually(h.t, f, 30*time.Second, 20*time.Millisecond, what)
}

func (h *host) running(name string) int {
	h.t.Helper()
	s, err := h.trayd("state", name)
	require.NoError(h.t, err)
	require.True(h.t, s.Running)
	require.NotZero(h.t, s.PID)
	return s.PID
}

func TestUnitOfAMachine(t *testing.T) {
	h := newHost(t)
	disk := filepath.Join(hostDirs.State, "web-1", "disk")
	c := h.qemu("web-1", "-add-fd", "fd=3,set=1", "-blockdev", "driver=file,node-name=disk,filename=/dev/fdset/1")
	c.Files = []File{{Path: disk, Mode: ReadWrite}}
	h.define("web-1", c)
	require.NoError(t, os.WriteFile(disk, make([]byte, 1<<20), 0o600))
	h.qemu("db_2")
	for _, name := range []string{"web-1", "db_2"} {
		_, err := h.trayd("start", name)
		require.NoError(t, err)
		pid := h.running(name)
		for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapAmb"} {
			assert.Equal(t, "0000000000000000", status(t, pid, set), set)
		}
		assert.Equal(t, "1", status(t, pid, "NoNewPrivs"))
		assert.Equal(t, "2", status(t, pid, "Seccomp"))
		h.monitor(name)
		_, err = h.trayd("start", name)
		require.ErrorContains(t, err, ErrRunning.Error())
	}
	one, two := h.running("web-1"), h.running("db_2")
	require.NotEqual(t, status(t, one, "Uid"), status(t, two, "Uid"))
	assert.Equal(t, unix.O_RDWR, accessOf(t, one, disk))

	t.Log("as it sees the host")
	uid, _, _ := strings.Cut(status(t, one, "Uid"), " ")
	for what, says := range map[string]string{
		"ls /run/trayd/machines/db_2":                    "No such file or directory",
		"ls /var/lib/trayd/machines":                     "Permission denied",
		"cat " + disk:                                    "Permission denied",
		"ls /run/systemd":                                "Permission denied",
		"ls /run/dbus":                                   "No such file or directory",
		"touch /usr/x":                                   "Read-only file system",
		fmt.Sprintf("ls /proc/%d/", two):                 "No such file or directory",
		fmt.Sprintf("cat /proc/%d/environ", os.Getpid()): "No such file or directory",
		"ls /run/trayd/machines/web-1/qmp && ls /var/lib/trayd": "Permission denied",
	} {
		out, err := osexec.Command("nsenter", "--target", strconv.Itoa(one), "--mount", "--", "setpriv", "--reuid="+uid, "--regid="+uid,
			"--clear-groups", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "sh", "-c", what).CombinedOutput()
		assert.Error(t, err, what)
		assert.Contains(t, string(out), says, what)
	}

	t.Log("nobody's but trayd's, and nothing else's")
	d := NewDetached(Options{Dirs: hostDirs})
	s, err := d.State(t.Context(), "web-1")
	require.NoError(t, err)
	require.Equal(t, State{Running: true, PID: one}, s, "the other way sees it")
	require.ErrorIs(t, d.Start(t.Context(), "web-1"), ErrRunning)
	_, err = h.trayd("start-unit", "systemd-tmpfiles-clean.service")
	require.ErrorContains(t, err, "the service manager refuses")
	out, err := h.as("trayd", "systemctl", "--no-ask-password", "set-property", "--runtime", Unit("web-1"), "TasksMax=2").CombinedOutput()
	require.Error(t, err, "%s", out)
	out, err = h.as("games", "systemctl", "--no-ask-password", "stop", Unit("web-1")).CombinedOutput()
	require.Error(t, err, "%s", out)

	t.Log("a start that is given up leaves nothing")
	h.define("late", Command{Path: "/bin/sleep", Args: []string{"60"}})
	for i := range 4 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(50+100*i)*time.Millisecond)
		err := h.Start(ctx, "late")
		cancel()
		if err == nil {
			require.NoError(t, h.Kill(t.Context(), "late"))
			continue
		}
		require.ErrorIs(t, err, context.DeadlineExceeded)
		s, err := h.State(t.Context(), "late")
		require.NoError(t, err)
		require.Equal(t, State{}, s)
	}

	t.Log("killed")
	_, err = h.trayd("kill", "web-1")
	require.NoError(t, err)
	s, err = h.trayd("state", "web-1")
	require.NoError(t, err)
	require.Equal(t, State{}, s)
	require.NoDirExists(t, hostDirs.Run+"/web-1")
	_, err = h.trayd("kill", "web-1")
	require.NoError(t, err)
	_, err = h.trayd("kill", "never-was")
	require.NoError(t, err)
	h.running("db_2")
	require.NoError(t, d.Kill(t.Context(), "db_2"), "the other way ends it")
	h.soon("it isn't ended", func() bool { s, err := h.State(t.Context(), "db_2"); return err == nil && !s.Running })
}

func TestUnitThatFails(t *testing.T) {
	h := newHost(t)
	c := h.qemu("vm")
	c.Files = []File{{Path: "/srv/none.img", Mode: ReadWrite}}
	h.define("vm", c)
	const why = "machine vm can't be started: /srv/none.img can't be opened for writing: no such file or directory"
	_, err := h.trayd("start", "vm")
	require.EqualError(t, err, "machine vm didn't start: "+why)
	s, err := h.trayd("state", "vm")
	require.NoError(t, err)
	require.Equal(t, State{Failed: true, Why: why}, s)
	out, err := osexec.Command("systemctl", "start", Unit("none")).CombinedOutput()
	require.Error(t, err, "%s", out)
	h.tool("journalctl", "--sync")
	require.Contains(t, h.tool("journalctl", "-o", "cat", "-u", Unit("none")), "machine none isn't defined")

	t.Log("QEMU itself: its words are in the journal")
	h.qemu("vm", "-no-such-option")
	_, _ = h.trayd("start", "vm")
	h.soon("it doesn't fail", func() bool {
		s, err = h.trayd("state", "vm")
		require.NoError(t, err)
		return !s.Running
	})
	require.True(t, s.Failed)
	require.Contains(t, s.Why, "-no-such-option: invalid option")

	t.Log("a disk where nothing may be written")
	disk := "/home/disk"
	require.NoError(t, os.WriteFile(disk, nil, 0o600))
	c = h.qemu("vm")
	c.Files = []File{{Path: disk, Mode: ReadWrite}}
	h.define("vm", c)
	_, err = h.trayd("start", "vm")
	require.ErrorContains(t, err, "add ReadWritePaths= with its directory")

	t.Log("polkit has no rule")
	const rules = "/usr/share/polkit-1/rules.d/trayd.rules"
	require.NoError(t, os.Rename(rules, "/root/trayd.rules"))
	h.qemu("vm")
	h.soon("polkit still lets it", func() bool {
		_, err = h.trayd("start", "vm")
		return err != nil && !strings.Contains(err.Error(), ErrRunning.Error())
	})
	require.ErrorContains(t, err, "trayd may not manage trayd-vm@vm.service: install polkit")
	require.NoError(t, os.Rename("/root/trayd.rules", rules))
	h.soon("polkit doesn't let it", func() bool { _, err = h.trayd("start", "vm"); return err == nil })
}

// TestUnitStops: a guest is asked to power off, and has TimeoutStopSec= for it.
func TestUnitStops(t *testing.T) {
	h := newHost(t)
	const conf = "/run/systemd/system/trayd-vm@.service.d/fast.conf"
	require.NoError(t, os.MkdirAll(filepath.Dir(conf), 0o755))
	require.NoError(t, os.WriteFile(conf, []byte("[Service]\nTimeoutStopSec=6\n"), 0o644))
	h.tool("systemctl", "daemon-reload")
	t.Cleanup(func() { require.NoError(t, os.Remove(conf)); h.tool("systemctl", "daemon-reload") })
	h.qemu("vm")
	for _, obeys := range []bool{true, false} {
		_, err := h.trayd("start", "vm")
		require.NoError(t, err)
		m := h.monitor("vm")
		events := m.Subscribe(16)
		stopped := make(chan error, 1)
		began := time.Now()
		go func() { stopped <- osexec.Command("systemctl", "stop", Unit("vm")).Run() }()
		require.Equal(t, "POWERDOWN", (<-events.C).Name)
		if obeys {
			require.NoError(t, m.Execute(t.Context(), "quit", nil, nil))
		}
		require.NoError(t, <-stopped)
		t.Logf("a guest that obeys: %t; stopped after %s", obeys, time.Since(began).Round(time.Millisecond))
		require.NoDirExists(t, hostDirs.Run+"/vm")
		s, err := h.trayd("state", "vm")
		require.NoError(t, err)
		require.False(t, s.Running)
		if obeys {
			require.Equal(t, State{}, s)
			require.Less(t, time.Since(began), 5*time.Second)
		}
	}
}

func TestChooseOnAHostWithSystemd(t *testing.T) {
	h := newHost(t)
	require.Equal(t, "systemd", Choose(t.Context(), Options{Dirs: hostDirs}).Name())
	require.Equal(t, "process", Choose(t.Context(), Options{Dirs: hostDirs, Run: RunProcess}).Name())
	const unit = "/usr/lib/systemd/system/" + Template
	require.NoError(t, os.Rename(unit, "/root/unit"))
	h.tool("systemctl", "daemon-reload")
	require.Equal(t, "process", Choose(t.Context(), Options{Dirs: hostDirs}).Name())
	require.NoError(t, os.Rename("/root/unit", unit))
	h.tool("systemctl", "daemon-reload")
	h.tool("systemctl", "restart", "dbus.service")
	require.Equal(t, "systemd", Choose(t.Context(), Options{Dirs: hostDirs}).Name())
}

func TestTap(t *testing.T) {
	h := newHost(t)
	h.tool("modprobe", "tun")
	h.tool("ip", "link", "add", "br0", "mtu", "1400", "type", "bridge")
	t.Cleanup(func() { h.tool("ip", "link", "del", "br0") })
	c := h.qemu("vm", "-netdev", "tap,id=n,fd=3", "-device", "virtio-net-pci,netdev=n")
	c.Taps = []Tap{{Bridge: "br0"}}
	h.define("vm", c)
	_, err := h.trayd("start", "vm")
	require.NoError(t, err)
	h.monitor("vm")
	link := h.tool("ip", "-o", "link", "show", "master", "br0")
	require.Contains(t, link, "trayd0")
	require.Contains(t, link, "UP")
	require.Contains(t, link, "mtu 1400")
	_, err = h.trayd("kill", "vm")
	require.NoError(t, err)
	require.Empty(t, h.tool("ip", "-o", "link", "show", "master", "br0"))

	h.tool("ip", "tuntap", "add", "mine0", "mode", "tap")
	c.Taps = []Tap{{Name: "mine0"}}
	h.define("vm", c)
	_, err = h.trayd("start", "vm")
	require.NoError(t, err)
	h.monitor("vm")
	_, err = h.trayd("kill", "vm")
	require.NoError(t, err)
	h.tool("ip", "link", "del", "mine0")
	_, err = h.trayd("start", "vm")
	require.ErrorContains(t, err, "the tap mine0: there is no such interface")

	c.Taps = []Tap{{Bridge: "lo"}}
	h.define("vm", c)
	_, err = h.trayd("start", "vm")
	require.ErrorContains(t, err, "a tap for the bridge lo: lo is no bridge")
}
