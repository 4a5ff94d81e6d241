package launch

import (
	"fmt"
	"os"
	osexec "os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/internal/qemutest"
	"github.com/trayd/trayd/qmp"
)

const (
	soon = 20 * time.Second
	tick = 2 * time.Millisecond
)

func qemuPath(t testing.TB) string {
	t.Helper()
	path, err := osexec.LookPath(qemutest.Binary())
	require.NoError(t, err)
	return path
}

// status is a field of /proc/PID/status.
func status(t testing.TB, pid int, field string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	for _, line := range strings.Split(string(b), "\n") {
		if value, ok := strings.CutPrefix(line, field+":"); ok {
			return strings.Join(strings.Fields(value), " ")
		}
	}
	require.FailNow(t, "no field", field)
	return ""
}

// disks are two that only root can open.
func (r *rig) disks() []File {
	r.t.Helper()
	files := []File{{Path: r.config + ".one", Mode: ReadWrite}, {Path: r.config + ".two"}}
	for _, f := range files {
		require.NoError(r.t, os.WriteFile(f.Path, make([]byte, 1<<20), 0o600))
	}
	return files
}

func TestQEMUHasWhatTheCommandSaysAndNothingElse(t *testing.T) {
	r := newRig(t)
	c := r.qemu("vm", "-add-fd", "fd=3,set=1", "-add-fd", "fd=4,set=2",
		"-blockdev", "driver=file,node-name=one,filename=/dev/fdset/1",
		"-blockdev", "driver=file,node-name=two,filename=/dev/fdset/2,read-only=on")
	c.Files = r.disks()
	r.define("vm", c)
	require.NoError(t, r.Start(t.Context(), "vm"))
	pid := r.pid("vm")
	// QEMU moves those of -add-fd to other numbers; TestDescriptors looks at the numbers.
	for path, want := range map[string]int{c.Files[0].Path: unix.O_RDWR, c.Files[1].Path: unix.O_RDONLY, r.dirs.lock("vm"): unix.O_RDONLY} {
		assert.Equal(t, want, accessOf(t, pid, path), "access to %s", path)
	}
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
		assert.Equal(t, "0000000000000000", status(t, pid, set), set)
	}
	assert.Equal(t, "1", status(t, pid, "NoNewPrivs"))
	assert.Equal(t, "0077", status(t, pid, "Umask"))
	u, err := user.Lookup(testUser)
	require.NoError(t, err)
	assert.Equal(t, strings.Join([]string{u.Uid, u.Uid, u.Uid, u.Uid}, " "), status(t, pid, "Uid"))
	assert.Equal(t, strings.Join([]string{u.Gid, u.Gid, u.Gid, u.Gid}, " "), status(t, pid, "Gid"))
	assert.Equal(t, u.Gid, status(t, pid, "Groups"))
	var env []byte
	require.Eventually(t, func() bool { // the kernel closes Start's pipe before it shows these (execve's ELF loader)
		env, err = os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		return err != nil || len(env) > 0
	}, soon, tick)
	require.NoError(t, err)
	assert.Equal(t, environment, strings.TrimRight(string(env), "\x00"))

	t.Log("its sockets are its user's alone, and it works")
	for _, name := range []string{"qmp", PowerSocket} {
		require.Eventually(t, func() bool { _, err := os.Stat(r.socket("vm", name)); return err == nil }, soon, tick)
	}
	var st unix.Stat_t
	require.NoError(t, unix.Stat(filepath.Join(r.dirs.Run, "vm"), &st))
	assert.EqualValues(t, 0o700, st.Mode&0o777)
	assert.Equal(t, u.Uid, fmt.Sprint(st.Uid))
	m, err := qmp.Dial(t.Context(), r.socket("vm", "qmp"), nil)
	require.NoError(t, err)
	defer m.Close()
	var nodes []struct {
		Name string `json:"node-name"`
		RO   bool   `json:"ro"`
	}
	require.NoError(t, m.Execute(t.Context(), "query-named-block-nodes", nil, &nodes))
	require.Len(t, nodes, 2)
}

// accessOf is how a process may use a file that it has open; -1 when it hasn't.
func accessOf(t testing.TB, pid int, path string) int {
	t.Helper()
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	require.NoError(t, err)
	for _, fd := range fds {
		if target, _ := os.Readlink(fd); target != path {
			continue
		}
		b, err := os.ReadFile(strings.Replace(fd, "/fd/", "/fdinfo/", 1))
		if err != nil {
			continue // it was moved
		}
		var flags int
		_, err = fmt.Sscanf(string(b[strings.Index(string(b), "flags:"):]), "flags:\t%o", &flags)
		require.NoError(t, err)
		return flags & unix.O_ACCMODE
	}
	return -1
}

