//go:build integration

package integration_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/internal/agent"
	"github.com/trayd/trayd/internal/qemutest"
	"github.com/trayd/trayd/internal/wire"
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

// consoleRig is a host on which trayd runs machines of its own.
func consoleRig(t *testing.T) *rig {
	r := newRig(t)
	r.start("")
	r.ready()
	return r
}

// echoing makes a machine whose guest echoes, and starts it.
func (r *rig) echoing(name string, args ...string) {
	r.t.Helper()
	boot := filepath.Join(r.dir, "boot")
	disc := filepath.Join(r.discs(), "echo.iso")
	if _, err := os.Stat(disc); err != nil {
		require.NoError(r.t, os.Mkdir(boot, 0o755))
		require.NoError(r.t, os.WriteFile(filepath.Join(boot, "boot.bin"), append(echo, make([]byte, 2048-len(echo))...), 0o644))
		out, err := exec.Command("xorriso", "-as", "mkisofs", "-quiet", "-V", "ECHO", "-b", "boot.bin", "-no-emul-boot", "-boot-load-size", "4", "-o", disc, boot).CombinedOutput()
		require.NoError(r.t, err, "%s", out)
	}
	r.must(append([]string{"vm", "create", name, "--iso", disc, "--memory", "64M", "--network", "none", "--start"}, args...)...)
	var vm wire.VMStatus
	require.NoError(r.t, json.Unmarshal([]byte(r.must("vm", "show", name, "-o", "json")), &vm))
	r.t.Cleanup(func() { // before trayd is killed: it is a process of its own
		if r.daemon != nil && r.trayctl("vm", "kill", name).code == 0 {
			return
		}
		if cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", vm.PID)); bytes.Contains(cmdline, []byte(r.dir)) {
			_ = syscall.Kill(vm.PID, syscall.SIGKILL) // it may just have ended
		}
	})
	require.Eventually(r.t, func() bool {
		return r.piped(name, "a", "200ms").stdout == "A"
	}, 20*time.Second, 100*time.Millisecond, "the guest of %s does not answer", name)
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

// dial opens a console as a browser does, or gives the answer that refuses it.
func (r *rig) dial(path string, h http.Header) (*websocket.Conn, *http.Response, error) {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", r.socket())
	}}
	ws, resp, err := websocket.Dial(r.t.Context(), "ws://trayd"+path, &websocket.DialOptions{HTTPClient: &http.Client{Transport: transport}, HTTPHeader: h, Subprotocols: []string{"binary"}})
	if err == nil {
		ws.SetReadLimit(-1)
	}
	return ws, resp, err
}

// refused wants a console to be refused with a problem.
func (r *rig) refused(path string, h http.Header, status int, code string) wire.Problem {
	r.t.Helper()
	_, resp, err := r.dial(path, h)
	require.Error(r.t, err)
	require.NotNil(r.t, resp, "%v", err)
	require.Equal(r.t, status, resp.StatusCode)
	require.Equal(r.t, "application/problem+json", resp.Header.Get("Content-Type"))
	var p wire.Problem
	require.NoError(r.t, json.NewDecoder(io.LimitReader(resp.Body, 1<<10)).Decode(&p))
	require.Equal(r.t, code, p.Code)
	require.NotEmpty(r.t, p.Next)
	return p
}

// opened is a console that has to be had.
func (r *rig) opened(path string) *websocket.Conn {
	r.t.Helper()
	ws, _, err := r.dial(path, nil)
	require.NoError(r.t, err)
	r.t.Cleanup(func() { ws.CloseNow() })
	return ws
}

