package agent

import (
	"bufio"
	"io"
	"os"
	"strings"
)

// servesSomebody reports whether whoever listens at a path has accepted a connection there
// that is still open.
func servesSomebody(path string) (bool, error) {
	f, err := os.Open("/proc/net/unix")
	if err != nil {
		return false, err
	}
	defer f.Close()
	return acceptedAt(f, path)
}

// acceptedAt looks for an accepted connection in the kernel's table of unix sockets
// (net/unix/af_unix.c, unix_seq_show): Num RefCount Protocol Flags Type St Inode Path. An
// accepted one has the listener's path and is connected (St 03); one that waits to be accepted
// is 02, and the client's end has no path.
func acceptedAt(table io.Reader, path string) (bool, error) {
	const state, name = 5, 7
	lines := bufio.NewScanner(table)
	for lines.Scan() {
		f := strings.SplitN(strings.Join(strings.Fields(lines.Text()), " "), " ", name+1)
		if len(f) > name && f[name] == path && f[state] == "03" {
			return true, nil
		}
	}
	return false, lines.Err()
}
