//go:build integration

package integration_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// container is a real systemd in a container whose files are this host's, beneath an
// overlay that takes what is changed. Nothing of it is left on the host: its mounts are
// in a mount namespace that ends with it, its files in memory, its control groups
// beneath one that is removed.
type container struct {
	t     testing.TB
	name  string
	nspwn *exec.Cmd
	out   bytes.Buffer
	init  int // pid of its PID 1, as the host sees it
}

// boot takes a mount point, the cgroup.procs files to be in, and a name.
const boot = `
root=$1 name=$2; shift 2
for procs; do echo $$ >$procs; done
mount -t tmpfs -o mode=755 tmpfs $root
mkdir $root/upper $root/work $root/root
mount -t overlay -o lowerdir=/,upperdir=$root/upper,workdir=$root/work overlay $root/root
rm -f $root/root/etc/machine-id
dd if=/dev/urandom bs=16 count=1 2>/dev/null | od -An -tx1 | tr -d ' \n' >$root/root/etc/machine-id
exec systemd-nspawn --quiet --register=no --keep-unit --boot --console=pipe \
	--machine=$name --directory=$root/root -- systemd.unit=basic.target
`

func startContainer(t testing.TB) *container {
	t.Helper()
	require.Zero(t, os.Getuid(), "a container with systemd wants root")
	for _, program := range []string{"systemd-nspawn", "nsenter", "unshare"} {
		_, err := exec.LookPath(program)
		require.NoError(t, err, "run `make deps`")
	}
	c := &container{t: t, name: fmt.Sprintf("trayd-test-%d", os.Getpid())}
	root, err := os.MkdirTemp("", c.name)
	require.NoError(t, err)
	groups := controlGroups(t, c.name)
	args := []string{"--mount", "--propagation", "private", "sh", "-euc", boot, "boot", root, c.name}
	for _, g := range groups {
		args = append(args, filepath.Join(g, "cgroup.procs"))
	}
	c.nspwn = exec.Command("unshare", args...)
	c.nspwn.Stdout, c.nspwn.Stderr = &c.out, &c.out
	c.nspwn.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	ended := make(chan error, 1)
	started := make(chan error, 1)
	go func() { // Pdeathsig follows the thread that forked
		runtime.LockOSThread()
		err := c.nspwn.Start()
		started <- err
		if err == nil {
			ended <- c.nspwn.Wait()
		}
	}()
	require.NoError(t, <-started)
	t.Cleanup(func() {
		c.stop(ended)
		for _, g := range groups {
			removeGroup(t, g)
		}
		for _, left := range []string{root, "/run/systemd/nspawn/propagate/" + c.name, "/run/systemd/nspawn/unix-export/" + c.name} {
			if err := os.Remove(left); err != nil && !os.IsNotExist(err) {
				t.Errorf("left behind: %v", err)
			}
		}
		for _, mounts := range []string{"/proc/self/mountinfo"} {
			b, err := os.ReadFile(mounts)
			require.NoError(t, err)
			require.NotContains(t, string(b), c.name, "a mount is left")
		}
	})
	c.up()
	return c
}

// up waits until systemd has started.
func (c *container) up() {
	c.t.Helper()
	require.Eventually(c.t, func() bool {
		if c.init == 0 {
			c.init = childOf(c.nspwn.Process.Pid, "systemd")
		}
		if c.init == 0 {
			return false
		}
		state, _ := c.try("systemctl", "is-system-running")
		return slices.Contains([]string{"running", "degraded"}, strings.TrimSpace(state))
	}, 30*time.Second, 100*time.Millisecond, "systemd does not start")
}

// childOf finds the child of that name.
func childOf(pid int, name string) int {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid)) // none yet, or ended
	for _, f := range strings.Fields(string(b)) {
		comm, _ := os.ReadFile("/proc/" + f + "/comm")
		if strings.TrimSpace(string(comm)) == name {
			child, _ := strconv.Atoi(f)
			return child
		}
	}
	return 0
}

// stop powers the container off, by its own PID 1.
func (c *container) stop(ended <-chan error) {
	if c.t.Failed() {
		c.t.Logf("nspawn: %s", c.out.String())
	}
	if c.init != 0 {
		_ = syscall.Kill(c.init, syscall.Signal(34+4)) // SIGRTMIN+4: power off (systemd(1))
	}
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		c.t.Error("the container does not power off")
		_ = c.nspwn.Process.Kill() // its PID 1 dies with it
		<-ended
	}
}

// try runs a command in the container.
func (c *container) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--target", strconv.Itoa(c.init), "--all", "--"}, args...)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return stdout.String(), nil
}

// path is where the host sees a file of the container's.
func (c *container) path(name string) string { return fmt.Sprintf("/proc/%d/root%s", c.init, name) }

// write writes a file of the container's.
func (c *container) write(name, text string, mode os.FileMode) {
	c.t.Helper()
	require.NoError(c.t, os.MkdirAll(filepath.Dir(c.path(name)), 0o755))
	require.NoError(c.t, os.WriteFile(c.path(name), []byte(text), mode))
	require.NoError(c.t, os.Chmod(c.path(name), mode)) // WriteFile heeds the umask
}

// controlGroups makes a group of that name beneath ours in each hierarchy that systemd
// uses: version 2, and the one of version 1 that is systemd's own.
func controlGroups(t testing.TB, name string) []string {
	t.Helper()
	ours := make(map[string]string) // hierarchy to path
	own, err := os.ReadFile("/proc/self/cgroup")
	require.NoError(t, err)
	for _, line := range strings.Fields(string(own)) {
		if f := strings.SplitN(line, ":", 3); f[1] == "" || f[1] == "name=systemd" {
			ours[f[1]] = f[2]
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	require.NoError(t, err)
	var groups []string
	for _, line := range strings.Split(strings.TrimSpace(string(mounts)), "\n") {
		f := strings.Fields(line)
		hierarchy := ""
		switch {
		case f[2] == "cgroup2":
		case f[2] == "cgroup" && slices.Contains(strings.Split(f[3], ","), "name=systemd"):
			hierarchy = "name=systemd"
		default:
			continue
		}
		path, ok := ours[hierarchy]
		if !ok {
			continue
		}
		delete(ours, hierarchy) // it may be mounted twice
		group := filepath.Join(f[1], path, name)
		require.NoError(t, os.Mkdir(group, 0o755))
		groups = append(groups, group)
	}
	require.NotEmpty(t, groups, "no control groups that systemd could use")
	return groups
}

// removeGroup removes a group and those beneath it; they are empty by then.
func removeGroup(t testing.TB, group string) {
	t.Helper()
	var all []string
	require.NoError(t, filepath.WalkDir(group, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			all = append(all, path)
		}
		return err
	}))
	slices.Reverse(all) // the innermost first
	for _, g := range all {
		require.NoError(t, os.Remove(g))
	}
}
