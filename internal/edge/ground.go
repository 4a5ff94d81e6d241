package edge

import (
	"os"
	"os/exec"
	"path/filepath"
)

// UnderTest is where a host has the QEMU under test, if that isn't its own: integration/qemu-of --into
// puts it there.
const UnderTest = "/opt/qemu/usr/bin"

// qemu is what edge hosts run in.
const qemu = "qemu-system-x86_64"

// ground finds a program of this host's own, whichever QEMU is under test: that one's
// directory is first in PATH. It is the name where there is no such program.
func ground(program string) string {
	tested := ""
	if path := os.Getenv("QEMU"); path != "" {
		tested = filepath.Dir(path)
	}
	found := program
	for _, dir := range filepath.SplitList(os.Getenv("PATH")) {
		path, err := exec.LookPath(filepath.Join(dir, program))
		switch {
		case err != nil:
		case dir != tested:
			return path
		case found == program:
			found = path // this host's own may be the one under test
		}
	}
	return found
}
