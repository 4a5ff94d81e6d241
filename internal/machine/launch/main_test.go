package launch

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/trayd/trayd/systemd"
)

// The test binary is also what it starts: `trayd launch`, and a trayd that is killed.
func TestMain(m *testing.M) {
	if i := slices.Index(os.Args, "launch"); i == 3 {
		beLauncher(os.Args[2], os.Args[len(os.Args)-1])
	}
	if len(os.Args) == 4 && os.Args[1] == "be-trayd" {
		beTrayd(os.Args[2], os.Args[3])
	}
	if len(os.Args) == 4 && os.Args[1] == "be-units" {
		beUnits(os.Args[2], os.Args[3])
	}
	if len(os.Args) == 3 && os.Args[1] == "be-unit" {
		beUnit(os.Args[2])
	}
	goleak.VerifyTestMain(m, othersLeaks...)
}

// beUnit is `trayd launch` in a unit, for any command: that of command.json.
func beUnit(name string) {
	d := Dirs{State: "/var/lib/trayd/machines", Run: "/run/trayd/machines"}
	n, err := systemd.NewNotifier()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	err = func() error {
		lock, err := TakeLock(d, name)
		if err != nil {
			return err
		}
		if err := lock.Hold(d, name); err != nil {
			return err
		}
		var c Command
		b, err := os.ReadFile(filepath.Join(d.State, name, "command.json"))
		if err == nil {
			err = json.Unmarshal(b, &c)
		}
		if err != nil {
			return err
		}
		c.RunDir, c.Lock, c.Ready = filepath.Join(d.Run, name), lock, func() { _ = n.Ready("") }
		return Exec(c, "trayd-vm")
	}()
	_ = n.Status(err.Error())
	fmt.Fprintln(os.Stderr, "trayd:", err)
	os.Exit(1)
}

// answer is what beUnits prints.
type answer struct {
	State State
	Error string
}

// beUnits does one thing with a unit, as whoever this is.
func beUnits(verb, name string) {
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Second)
	defer cancel()
	u := NewUnits(Dirs{State: "/var/lib/trayd/machines", Run: "/run/trayd/machines"})
	var a answer
	var err error
	switch verb {
	case "start":
		err = u.Start(ctx, name)
	case "kill":
		err = u.Kill(ctx, name)
	case "state":
		a.State, err = u.State(ctx, name)
	case "start-unit":
		err = u.systemd.Start(ctx, name)
	}
	if err != nil {
		a.Error = err.Error()
	}
	_ = json.NewEncoder(os.Stdout).Encode(a)
	os.Exit(0)
}

// settings are a test's configuration.
type settings struct {
	Dirs Dirs
	User string
}

func readSettings(path string) (s settings) {
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return s
}

// beLauncher is what cmd/trayd does.
func beLauncher(config, name string) {
	s := readSettings(config)
	in, err := Inherit()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	var c Command
	b, err := os.ReadFile(filepath.Join(s.Dirs.State, name, "command.json"))
	if err == nil {
		err = json.Unmarshal(b, &c)
	}
	if err == nil {
		err = in.Lock.Hold(s.Dirs, name)
	}
	if err == nil {
		c.RunDir, c.Lock, c.Ready = filepath.Join(s.Dirs.Run, name), in.Lock, in.Ready
		err = Exec(c, s.User)
	}
	in.Report(err)
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// beTrayd starts a machine and does nothing more.
func beTrayd(config, name string) {
	d := NewDetached(Options{Dirs: readSettings(config).Dirs, Config: config})
	if err := d.Start(context.Background(), name); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("started")
	time.Sleep(time.Minute)
}

// rig is a host's directories, with a Detached that may be followed by others.
type rig struct {
	*Detached
	t      testing.TB
	dirs   Dirs
	config string
}

// testUser is who machines run as: Debian's base-passwd has it.
const testUser = "games"

func newRig(t testing.TB) *rig {
	t.Helper()
	require.Zero(t, os.Getuid(), "these tests want root")
	dir, err := os.MkdirTemp("", "launch-") // a socket's path has 107 bytes
	require.NoError(t, err)
	require.NoError(t, os.Chmod(dir, 0o711))
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	r := &rig{t: t, dirs: Dirs{State: filepath.Join(dir, "state"), Run: filepath.Join(dir, "run")}, config: filepath.Join(dir, "config")}
	r.configure(settings{r.dirs, testUser})
	r.Detached = r.another()
	return r
}

func (r *rig) configure(s settings) {
	r.t.Helper()
	b, err := json.Marshal(s)
	require.NoError(r.t, err)
	require.NoError(r.t, os.WriteFile(r.config, b, 0o644))
}

// another is the Detached of a trayd that was started anew.
func (r *rig) another() *Detached { return NewDetached(Options{Dirs: r.dirs, Config: r.config}) }

// define makes a machine, which leaves nothing behind at the test's end.
func (r *rig) define(name string, c Command) {
	r.t.Helper()
	b, err := json.Marshal(c)
	require.NoError(r.t, err)
	require.NoError(r.t, os.MkdirAll(filepath.Join(r.dirs.State, name), 0o700))
	require.NoError(r.t, os.WriteFile(filepath.Join(r.dirs.State, name, "command.json"), b, 0o600))
	r.t.Cleanup(func() {
		require.NoError(r.t, r.Kill(context.Background(), name))
		r.gone(name)
	})
}

// qemu is a machine whose guest doesn't run, with a monitor and the one for power.
func (r *rig) qemu(name string, more ...string) Command {
	r.t.Helper()
	c := Command{Path: qemuPath(r.t), Args: append([]string{"-S", "-accel", "tcg", "-nodefaults", "-display", "none", "-m", "16", "-M", "pc",
		"-qmp", "unix:" + r.socket(name, "qmp") + ",server=on,wait=off",
		"-qmp", "unix:" + r.socket(name, PowerSocket) + ",server=on,wait=off"}, more...)}
	r.define(name, c)
	return c
}

func (r *rig) socket(name, which string) string { return filepath.Join(r.dirs.Run, name, which) }

// log is what a machine's processes wrote.
func (r *rig) log(name string) string {
	b, err := os.ReadFile(r.dirs.log(name))
	require.NoError(r.t, err)
	return string(b)
}

// pid is a running machine's.
func (r *rig) pid(name string) int {
	r.t.Helper()
	s, err := r.State(r.t.Context(), name)
	require.NoError(r.t, err)
	require.True(r.t, s.Running)
	require.NotZero(r.t, s.PID)
	return s.PID
}

// gone requires that nothing of a machine's process is left.
func (r *rig) gone(name string) {
	r.t.Helper()
	_, running, err := held(r.dirs, name)
	require.NoError(r.t, err)
	require.False(r.t, running, "the lock is held")
	require.NoDirExists(r.t, filepath.Join(r.dirs.Run, name))
	require.Empty(r.t, processesOf(r.t, filepath.Join(r.dirs.Run, name)))
}

// processesOf are the processes that have a text in their command line.
func processesOf(t testing.TB, text string) (all []string) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	require.NoError(t, err)
	for _, d := range dirs {
		if b, err := os.ReadFile(d + "/cmdline"); err == nil && strings.Contains(string(b), text) {
			all = append(all, filepath.Base(d)+" "+string(b))
		}
	}
	return all
}