// rfbScreen does the handshake of RFB (RFC 6143) and gets the whole picture, raw.
func rfbScreen(t *testing.T, c net.Conn) (width, height int, pixels []byte) {
	require.NoError(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	read := func(n int) []byte {
		b := make([]byte, n)
		_, err := io.ReadFull(c, b)
		require.NoError(t, err)
		return b
	}
	write := func(b ...byte) {
		_, err := c.Write(b)
		require.NoError(t, err)
	}
	require.Equal(t, "RFB 003.008\n", string(read(12)))
	write([]byte("RFB 003.008\n")...)
	require.Contains(t, read(int(read(1)[0])), byte(1), "security: none")
	write(1)
	require.Equal(t, make([]byte, 4), read(4), "security: OK")
	write(1) // shared
	init := read(24)
	width, height = int(binary.BigEndian.Uint16(init)), int(binary.BigEndian.Uint16(init[2:]))
	require.EqualValues(t, 32, init[4], "bits of a pixel")
	require.Contains(t, string(read(int(binary.BigEndian.Uint32(init[20:])))), "QEMU")
	write(2, 0, 0, 1, 0, 0, 0, 0) // encodings: raw
	write(3, 0, 0, 0, 0, 0, byte(width>>8), byte(width), byte(height>>8), byte(height))
	for n := binary.BigEndian.Uint16(read(4)[2:]); n > 0; n-- {
		rect := read(12)
		pixels = append(pixels, read(int(binary.BigEndian.Uint16(rect[4:]))*int(binary.BigEndian.Uint16(rect[6:]))*4)...)
	}
	return width, height, pixels
}

// TestScreen: several look at one screen through the API, by trayctl with a viewer of
// others' making, and nobody of another user does.
func TestScreen(t *testing.T) {
	r := consoleRig(t)
	r.echoing("m1")
	for range 3 {
		c := websocket.NetConn(t.Context(), r.opened("/v1/vms/m1/console"), websocket.MessageBinary)
		w, h, pixels := rfbScreen(t, c)
		require.GreaterOrEqual(t, w*h, 640*400)
		require.Len(t, pixels, w*h*4)
		require.NotEqual(t, len(pixels), bytes.Count(pixels, []byte{0}), "all of it is black")
	}

	t.Log("a viewer of one's own")
	cmd, url := r.listening("m1", "127.0.0.1:0")
	picture := filepath.Join(r.dir, "other.jpg")
	other := exec.Command("vncsnapshot", "-quiet", display(t, url), picture)
	other.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	require.Error(t, other.Run(), "another user sees the screen")
	picture = filepath.Join(r.dir, "mine.jpg")
	out, err := exec.Command("vncsnapshot", "-quiet", display(t, url), picture).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.FileExists(t, picture)
	require.NoError(t, cmd.Wait(), "it ends with its viewer")
	require.Contains(t, cmd.Stderr.(*bytes.Buffer).String(), "a connection was refused: it is from a process of uid 65534")
	_, err = net.Dial("tcp", strings.TrimPrefix(url, "vnc://"))
	require.Error(t, err, "somebody still listens")

	t.Log("a viewer that is found")
	tools := filepath.Join(r.dir, "tools")
	require.NoError(t, os.Mkdir(tools, 0o755))
	viewer := "#!/bin/sh\nexec vncsnapshot -quiet 127.0.0.1:$((${1#127.0.0.1::} - 5900)) " + tools + "/shot.jpg\n"
	require.NoError(t, os.WriteFile(filepath.Join(tools, "vncviewer"), []byte(viewer), 0o755))
	cmd = r.command("vm", "console", "m1")
	cmd.Env = append(cmd.Env, "DISPLAY=:0", "PATH="+tools+":"+os.Getenv("PATH"))
	out, err = cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.FileExists(t, tools+"/shot.jpg")
	require.NotContains(t, string(out), "vnc://")

	t.Log("one that fails")
	require.NoError(t, os.WriteFile(filepath.Join(tools, "vncviewer"), []byte("#!/bin/sh\nexit 3\n"), 0o755))
	cmd = r.command("vm", "console", "m1")
	cmd.Env = append(cmd.Env, "DISPLAY=:0", "PATH="+tools+":"+os.Getenv("PATH"))
	out, err = cmd.CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "exit status 3")
	require.Contains(t, string(out), "next: ")

	t.Log("the machine ends")
	cmd, url = r.listening("m1", "[::1]:0")
	c, err := net.Dial("tcp", strings.TrimPrefix(url, "vnc://"))
	require.NoError(t, err)
	defer c.Close()
	rfbScreen(t, c)
	r.must("vm", "kill", "m1")
	_, err = io.Copy(io.Discard, c)
	require.NoError(t, err)
	require.NoError(t, cmd.Wait())
	require.Contains(t, cmd.Stderr.(*bytes.Buffer).String(), "m1: the machine has ended")
}

// display is what vncsnapshot calls a URL.
func display(t *testing.T, url string) string {
	host, port, err := net.SplitHostPort(strings.TrimPrefix(url, "vnc://"))
	require.NoError(t, err)
	n, err := strconv.Atoi(port)
	require.NoError(t, err)
	return fmt.Sprintf("%s:%d", host, n-5900)
}

// listening starts a trayctl that listens for a viewer, and gives where.
func (r *rig) listening(name, address string) (*exec.Cmd, string) {
	r.t.Helper()
	cmd := r.command("vm", "console", name, "--listen", address)
	cmd.Stderr = new(bytes.Buffer)
	stdout, err := cmd.StdoutPipe()
	require.NoError(r.t, err)
	require.NoError(r.t, cmd.Start())
	r.t.Cleanup(func() { _ = cmd.Process.Kill() }) // it has ended, as a rule
	line := make([]byte, 100)
	n, err := stdout.Read(line)
	require.NoError(r.t, err, "%s", cmd.Stderr)
	return cmd, strings.TrimSpace(string(line[:n]))
}

