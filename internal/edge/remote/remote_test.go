package remote

import (
	"bytes"
	"context"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

// pair is a client whose server runs in this process.
func pair(t *testing.T) *Client {
	near, far := net.Pipe()
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = Serve(far) // until the pipe is closed
	}()
	c := NewClient(near)
	t.Cleanup(func() {
		near.Close()
		<-served
		<-c.done
		goleak.VerifyNone(t)
	})
	return c
}

func TestRun(t *testing.T) {
	c := pair(t)
	for _, test := range []struct {
		name           string
		cmd            Command
		stdin          string
		stdout, stderr string
		code           int
		err            string
	}{
		{name: "outputs and code", cmd: Command{Args: []string{"sh", "-c", "echo one; echo two >&2; exit 3"}}, stdout: "one\n", stderr: "two\n", code: 3},
		{name: "input", cmd: Command{Args: []string{"cat"}}, stdin: strings.Repeat("x", 1<<20), stdout: strings.Repeat("x", 1<<20)},
		{name: "input that nobody reads", cmd: Command{Args: []string{"true"}}, stdin: strings.Repeat("x", 1<<20)},
		{name: "directory and environment", cmd: Command{Args: []string{"sh", "-c", "pwd; echo $WHO"}, Dir: "/", Env: []string{"WHO=me"}}, stdout: "/\nme\n"},
		{name: "a signal", cmd: Command{Args: []string{"sh", "-c", "kill -9 $$"}}, code: 137},
		{name: "a child in the background", cmd: Command{Args: []string{"sh", "-c", "sleep 20 & echo started"}}, stdout: "started\n"},
		{name: "no such program", cmd: Command{Args: []string{"/nonexistent"}}, code: -1, err: "no such file"},
		{name: "nothing", cmd: Command{}, code: -1, err: "no command"},
		{name: "a terminal", cmd: Command{Args: []string{"sh", "-c", "tty >/dev/null && stty size"}, Terminal: &Size{24, 80}}, stdout: "24 80\r\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			test.cmd.Stdout, test.cmd.Stderr = &stdout, &stderr
			if test.stdin != "" {
				test.cmd.Stdin = strings.NewReader(test.stdin)
			}
			began := time.Now()
			code, err := c.Run(t.Context(), &test.cmd)
			if test.err == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, test.err)
			}
			assert.Equal(t, test.code, code)
			assert.Equal(t, test.stdout, stdout.String())
			assert.Equal(t, test.stderr, stderr.String())
			assert.Less(t, time.Since(began), 10*time.Second)
		})
	}
}

func TestCommandsAtOnce(t *testing.T) {
	c := pair(t)
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			out, err := c.Output(t.Context(), "sh", "-c", "head -c 100000 /dev/zero | tr '\\0' x")
			assert.NoError(t, err)
			assert.Len(t, out, 100000)
		})
	}
	all.Wait()
}

func TestCancel(t *testing.T) {
	c := pair(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	code, err := c.Run(ctx, &Command{Args: []string{"sh", "-c", "sleep 30; true"}})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Equal(t, 137, code)
}

func TestStreamEnds(t *testing.T) {
	near, far := net.Pipe()
	c := NewClient(near)
	go func() {
		_, _ = readFrame(far) // the request; then the machine dies
		far.Close()
	}()
	_, err := c.Run(t.Context(), &Command{Args: []string{"true"}})
	require.ErrorContains(t, err, "has gone")
}
