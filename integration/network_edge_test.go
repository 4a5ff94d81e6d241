//go:build edge

package integration_test

import (
	"crypto/sha256"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/qemutest"
	"github.com/trayd/trayd/internal/wire"
)

// networkRig is trayd in its sandbox, with somebody to talk to.
type networkRig struct {
	*volumeRig
	web  *source // https://example.com and https://127.0.0.1
	port string  // of web
	told chan string
}

// newNetworkRig starts trayd as its units have it.
func newNetworkRig(t *testing.T) *networkRig {
	t.Setenv("TMPDIR", "/srv") // a unit's /tmp is its own
	r := &networkRig{volumeRig: newVolumeRig(t), told: make(chan string, 1000)}
	require.NoError(t, os.Chmod(r.dir, 0o755))
	require.NoError(t, os.Symlink("/run/trayd/api.sock", r.socket()))
	r.serveTLS()
	r.names("127.0.0.1 example.com", "169.254.1.1 trap.test")
	receiver := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, q *http.Request) {
		body, _ := io.ReadAll(q.Body)
		r.told <- string(body)
	}))
	t.Cleanup(receiver.Close)
	r.hook("network", "exec 3<>/dev/tcp/127.0.0.1/"+r.port)
	r.hook("broker", "trayctl --socket /run/trayd/network.sock vms")
	r.hook("api", "trayctl --socket /run/trayd/api.sock vms")
	secret := "/etc/trayd/webhook.secret"
	require.NoError(t, os.WriteFile(secret, []byte(strings.Repeat("s", 32)), 0o644))
	t.Cleanup(func() { require.NoError(t, os.Remove(secret)) })
	r.extra = "[library]\nattempts = 2\nprivate_targets = [\"127.0.0.0/8\"]\nca_file = \"/etc/trayd/ca.pem\"\n" + r.nfsPool("NFS") +
		fmt.Sprintf("[[webhook]]\nurl = %q\nsecret_file = %q\n", receiver.URL, secret)
	const file = "/etc/trayd/trayd.toml"
	r.configure(file, "/var/lib/trayd")
	text := strings.Replace(read(t, file), "[api]\n", "[api]\nlisten = [\"127.0.0.1:8440\"]\n", 1)
	require.NoError(t, os.WriteFile(file, []byte(text), 0o644))
	t.Cleanup(func() {
		tool(t, "systemctl", "stop", "trayd.socket", "trayd.service", "trayd-network.socket", "trayd-network.service")
		if t.Failed() {
			t.Log(tool(t, "journalctl", "--no-pager", "-o", "cat", "-u", "trayd.service", "-u", "trayd-network.service"))
		}
		require.NoError(t, os.Remove(file))
	})
	return r
}

// serveTLS serves the discs, with a certificate that trayd is told of.
func (r *networkRig) serveTLS() {
	t := r.t
	require.NoError(t, os.MkdirAll("/etc/trayd", 0o755))
	r.web = &source{dir: r.discs(), hurried: make(chan struct{}), cut: make(map[string]bool)}
	r.web.Server = httptest.NewTLSServer(r.web)
	t.Cleanup(r.web.close)
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.web.Certificate().Raw})
	require.NoError(t, os.WriteFile("/etc/trayd/ca.pem", ca, 0o644))
	t.Cleanup(func() { require.NoError(t, os.Remove("/etc/trayd/ca.pem")) })
	_, r.port, _ = net.SplitHostPort(r.web.Listener.Addr().String())
}

// names adds lines to /etc/hosts.
func (r *networkRig) names(lines ...string) {
	before, err := os.ReadFile("/etc/hosts")
	require.NoError(r.t, err)
	r.t.Cleanup(func() { require.NoError(r.t, os.WriteFile("/etc/hosts", before, 0o644)) })
	text := string(before) + "\n" + strings.Join(lines, "\n") + "\n"
	require.NoError(r.t, os.WriteFile("/etc/hosts", []byte(text), 0o644))
}

// hook has a command of bash run for events; what it says is in /var/lib/trayd/NAME.said.
func (r *networkRig) hook(name, command string) {
	const dir = "/etc/trayd/hooks.d"
	require.NoError(r.t, os.MkdirAll(dir, 0o755)) // the last hook's cleanup removes it
	text := "#!/bin/bash\nexec 2>>/var/lib/trayd/" + name + ".said\n" + command + "\n"
	require.NoError(r.t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755))
	require.NoError(r.t, os.Chmod(filepath.Join(dir, name), 0o755))
	r.t.Cleanup(func() {
		require.NoError(r.t, os.RemoveAll(dir))
		require.NoError(r.t, os.Remove("/var/lib/trayd/"+name+".said"))
	})
}