// TestSlowViewers: viewers that ask for pictures and don't read them are ended, and hold up
// neither QEMU nor another viewer meanwhile.
func TestSlowViewers(t *testing.T) {
	r := consoleRig(t)
	r.echoing("m1")
	for range 3 {
		c := websocket.NetConn(t.Context(), r.opened("/v1/vms/m1/console"), websocket.MessageBinary)
		w, h, _ := rfbScreen(t, c)
		ask := []byte{3, 0, 0, 0, 0, 0, byte(w >> 8), byte(w), byte(h >> 8), byte(h)}
		_, err := c.Write(bytes.Repeat(ask, 500)) // 500 MB
		require.NoError(t, err)
	}
	began := time.Now()
	for time.Since(began) < 13*time.Second {
		look := time.Now()
		rfbScreen(t, websocket.NetConn(t.Context(), r.opened("/v1/vms/m1/console"), websocket.MessageBinary))
		require.Less(t, time.Since(look), 3*time.Second)
		time.Sleep(time.Second)
	}
	r.echoes("m1", "s", "S")
	r.stop()
	require.Equal(t, 3, strings.Count(r.log.String(), "the client doesn't read"))
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

// TestConsoleLimits: there is an end to consoles, every end gives back its place, and trayd
// stops at once whoever looks.
func TestConsoleLimits(t *testing.T) {
	r := consoleRig(t)
	r.echoing("m1")
	fds := func() int {
		all, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", r.daemon.Process.Pid))
		require.NoError(t, err)
		return len(all)
	}
	before := fds()
	var open []*websocket.Conn
	for range agent.MaxConsoles {
		open = append(open, r.opened("/v1/vms/m1/console"))
	}
	r.refused("/v1/vms/m1/console", nil, 503, "too-many-consoles")
	r.refused("/v1/vms/m1/serial", nil, 503, "too-many-consoles")
	require.Contains(t, r.trayctl("vm", "console", "m1").stderr, "next: close one of them", "before anything listens")
	got := r.trayctl("vm", "console", "m1", "--serial")
	require.Equal(t, 1, got.code)
	require.Contains(t, got.stderr, "next: close one of them")
	for _, ws := range open {
		ws.CloseNow()
	}
	require.Eventually(t, func() bool { return fds() <= before }, 5*time.Second, 20*time.Millisecond, "descriptors are left")
	r.echoes("m1", "b", "B")

	for range agent.MaxConsoles { // of clients that neither read nor answer
		r.opened("/v1/vms/m1/console")
	}
	began := time.Now()
	r.stop()
	require.Less(t, time.Since(began), 4*time.Second)
	require.Equal(t, 2*agent.MaxConsoles, len(regexp.MustCompile(`msg=closed audit=true .* console=vnc `).FindAllString(r.log.String(), -1)))
	require.Contains(t, r.log.String(), "reason=\"trayd stops\"")
}

// TestConsoleRefused: who can't have a console is told why, and what to do.
func TestConsoleRefused(t *testing.T) {
	r := consoleRig(t)
	r.echoing("m1")
	r.vm("theirs", qemutest.SATA.With("")...)
	r.must("vm", "create", "off", "--memory", "64M", "--network", "none")
	r.must("vm", "create", "bare", "--memory", "64M", "--network", "none", "--vnc=false", "--serial=false", "--start")
	require.Eventually(t, func() bool { return strings.Contains(r.must("vms"), "theirs") }, 10*time.Second, 50*time.Millisecond)
	for _, row := range []struct {
		vm, code string
		status   int
	}{
		{"nope", "no-such-vm", 404},
		{"..%2f..%2fetc", "no-such-vm", 404},
		{"theirs", "vm-not-ours", 409},
		{"off", "vm-not-running", 409},
		{"bare", "no-screen", 409},
	} {
		for _, kind := range []string{"console", "serial"} {
			r.refused("/v1/vms/"+row.vm+"/"+kind, nil, row.status, row.code)
		}
		if strings.Contains(row.vm, "%") {
			continue
		}
		for _, args := range [][]string{{"--serial"}, {}} {
			got := r.trayctl(append([]string{"vm", "console", row.vm}, args...)...)
			require.Equal(t, 1, got.code, "%s", got.stderr)
			require.Contains(t, got.stderr, "\nnext: ")
			require.NotContains(t, got.stdout, "vnc://")
		}
	}
	t.Log("pages of others")
	for _, path := range []string{"/v1/vms/m1/console", "/v1/vms/m1/serial"} {
		r.refused(path, http.Header{"Origin": {"http://evil.example"}}, 403, "forbidden")
		ws, _, err := r.dial(path, http.Header{"Origin": {"http://trayd"}})
		require.NoError(t, err)
		ws.CloseNow()
	}
	t.Log("wrong usage")
	for _, args := range [][]string{
		{"--listen", "0.0.0.0:5901"}, {"--listen", ":5901"}, {"--listen", "5901"}, {"--listen", "[::]:0"},
		{"--for", "5s"}, {"--serial", "--for", "-1s"}, {"--serial", "--listen", "127.0.0.1:0"},
	} {
		got := r.trayctl(append([]string{"vm", "console", "m1"}, args...)...)
		require.Equal(t, 2, got.code, "%v: %s", args, got.stderr)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	got := r.trayctl("vm", "console", "m1", "--listen", l.Addr().String())
	require.Equal(t, 1, got.code)
	require.Contains(t, got.stderr, "next: use another port")
	r.must("vm", "kill", "bare")
	r.stop()
	got = r.trayctl("vm", "console", "m1", "--serial")
	require.Equal(t, 4, got.code)
}
