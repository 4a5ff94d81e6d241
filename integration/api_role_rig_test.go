//go:build integration

package integration_test

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/stretchr/testify/require"
)

// askEnv has this program ask the socket that it names, as the user that it runs as.
const askEnv = "TRAYD_TEST_ASK"

// askedAs is a request that such a process sends, and gotAs what it got.
type (
	askedAs struct{ Method, Path, Body string }
	gotAs   struct {
		Status int
		Body   string
	}
)

// answerAsks sends each request of standard input, and writes what it got.
func answerAsks(socket string) {
	a := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var q askedAs
		if in.Decode(&q) != nil {
			return
		}
		req, err := http.NewRequest(q.Method, "http://trayd"+q.Path, strings.NewReader(q.Body))
		if err != nil {
			return
		}
		resp, err := a.Do(req)
		if err != nil {
			return // the other end misses the answer
		}
		got := gotAs{Status: resp.StatusCode}
		if !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
			b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20)) // what came is what it shows
			got.Body = string(b)
		}
		resp.Body.Close()
		if out.Encode(got) != nil {
			return
		}
	}
}

// somebody asks as a user, in a process of that user's, or over TLS.
type somebody struct {
	name, role string // what they may do; "none" for nothing
	ask        func(method, path, body string) (status int, problem string)
	user       *syscall.Credential // of this host
}

// asUser is a process of a user.
func (r *rig) asUser(name, role string, user *syscall.Credential) somebody {
	t := r.t
	t.Helper()
	program := filepath.Join(r.dir, "ask")
	if _, err := os.Stat(program); err != nil {
		self, err := os.ReadFile("/proc/self/exe")
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(program, self, 0o755))
	}
	cmd := exec.Command(program)
	cmd.Env = []string{askEnv + "=" + r.socket()}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: user, Pdeathsig: syscall.SIGKILL}
	stdin, err := cmd.StdinPipe()
	require.NoError(t, err)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		stdin.Close()
		_ = cmd.Wait() // it ends with its input
	})
	out, in := json.NewEncoder(stdin), json.NewDecoder(stdout)
	return somebody{name: name, role: role, user: user, ask: func(method, path, body string) (int, string) {
		require.NoError(t, out.Encode(askedAs{method, path, body}))
		var got gotAs
		require.NoError(t, in.Decode(&got), "%s: %s %s", name, method, path)
		return got.Status, got.Body
	}}
}

// overTLS is somebody who comes from an address.
func overTLS(name, role string, a *asker) somebody {
	return somebody{name: name, role: role, ask: func(method, path, body string) (int, string) {
		got := a.ask(method, path, body)
		return got.status, string(got.body)
	}}
}