// nfsPool is the pool nas, an export of this host's with one disc.
func (r *networkRig) nfsPool(disc string) string {
	t := r.t
	export := filepath.Join(r.dir, "export")
	require.NoError(t, os.Mkdir(export, 0o755))
	tool(t, "cp", r.disc(disc), filepath.Join(export, disc+".iso"))
	for _, file := range []string{"/etc/exports", "/var/lib/nfs/etab", "/var/lib/nfs/rmtab"} { // the maintainer script's
		require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
		require.NoError(t, os.WriteFile(file, nil, 0o644))
	}
	tool(t, "modprobe", "nfsd")
	tool(t, "mount", "-t", "nfsd", "nfsd", "/proc/fs/nfsd")
	t.Cleanup(func() { tool(t, "umount", "/proc/fs/nfsd") })
	tool(t, "exportfs", "-o", "ro,insecure,no_root_squash,no_subtree_check,fsid=1", "127.0.0.1:"+export)
	t.Cleanup(func() { tool(t, "exportfs", "-au") })
	mountd := exec.Command("/usr/sbin/rpc.mountd", "--foreground", "--no-nfs-version", "2", "--no-nfs-version", "3")
	require.NoError(t, mountd.Start())
	t.Cleanup(func() { _ = mountd.Process.Kill(); _ = mountd.Wait() })
	tool(t, "rpc.nfsd", "--no-nfs-version", "3", "--host", "127.0.0.1", "1")
	t.Cleanup(func() { tool(t, "rpc.nfsd", "0") })
	// A server that has just started makes readers wait for those of before: 90 s.
	require.NoError(t, os.WriteFile("/proc/fs/nfsd/v4_end_grace", []byte("Y"), 0))
	return fmt.Sprintf("[[pool]]\nname = \"local\"\ntype = \"dir\"\npath = \"/var/lib/trayd/images\"\n[[pool]]\nname = \"nas\"\ntype = \"mount\"\nsource = %q\nfstype = \"nfs4\"\noptions = \"soft,timeo=50\"\n",
		"example.com:"+export)
}

// exposure is what systemd-analyze says of a unit.
func exposure(t *testing.T, unit string) (level float64) {
	out := tool(t, "systemd-analyze", "security", "--no-pager", unit)
	_, err := fmt.Sscanf(out[strings.LastIndex(out, "level for "):], "level for "+unit+": %f", &level)
	require.NoError(t, err, out)
	return level
}

// TestUnitNetwork: trayd, whose unit has no network, downloads, listens, posts and mounts, by
// sockets that another process opens for it.
func TestUnitNetwork(t *testing.T) {
	r := newNetworkRig(t)
	_, guest := r.machine("vm", qemutest.SATA.With("")...)
	r.disc("WEB")
	tool(t, "systemctl", "start", "trayd.socket", "trayd.service")
	r.up()
	https := "https://example.com:" + r.port

	t.Log("the sandboxes")
	require.LessOrEqual(t, exposure(t, "trayd.service"), 2.0)
	require.Less(t, exposure(t, "trayd-network.service"), 1.5)
	require.Equal(t, "600 root trayd", tool(t, "stat", "-c", "%a %U %G", "/run/trayd/network.sock"))

	t.Log("downloads")
	r.must("image", "add", "name", https+"/WEB.iso")
	r.must("image", "add", "address", "https://127.0.0.1:"+r.port+"/WEB.iso")
	r.must("image", "add", "moved", https+"/moved/WEB.iso")
	r.must("insert", "vm", "image:name")
	require.Equal(t, "WEB", guest.Volume())
	require.Contains(t, r.fails(1, "image", "add", "none", "https://images.invalid/WEB.iso").Code, "source-dns")
	require.Contains(t, r.fails(1, "image", "add", "none", "https://127.0.0.1:1/WEB.iso").Code, "source-refused")
	require.Contains(t, r.fails(1, "image", "add", "none", "https://trap.test/WEB.iso").Code, "target-forbidden")

	t.Log("the broker has no privilege")
	pid := tool(t, "systemctl", "show", "--value", "--property=MainPID", "trayd-network.service")
	status := read(t, "/proc/"+pid+"/status")
	for _, line := range []string{"CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapAmb:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"} {
		require.Contains(t, status, line)
	}
	uid, err := strconv.Atoi(tool(t, "stat", "-c", "%u", "/proc/"+pid))
	require.NoError(t, err)
	require.True(t, 61184 <= uid && uid <= 65519, "%d is no user of the moment (systemd.exec(5), DynamicUser=)", uid)

	t.Log("what trayd starts, and so trayd itself, can't open a socket to the network")
	says := func(hook, words string) {
		require.Eventually(t, func() bool {
			said, _ := os.ReadFile("/var/lib/trayd/" + hook + ".said")
			return strings.Contains(string(said), words)
		}, soon, poll, "%s doesn't say %q", hook, words)
	}
	says("network", "Address family not supported by protocol")
	says("broker", "permission denied")
	says("api", "may not use trayd")

	t.Log("webhooks, and a pool on a server that has a name")
	require.Eventually(t, func() bool { return strings.Contains(<-r.told, `"type":"loaded"`) }, soon, poll)
	r.must("change", "vm", "image:nas/NFS.iso")
	require.Equal(t, "NFS", guest.Volume())
	r.must("eject", "vm")

	t.Run("the broker is killed", r.testKilled)
	t.Run("the API listens", r.testListens)
	t.Run("the kernel shuts addresses", r.testShut)
	t.Run("there is no broker", r.testNoBroker)
}

