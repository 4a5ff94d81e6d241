package fetch

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// apache serves a directory with a server that isn't Go's.
func apache(t *testing.T, dir string) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := l.Addr().String()
	require.NoError(t, l.Close())
	own := t.TempDir()
	conf := filepath.Join(own, "apache.conf")
	text := fmt.Sprintf("ServerRoot %s\nPidFile %s/pid\nListen %s\nServerName localhost\nErrorLog %s/log\nDocumentRoot %s\n", own, own, addr, own, dir)
	for _, m := range []string{"mpm_event", "authz_core"} {
		text += fmt.Sprintf("LoadModule %s_module /usr/lib/apache2/modules/mod_%s.so\n", m, m)
	}
	text += "User nobody\nGroup nogroup\nFileETag All\n"
	require.NoError(t, os.WriteFile(conf, []byte(text), 0o644))
	for p := dir; p != "/"; p = filepath.Dir(p) { // its workers are nobody
		st, err := os.Stat(p)
		require.NoError(t, err)
		require.NoError(t, os.Chmod(p, st.Mode()|0o5))
	}
	c := exec.Command("apache2", "-D", "FOREGROUND", "-f", conf)
	var says bytes.Buffer
	c.Stdout, c.Stderr = &says, &says
	require.NoError(t, c.Start())
	t.Cleanup(func() {
		_ = c.Process.Signal(os.Interrupt)
		_ = c.Wait()
	})
	require.Eventually(t, func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err == nil
	}, 10*time.Second, 20*time.Millisecond, "%s", &says)
	return addr
}

// TestApacheGoesOnWhereItBrokeOff: Range, If-Range and ETag as another server has them.
func TestApacheGoesOnWhereItBrokeOff(t *testing.T) {
	want := random(9<<20 + 1)
	dir := t.TempDir()
	path := filepath.Join(dir, "disc.iso")
	require.NoError(t, os.WriteFile(path, want, 0o644))
	past := time.Now().Add(-time.Hour)
	require.NoError(t, os.Chtimes(path, past, past)) // a younger file has a weak ETag there
	addr := apache(t, dir)

	var cuts atomic.Int64
	url := chaos(t, addr, func(n int) (int64, bool) { cuts.Add(1); return 2 << 20, n%2 == 0 }) + "/disc.iso"
	d := newDisk(t)
	_, err := newClient(t).Run(t.Context(), d.job(url))
	require.NoError(t, err)
	d.has(want)
	require.Equal(t, 1, d.sums)
	require.Greater(t, cuts.Load(), int64(4))

	// The file is replaced while it is fetched.
	d = newDisk(t)
	other := random(9<<20 + 2)[1:]
	url = chaos(t, addr, func(n int) (int64, bool) {
		if n == 1 {
			return 2 << 20, false
		}
		if n == 2 {
			require.NoError(t, os.WriteFile(path+".new", other, 0o644))
			require.NoError(t, os.Chtimes(path+".new", past.Add(time.Second), past.Add(time.Second)))
			require.NoError(t, os.Rename(path+".new", path))
		}
		return 20 << 20, false
	}) + "/disc.iso"
	_, err = newClient(t).Run(t.Context(), d.job(url))
	require.NoError(t, err)
	d.has(other)
	require.Equal(t, 2, d.sums)

	_, err = newClient(t).Run(t.Context(), newDisk(t).job("http://"+addr+"/missing.iso"))
	requireKind(t, NotFound, err)
	_, err = newClient(t).Run(t.Context(), newDisk(t).job("http://"+addr+"/disc.iso/"))
	requireKind(t, NotFound, err)
}
