package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/internal/qemutest"
	"github.com/trayd/trayd/state"
)

// soon is far more than anything here takes.
const soon = 10 * time.Second

func TestMain(m *testing.M) {
	testscript.Main(leakChecked{m}, map[string]func(){"trayd": main})
}

// leakChecked fails when a test has left a goroutine. (goleak's own TestMain wants to be the
// last, as testscript's does.)
type leakChecked struct{ m *testing.M }

func (c leakChecked) Run() int {
	code := c.m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	return code
}

// TestScripts runs the sessions in testdata. Beside testscript's own commands they know
//
//	config [-state=DIR] FILE LINE...
//	                     write a configuration with all its places in the script's own
//	append FILE TEXT     add to a file
//	vm NAME [DISC]       start a machine whose monitor is $M/NAME.qmp
//	get PATH TEXT        ask the API for PATH until its answer contains TEXT
//	post PATH BODY       ask the API to do something, whatever it answers
//	says FILE TEXT       wait until FILE contains TEXT
//	signal NAME          send SIGHUP, SIGTERM or SIGKILL to the trayd of $LOCK
//	journal FILE KEYS    write a state file with that many keys
//	damage FILE LINE     spoil a byte of that line (from 1)
//	listen SOCKET        listen there, as another program would
//	stale SOCKET         leave a socket there that nobody listens on
//	manager SOCKET FILE  be the service manager: write what is notified to FILE
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			// A socket's path has 107 bytes, so sockets have a short directory.
			short, err := os.MkdirTemp("", "td")
			if err != nil {
				return err
			}
			e.Defer(func() { os.RemoveAll(short) })
			e.Vars = append(e.Vars, "M="+short, "LOCK="+filepath.Join(e.WorkDir, "state/state.journal.lock"),
				"GORACE=atexit_sleep_ms=0")
			e.Values["t"] = e.T().(testing.TB)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"vm": func(ts *testscript.TestScript, _ bool, args []string) {
				drive := []string{"-device", "ide-cd,id=cd0"}
				if len(args) > 1 {
					drive = []string{"-cdrom", args[1]}
				}
				qemutest.Start(ts.Value("t").(testing.TB), ts.Getenv("M"), args[0], drive...)
			},
			"get":    get,
			"post":   post,
			"says":   says,
			"config": writeConfig,
			"append": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(ts.ReadFile(args[0])+args[1]), 0o600))
			},
			"signal":  sendSignal,
			"journal": writeJournal,
			"damage":  damage,
			"manager": manager,
			"listen": func(ts *testscript.TestScript, _ bool, args []string) {
				l, err := net.Listen("unix", args[0])
				ts.Check(err)
				ts.Defer(func() { l.Close() })
			},
			"stale": func(ts *testscript.TestScript, _ bool, args []string) {
				l, err := net.Listen("unix", args[0])
				ts.Check(err)
				l.(*net.UnixListener).SetUnlinkOnClose(false)
				ts.Check(l.Close())
			},
		},
	})
}

// until calls f until it says that all is as it should be.
func until(ts *testscript.TestScript, what string, f func() bool) {
	for end := time.Now().Add(soon); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if f() {
			return
		}
	}
	ts.Fatalf("not within %s: %s", soon, what)
}

func writeConfig(ts *testscript.TestScript, _ bool, args []string) {
	stateDir := "state"
	if dir, ok := strings.CutPrefix(args[0], "-state="); ok {
		stateDir, args = dir, args[1:]
	}
	lines := append([]string{
		fmt.Sprintf("state_dir = %q", ts.MkAbs(stateDir)),
		fmt.Sprintf("monitors = [%q]", filepath.Join(ts.Getenv("M"), "*.qmp")),
		fmt.Sprintf("media_roots = [%q]", ts.MkAbs(".")),
		fmt.Sprintf("api = { socket = %q, group = \"\" }", filepath.Join(ts.Getenv("M"), "api.sock")),
	}, args[1:]...)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(strings.Join(lines, "\n")+"\n"), 0o600))
}

func clientOf(ts *testscript.TestScript) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(ts.Getenv("M"), "api.sock"))
		},
	}}
}

func post(ts *testscript.TestScript, _ bool, args []string) {
	resp, err := clientOf(ts).Post("http://trayd"+args[0], "application/json", strings.NewReader(args[1]))
	ts.Check(err)
	b, err := io.ReadAll(resp.Body)
	ts.Check(errors.Join(err, resp.Body.Close()))
	ts.Logf("%s: %s", resp.Status, b)
}

func get(ts *testscript.TestScript, _ bool, args []string) {
	client := clientOf(ts)
	said := ""
	until(ts, "GET "+args[0]+" says "+args[1], func() bool {
		resp, err := client.Get("http://trayd" + args[0])
		if err != nil {
			said = err.Error()
			return false
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		said = string(b)
		return err == nil && strings.Contains(said, args[1])
	})
	ts.Logf("%s", said)
}

func says(ts *testscript.TestScript, _ bool, args []string) {
	until(ts, args[0]+" contains "+args[1], func() bool {
		b, _ := os.ReadFile(ts.MkAbs(args[0]))
		return strings.Contains(string(b), args[1])
	})
}

func sendSignal(ts *testscript.TestScript, _ bool, args []string) {
	pid, err := strconv.Atoi(strings.TrimSpace(ts.ReadFile(ts.Getenv("LOCK"))))
	ts.Check(err)
	p, err := os.FindProcess(pid)
	ts.Check(err)
	ts.Check(p.Signal(unix.SignalNum(args[0])))
}

func writeJournal(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	ts.Check(os.MkdirAll(filepath.Dir(ts.MkAbs(args[0])), 0o700))
	j, err := state.Open(ts.MkAbs(args[0]), nil)
	ts.Check(err)
	for i := range n {
		ts.Check(j.Put(fmt.Sprintf("key%d", i), map[string]int{"value": i}))
	}
	ts.Check(j.Close())
}

func damage(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.Atoi(args[1])
	ts.Check(err)
	lines := strings.SplitAfter(ts.ReadFile(args[0]), "\n")
	lines[n-1] = strings.Replace(lines[n-1], `"value":{"value"`, `"value":{"vXlue"`, 1)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), []byte(strings.Join(lines, "")), 0o600))
}

func manager(ts *testscript.TestScript, _ bool, args []string) {
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: args[0], Net: "unixgram"})
	ts.Check(err)
	f, err := os.Create(ts.MkAbs(args[1]))
	ts.Check(err)
	var pings atomic.Int32
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer f.Close()
		b := make([]byte, 4096)
		for {
			n, err := c.Read(b)
			if err != nil {
				return
			}
			if string(b[:n]) == "WATCHDOG=1" && pings.Add(1) > 2 {
				continue // two are enough to be seen
			}
			fmt.Fprintf(f, "%s\n", b[:n])
		}
	}()
	ts.Defer(func() {
		c.Close()
		<-done
	})
}

func TestReferenceIsWhatRuns(t *testing.T) {
	var out strings.Builder
	require.Equal(t, exitDone, run([]string{"--print-config"}, &out, io.Discard))
	path := filepath.Join(t.TempDir(), "trayd.toml")
	require.NoError(t, os.WriteFile(path, []byte(out.String()), 0o600))
	require.Equal(t, exitDone, run([]string{"--config", path, "--check-config"}, io.Discard, io.Discard))
}