// TestDescriptors is a program that says which descriptors it has, for any number of them:
// those of the launcher's own are in the way of theirs.
func TestDescriptors(t *testing.T) {
	r := newRig(t)
	for n := range 20 {
		var files []File
		for i := range n {
			path := fmt.Sprintf("%s.disk%d", r.config, i)
			require.NoError(t, os.WriteFile(path, nil, 0o600))
			files = append(files, File{Path: path})
		}
		name := fmt.Sprintf("vm%d", n)
		r.define(name, Command{Path: "/bin/ls", Args: []string{"-l", "/proc/self/fd"}, Files: files})
		require.NoError(t, r.Start(t.Context(), name))
		require.Eventually(t, func() bool { s, err := r.State(t.Context(), name); return err == nil && !s.Running }, soon, tick)
		targets := []string{"/dev/null", r.dirs.log(name), r.dirs.log(name)}
		for _, f := range files {
			targets = append(targets, f.Path)
		}
		var want []string
		for i, target := range append(targets, r.dirs.lock(name)) {
			want = append(want, fmt.Sprintf("%d=%s", i, target))
		}
		var got []string
		for _, line := range strings.Split(r.log(name), "\n") {
			left, target, ok := strings.Cut(line, " -> ")
			if ok && !strings.HasPrefix(target, "/proc/") { // the directory that ls reads
				got = append(got, left[strings.LastIndexByte(left, ' ')+1:]+"="+target)
			}
		}
		require.ElementsMatch(t, want, got) // ls sorts 10 before 2
	}
}

func TestUserThatThereIsNot(t *testing.T) {
	r := newRig(t)
	r.configure(settings{r.dirs, "trayd-nobody-has-this"})
	r.qemu("vm")
	require.NoError(t, r.Start(t.Context(), "vm"))
	require.Contains(t, status(t, r.pid("vm"), "Uid"), "65534")
	require.Contains(t, r.log("vm"), "warning: there is no user trayd-nobody-has-this, so QEMU runs as nobody")
}

func TestStartsThatFail(t *testing.T) {
	r := newRig(t)
	there := r.disks()[0].Path
	link, pipe := r.config+".link", r.config+".pipe"
	require.NoError(t, os.Symlink(there, link))
	require.NoError(t, unix.Mkfifo(pipe, 0o600))
	for name, test := range map[string]struct {
		command Command
		why     string
	}{
		"missing":   {Command{Files: []File{{Path: "/none", Mode: ReadWrite}}}, "machine missing can't be started: /none can't be opened for writing: no such file or directory"},
		"link":      {Command{Files: []File{{Path: link}}}, "can't be opened for reading: it is a symbolic link; name what it points to"},
		"pipe":      {Command{Files: []File{{Path: pipe}}}, "it is neither a regular file nor a block device"},
		"device":    {Command{Files: []File{{Path: "/dev/null"}}}, "it is neither a regular file nor a block device"},
		"directory": {Command{Files: []File{{Path: "/tmp"}}}, "it is neither a regular file nor a block device"},
		"no-qemu":   {Command{Path: "/usr/bin/none"}, "QEMU, /usr/bin/none: no such file or directory; install it"},
		"no-tap":    {Command{Taps: []Tap{{Name: "notap0"}}}, "the tap notap0: there is no such interface"},
		"no-bridge": {Command{Taps: []Tap{{Bridge: "nobridge0"}}}, "a tap for the bridge nobridge0: "},
	} {
		t.Run(name, func(t *testing.T) {
			c := test.command
			if c.Path == "" {
				c.Path = qemuPath(t)
			}
			r := &rig{r.Detached, t, r.dirs, r.config}
			r.define(name, c)
			err := r.Start(t.Context(), name)
			require.ErrorAs(t, err, new(*StartError))
			require.ErrorContains(t, err, test.why)
			r.gone(name)
			s, err := r.State(t.Context(), name)
			require.NoError(t, err)
			require.False(t, s.Running)
			require.True(t, s.Failed)
			require.Contains(t, s.Why, test.why)
		})
	}
	require.ErrorIs(t, r.Start(t.Context(), "../x"), ErrName)
	require.ErrorContains(t, r.Start(t.Context(), "nobody"), "machine nobody isn't defined")
	r.configure(settings{r.dirs, "root"})
	r.qemu("root")
	require.ErrorContains(t, r.Start(t.Context(), "root"), "QEMU is not run as root")
}

// TestQEMUsOwnWords: what QEMU says when it gives up is what people are told.
func TestQEMUsOwnWords(t *testing.T) {
	r := newRig(t)
	r.qemu("vm", "-no-such-option")
	require.NoError(t, r.Start(t.Context(), "vm"), "the launcher has done its part")
	var s State
	require.Eventually(t, func() bool {
		var err error
		s, err = r.State(t.Context(), "vm")
		return err == nil && !s.Running
	}, soon, tick)
	require.True(t, s.Failed)
	require.Contains(t, s.Why, "-no-such-option: invalid option")
	require.Eventually(t, func() bool { _, err := os.Stat(filepath.Join(r.dirs.Run, "vm")); return err != nil }, soon, tick)

	r.define("vm", Command{Path: "/bin/true"})
	require.NoError(t, r.Start(t.Context(), "vm"))
	require.Eventually(t, func() bool {
		s, err := r.State(t.Context(), "vm")
		return err == nil && s == State{}
	}, soon, tick, "an end without an error is none")
}
