//go:build integration

package integration_test

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
)

func TestMain(m *testing.M) {
	if socket := os.Getenv(askEnv); socket != "" {
		answerAsks(socket) // as the user that this process runs as
		return
	}
	os.Exit(build(m))
}

func build(m *testing.M) int {
	dir, err := os.MkdirTemp("", "trayd-bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	bin = dir
	for _, args := range [][]string{
		{"-o", dir + "/trayd", "../cmd/trayd"},
		{"-o", dir + "/trayctl", "../cmd/trayctl"},
		{"-tags", "failpoints", "-o", dir + "/trayd-failpoints", "../cmd/trayd"},
		{"-o", dir + "/guestinit", "./guestinit"},
		{"-o", dir + "/installer", "./installer"},
	} {
		cmd := exec.Command("go", append([]string{"build", "-buildvcs=false"}, args...)...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "go build %v: %v\n%s", args, err, out)
			return 1
		}
	}
	return m.Run()
}
