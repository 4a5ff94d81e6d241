package systemd

import (
	"bytes"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// service starts the test binary as a service with these descriptors from 3 on.
func service(t *testing.T, env []string, files ...*os.File) (wait func() string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), childVariable+"=1", "GORACE=atexit_sleep_ms=0"), env...)
	cmd.ExtraFiles = files
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	require.NoError(t, cmd.Start())
	return func() string {
		require.NoError(t, cmd.Wait(), out.String())
		return out.String()
	}
}

func fileOf(t *testing.T, l interface{ File() (*os.File, error) }) *os.File {
	t.Helper()
	f, err := l.File()
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func listen(t *testing.T, network string) *os.File {
	t.Helper()
	address := filepath.Join(t.TempDir(), "s")
	if network == "tcp" {
		address = "127.0.0.1:0"
	}
	l, err := net.Listen(network, address)
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	return fileOf(t, l.(interface{ File() (*os.File, error) }))
}

func TestListenerTakesOverTheSocketAndLeavesItThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "api.sock")
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	defer l.Close()
	wait := service(t, []string{"LISTEN_FDS=1", "LISTEN_FDNAMES=api.socket"}, fileOf(t, l.(*net.UnixListener)))
	c, err := net.Dial("unix", path)
	require.NoError(t, err)
	defer c.Close()
	said, err := io.ReadAll(c)
	require.NoError(t, err)
	assert.Equal(t, "hello from "+path, string(said))
	assert.Equal(t, "served; LISTEN_FDS is now true\n", wait())
	assert.FileExists(t, path)
}

func TestListenerWithoutActivation(t *testing.T) {
	assert.Equal(t, "no listener\n", service(t, nil)())
	// The descriptors are another process's: they went to a parent of ours.
	wait := service(t, []string{"LISTEN_FDS=1", "LISTEN_PID=1"}, listen(t, "unix"))
	assert.Equal(t, "no listener\n", wait())
}

func TestListenerRefusesTheWrongKindAndNumber(t *testing.T) {
	regular, err := os.Create(filepath.Join(t.TempDir(), "file"))
	require.NoError(t, err)
	defer regular.Close()
	gram, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unixgram"})
	require.NoError(t, err)
	defer gram.Close()
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	require.NoError(t, err)
	connection := os.NewFile(uintptr(pair[0]), "connection")
	defer connection.Close()
	defer syscall.Close(pair[1])

	tests := []struct {
		name  string
		files []*os.File
		want  string
	}{
		{"two", []*os.File{listen(t, "unix"), listen(t, "unix")}, "passed 2 sockets (a, b), and one is wanted"},
		{"a file", []*os.File{regular}, "socket a that the service manager passed: it is no socket"},
		{"tcp", []*os.File{listen(t, "tcp")}, "it is not a unix socket"},
		{"datagrams", []*os.File{fileOf(t, gram)}, "it is not a stream socket"},
		{"a connection", []*os.File{connection}, "must not say Accept=yes"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			n := "LISTEN_FDS=" + string(rune('0'+len(test.files)))
			assert.Contains(t, service(t, []string{n, "LISTEN_FDNAMES=a:b"}, test.files...)(), test.want)
		})
	}
}