// testKilled: a download goes on, since its connection is trayd's, and one that breaks off is
// resumed by the next broker.
func (r *networkRig) testKilled(t *testing.T) {
	_, err := writeLargeDisc(r.discs(), "LARGE", 4<<20)
	require.NoError(t, err)
	var added result
	var adding sync.WaitGroup
	adding.Go(func() {
		added = r.trayctl("image", "add", "large", "https://example.com:"+r.port+"/slow/LARGE.iso")
	})
	require.Eventually(t, func() bool { // it is in the middle
		var i wire.Image
		return r.get("/v1/pools/-/images/large", &i) == nil && i.Progress != nil && i.Progress.Bytes > 0
	}, soon, poll)
	tool(t, "systemctl", "kill", "--signal=KILL", "trayd-network.service")
	require.Eventually(t, func() bool {
		return tool(t, "systemctl", "show", "--value", "--property=MainPID", "trayd-network.service") == "0"
	}, soon, poll)
	r.web.CloseClientConnections() // what is taken up again, is by a new one
	r.web.hurry()
	adding.Wait()
	require.Zero(t, added.code, added.stdout+added.stderr)
	require.NotEmpty(t, r.web.asked(), "it was not resumed")
	r.must("image", "verify", "large")
}

// testListens: the API's port is trayd's as long as trayd runs, and not as long as its broker
// does.
func (r *networkRig) testListens(t *testing.T) {
	tool(t, "systemctl", "stop", "trayd-network.service")
	token := filepath.Join(r.dir, "token")
	require.NoError(t, os.WriteFile(token, []byte(r.must("token", "create", "edge", "--role", "change")), 0o600))
	block, _ := pem.Decode([]byte(read(t, "/var/lib/trayd/api.crt")))
	require.NotNil(t, block)
	fingerprint := fmt.Sprintf("%x", sha256.Sum256(block.Bytes))
	out, err := exec.Command("trayctl", "--host", "https://127.0.0.1:8440", "--fingerprint", fingerprint, "--token-file", token, "vms").CombinedOutput()
	require.NoError(t, err, string(out))
	require.Contains(t, string(out), "vm")
}

// testShut: what the broker's unit keeps out is kept from trayd.
func (r *networkRig) testShut(t *testing.T) {
	const dir = "/run/systemd/system/trayd-network.service.d"
	require.NoError(t, os.MkdirAll(dir, 0o755))
	require.NoError(t, os.WriteFile(dir+"/shut.conf", []byte("[Service]\nIPAddressDeny=any\nIPAddressAllow=127.0.0.2\n"), 0o644))
	reload := func() {
		tool(t, "systemctl", "daemon-reload")
		tool(t, "systemctl", "stop", "trayd-network.service")
	}
	t.Cleanup(func() { // before the other parts, whatever becomes of this one
		require.NoError(t, os.RemoveAll(dir))
		reload()
	})
	reload()
	p := r.fails(1, "image", "add", "none", "https://example.com:"+r.port+"/WEB.iso")
	require.Contains(t, p.Code, "source-unreachable")
	require.Contains(t, p.Detail, "didn't answer in time", "the kernel drops what is sent")
	require.NoError(t, os.RemoveAll(dir))
	reload()
	r.must("image", "add", "let-out", "https://example.com:"+r.port+"/WEB.iso")
	r.must("image", "rm", "let-out")
}

// testNoBroker: discs are changed without a network, and the error of a download says what is
// missing.
func (r *networkRig) testNoBroker(t *testing.T) {
	tool(t, "systemctl", "stop", "trayd-network.socket", "trayd-network.service")
	p := r.fails(1, "image", "add", "none", "https://example.com:"+r.port+"/WEB.iso")
	require.Contains(t, p.Next, "systemctl status trayd-network")
	require.Contains(t, p.Code, "source-unreachable")
	r.must("insert", "vm", "image:name")
	r.must("eject", "vm")
	tool(t, "systemctl", "start", "trayd-network.socket")
	r.must("image", "add", "again", "https://example.com:"+r.port+"/WEB.iso")
	for _, name := range []string{"name", "address", "moved", "large", "again"} {
		r.must("image", "rm", name)
	}
}
