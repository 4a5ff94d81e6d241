//go:build integration

package integration_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// echo is a boot sector whose guest answers each letter on its serial console by the same
// letter in the other case.
var echo = []byte{
	0xba, 0xfd, 0x03, // 00 mov dx, 0x3fd: the line status of COM1
	0xec,       // 03 in al, dx
	0xa8, 0x01, // 04 test al, 1: a byte has come
	0x74, 0xf8, // 06 jz 00
	0xba, 0xf8, 0x03, // 08 mov dx, 0x3f8: the data
	0xec,       // 0b in al, dx
	0x88, 0xc4, // 0c mov ah, al
	0x80, 0xf4, 0x20, // 0e xor ah, 0x20
	0xba, 0xfd, 0x03, // 11 mov dx, 0x3fd
	0xec,       // 14 in al, dx
	0xa8, 0x20, // 15 test al, 0x20: there is room
	0x74, 0xfb, // 17 jz 14
	0x88, 0xe0, // 19 mov al, ah
	0xba, 0xf8, 0x03, // 1b mov dx, 0x3f8
	0xee,       // 1e out dx, al
	0xeb, 0xdf, // 1f jmp 00
}

// piped sends text to a serial console and gives the answer.
func (r *rig) piped(name, text, stay string) result {
	r.t.Helper()
	cmd := r.command("vm", "console", name, "--serial", "--for", stay)
	cmd.Stdin = strings.NewReader(text)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	_ = cmd.Run() // the code says it
	return result{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

// echoes wants the guest's answer to what is typed on its serial console, which is had at
// each try. A guest on a host under load takes longer than one waits elsewhere, and what is
// left of its answer may come with the next one's.
func (r *rig) echoes(name, text, want string) {
	r.t.Helper()
	for _, stay := range []string{"300ms", "3s", "10s"} {
		got := r.piped(name, text, stay)
		require.Zero(r.t, got.code, "%s", got.stderr)
		if strings.HasSuffix(got.stdout, want) {
			return
		}
	}
	require.Fail(r.t, "no answer", "to %q from the guest of %s", text, name)
}

// TestSerial: bytes go both ways, one client has it at a time, and the next is told who.
func TestSerial(t *testing.T) {
	r := consoleRig(t)
	r.echoing("m1")
	r.echoes("m1", "Hello", "hELLO")

	ws := r.opened("/v1/vms/m1/serial")
	require.Equal(t, "binary", ws.Subprotocol())
	all := bytes.Repeat([]byte("abcdefgh"), 512)
	go func() { _ = ws.Write(context.Background(), websocket.MessageBinary, all) }()
	answer := make([]byte, len(all))
	_, err := io.ReadFull(websocket.NetConn(t.Context(), ws, websocket.MessageBinary), answer)
	require.NoError(t, err)
	require.Equal(t, strings.ToUpper(string(all)), string(answer))

	p := r.refused("/v1/vms/m1/serial", nil, 409, "console-taken")
	require.Contains(t, p.Detail, fmt.Sprintf("(pid %d)", os.Getpid()))
	got := r.piped("m1", "x", "0s")
	require.Equal(t, 1, got.code)
	require.Contains(t, got.stderr, "next: end that one")
	require.NoError(t, ws.Close(websocket.StatusNormalClosure, ""))
	r.echoes("m1", "x", "X") // it is free again, at once

	t.Log("somebody else of the host has it")
	c, err := net.Dial("unix", filepath.Join(r.dir, "m/m1/serial"))
	require.NoError(t, err)
	_, err = c.Write([]byte("q"))
	require.NoError(t, err)
	_, err = c.Read(make([]byte, 1))
	require.NoError(t, err)
	require.Contains(t, r.refused("/v1/vms/m1/serial", nil, 409, "console-taken").Detail, "a program that isn't trayd")
	require.NoError(t, c.Close())
	r.echoes("m1", "x", "X")
}

// TestSerialTerminal: the terminal is the guest's until Ctrl-], and as it was after that,
// however it ends.
func TestSerialTerminal(t *testing.T) {
	r := consoleRig(t)
	r.echoing("m1")
	for name, row := range map[string]struct {
		end  func(t *testing.T, term *terminal, cmd *exec.Cmd)
		code int
		says string
	}{
		"the key": {func(t *testing.T, term *terminal, _ *exec.Cmd) {
			_, err := term.master.WriteString("\x1dafter")
			require.NoError(t, err)
		}, 0, "hI"},
		"SIGTERM": {func(t *testing.T, _ *terminal, cmd *exec.Cmd) {
			require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
		}, 1, "terminated"},
		"SIGHUP":        {func(t *testing.T, _ *terminal, cmd *exec.Cmd) { require.NoError(t, cmd.Process.Signal(syscall.SIGHUP)) }, 1, "hangup"},
		"the machine":   {func(*testing.T, *terminal, *exec.Cmd) { r.must("vm", "kill", "m1"); r.must("vm", "start", "m1") }, 0, "the machine has ended"},
		"trayd stops":   {func(*testing.T, *terminal, *exec.Cmd) { r.stop(); r.start(""); r.ready() }, 4, "trayd stops"},
		"trayd is gone": {func(*testing.T, *terminal, *exec.Cmd) { r.kill(); r.start(""); r.ready() }, 4, "broke off"},
	} {
		t.Run(name, func(t *testing.T) {
			require.Eventually(t, func() bool { return r.piped("m1", "a", "200ms").stdout == "A" }, 20*time.Second, 100*time.Millisecond)
			term := newTerminal(t)
			was, err := unix.IoctlGetTermios(int(term.slave.Fd()), unix.TCGETS)
			require.NoError(t, err)
			cmd := r.command("vm", "console", "m1", "--serial")
			cmd.Stdin, cmd.Stdout, cmd.Stderr = term.slave, term.slave, term.slave
			require.NoError(t, cmd.Start())
			require.Eventually(t, func() bool { return strings.Contains(term.String(), "Ctrl-] leaves it") }, 5*time.Second, 10*time.Millisecond)
			raw := func() bool {
				now, err := unix.IoctlGetTermios(int(term.slave.Fd()), unix.TCGETS)
				return err == nil && now.Lflag&unix.ICANON == 0
			}
			require.Eventually(t, raw, 5*time.Second, 10*time.Millisecond)
			_, err = term.master.WriteString("Hi\x03") // Ctrl-C is the guest's
			require.NoError(t, err)
			require.Eventually(t, func() bool { return strings.Contains(term.String(), "hI\x23") }, 5*time.Second, 10*time.Millisecond, "%q", term)
			row.end(t, term, cmd)
			_ = cmd.Wait() // the code says it
			require.Equal(t, row.code, cmd.ProcessState.ExitCode(), "%q", term)
			now, err := unix.IoctlGetTermios(int(term.slave.Fd()), unix.TCGETS)
			require.NoError(t, err)
			require.Equal(t, was, now, "the terminal isn't as it was")
			require.Eventually(t, func() bool { return strings.Contains(term.String(), row.says) }, time.Second, 10*time.Millisecond, "%q", term)
			require.NotContains(t, term.String(), "AFTER")
		})
	}
}
