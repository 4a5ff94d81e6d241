//go:build integration

package integration_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"
)

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
