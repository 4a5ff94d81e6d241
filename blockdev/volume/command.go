package volume

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"
)

// toolEnv is, with toolMark, the whole environment of a tool: its messages are English, and lvm2 does
// not complain of descriptors that it inherits, of which there are none (Go opens all
// with O_CLOEXEC). What udev does is left to lvm2: it waits for udev where udevd runs,
// and makes the links itself where it doesn't.
var toolEnv = []string{"LC_ALL=C", "PATH=" + toolPath, "LVM_SUPPRESS_FD_WARNINGS=1"}

// toolPath is where Linux keeps tools of this kind; an ordinary user's PATH lacks sbin.
const toolPath = "/usr/sbin:/usr/bin:/sbin:/bin"

// killAfter is how long a tool may take to end by itself once it was asked to. lvm2
// finishes what can't be left half done, and ignores SIGTERM for as long.
const killAfter = 10 * time.Second

// output is what a tool wrote, and how it ended.
type output struct {
	stdout []byte
	stderr string
	code   int
	took   time.Duration
}

// words are a tool's own, on one line, without those that lvm2 has for every command of
// a service that isn't root's.
func (o output) words() string {
	var lines []string
	for _, line := range strings.Split(o.stderr, "\n") {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "WARNING: Running as a non-root user") && !strings.HasPrefix(line, "WARNING: setpriority") {
			lines = append(lines, line)
		}
	}
	if len(lines) == 0 {
		return fmt.Sprintf("exit status %d", o.code)
	}
	return strings.Join(lines, "; ")
}

// findTool is the path of a tool.
func findTool(name string) (string, error) {
	for _, dir := range strings.Split(toolPath, ":") {
		path := dir + "/" + name
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", &exec.Error{Name: name, Err: exec.ErrNotFound}
}

// runTool runs a tool to its end; a shell has no part in it. When ctx ends the tool is
// asked to end, and after killAfter it is killed. One that hangs in the kernel can't be:
// callers leave it behind (see do).
func (h *Host) runTool(ctx context.Context, name string, args ...string) (output, error) {
	path, err := findTool(name)
	if err != nil {
		return output{}, err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.Dir = &stdout, &stderr, "/"
	cmd.Env = append(slices.Clone(toolEnv), toolMark+h.mark)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = killAfter
	// A Ctrl-C at trayd's terminal is not meant for it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	begin := time.Now()
	err = cmd.Run()
	o := output{stdout: stdout.Bytes(), stderr: stderr.String(), took: time.Since(begin)}
	if cmd.ProcessState != nil {
		o.code = cmd.ProcessState.ExitCode()
		if ctx.Err() != nil {
			return o, ctx.Err()
		}
		if _, ended := err.(*exec.ExitError); ended {
			err = nil
		}
	}
	return o, err
}
