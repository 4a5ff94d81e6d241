package systemd

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"
)

// childVariable makes the test binary a service: it prints what Listener returns.
const childVariable = "SYSTEMD_TEST_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		child()
		return
	}
	goleak.VerifyTestMain(m)
}

// child does what the manager's fork does for LISTEN_PID, which only it knows.
func child() {
	if os.Getenv("LISTEN_FDS") != "" && os.Getenv("LISTEN_PID") == "" {
		os.Setenv("LISTEN_PID", fmt.Sprint(os.Getpid()))
	}
	l, err := Listener()
	switch {
	case err != nil:
		fmt.Println("error:", err)
	case l == nil:
		fmt.Println("no listener")
	default:
		c, err := l.Accept()
		if err != nil {
			fmt.Println("error:", err)
			return
		}
		fmt.Fprintf(c, "hello from %s", l.Addr())
		c.Close()
		l.Close()
		fmt.Println("served; LISTEN_FDS is now", os.Getenv("LISTEN_FDS") == "")
	}
}
