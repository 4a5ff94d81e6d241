//go:build integration

package integration_test

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"net/http/cookiejar"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/qemutest"
	"github.com/trayd/trayd/internal/wire"
)

// trayctlTo runs trayctl, with more of its environment and an input.
func (r *rig) trayctlTo(env []string, stdin io.Reader, args ...string) result {
	r.t.Helper()
	cmd := exec.Command(filepath.Join(bin, "trayctl"), args...)
	cmd.Env, cmd.Stdin = append(os.Environ(), env...), stdin
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if cmd.ProcessState == nil {
		require.NoError(r.t, err)
	}
	return result{cmd.ProcessState.ExitCode(), out.String(), errs.String()}
}

// TestHost: trayctl with another host's trayd, over TLS: how it knows the host, and the host
// it; and all that is more than a request and an answer.
func TestHost(t *testing.T) {
	r := newRig(t)
	pool := filepath.Join(r.dir, "pool")
	require.NoError(t, os.Mkdir(pool, 0o755))
	ours := newAuthority(t, r.dir, "ours")
	ours.client("edge")
	at := r.secured("names = [\"localhost\"]\nclient_ca_file = \"" + ours.file() + "\"\n")
	r.extra = "[[pool]]\nname = \"local\"\ntype = \"dir\"\npath = \"" + pool + "\"\n[[client]]\nname = \"edge\"\nrole = \"view\"\n"
	r.vm("vm1", qemutest.SATA.With("")...)
	r.start("")
	r.ready()
	r.echoing("m1")
	token := r.newToken("ci", "change", "1h")
	tokenFile := filepath.Join(r.dir, "token")
	require.NoError(t, os.WriteFile(tokenFile, []byte(token+"\n"), 0o600))
	host := "https://" + at
	named := "https://localhost" + at[strings.LastIndex(at, ":"):]
	crt := filepath.Join(r.dir, "state", "api.crt")
	openssl, err := os.ReadFile(crt)
	require.NoError(t, err)
	fingerprint := fingerprintOf(t, openssl)
	try := func(args ...string) result { return r.trayctlTo(nil, nil, args...) }
	must := func(args ...string) string {
		t.Helper()
		got := try(append([]string{"--host", host, "--fingerprint", fingerprint, "--token-file", tokenFile}, args...)...)
		require.Zero(t, got.code, "%q: %s", args, got.stderr)
		return got.stdout
	}

	// Who the host is.
	require.Contains(t, must("vms"), "vm1")
	for _, same := range []string{strings.ToUpper(strings.TrimPrefix(fingerprint, "sha256:")), "sha256:" + colons(fingerprint)} {
		require.Zero(t, try("--host", host, "--fingerprint", same, "--token-file", tokenFile, "vms").code, same)
	}
	wrong := "sha256:" + strings.Repeat("0", 64)
	got := try("--host", host, "--fingerprint", wrong, "--token-file", tokenFile, "vms")
	require.Equal(t, 4, got.code)
	require.Contains(t, got.stderr, "its certificate has another fingerprint than was given: "+fingerprint)
	got = try("--host", host, "--fingerprint", "abc", "vms")
	require.Equal(t, 2, got.code, got.stderr)
	got = try("--host", named, "--token-file", tokenFile, "vms")
	require.Equal(t, 4, got.code, "nobody vouches for it")
	require.Contains(t, got.stderr, "--fingerprint")
	require.Zero(t, try("--host", named, "--ca-file", crt, "--token-file", tokenFile, "vms").code)
	got = try("--host", named, "--ca-file", ours.file(), "--token-file", tokenFile, "vms")
	require.Equal(t, 4, got.code, "another authority")
	got = try("--host", "https://127.0.0.1:1", "--fingerprint", fingerprint, "vms")
	require.Equal(t, 4, got.code)
	require.Contains(t, got.stderr, "does its trayd listen there (api.listen in its trayd.toml)?")
	require.Equal(t, 2, try("--host", "http://"+at, "vms").code)
	require.NotContains(t, r.log.String(), token)

	// Who we are.
	require.Zero(t, r.trayctlTo([]string{"TRAYD_TOKEN=" + token, "TRAYD_HOST=" + host, "TRAYD_FINGERPRINT=" + fingerprint}, nil, "vms").code)
	got = try("--host", host, "--fingerprint", fingerprint, "vms")
	require.Equal(t, 1, got.code)
	require.Contains(t, got.stderr, "next: send a token (`trayctl token create`)")
	got = r.trayctlTo([]string{"TRAYD_TOKEN=trayd_guess"}, nil, "--host", host, "--fingerprint", fingerprint, "vms")
	require.Equal(t, 1, got.code)
	require.Contains(t, got.stderr, "unknown, revoked or expired")
	cert := []string{"--host", host, "--fingerprint", fingerprint, "--cert-file", filepath.Join(r.dir, "edge.crt"), "--key-file", filepath.Join(r.dir, "edge.key")}
	require.Zero(t, try(append(cert, "vms")...).code)
	got = try(append(cert, "eject", "vm1")...)
	require.Equal(t, 1, got.code)
	require.Contains(t, got.stderr, "certificate edge (127.0.0.1) has the role view; this needs change")
	require.Contains(t, got.stderr, "next: use a token with that role")

	// More than a request and an answer.
	subscribers := func() string {
		return regexp.MustCompile(`(?m)^trayd_event_subscribers (.*)`).FindString(string(r.local().want(200, "GET", "/metrics", "").body))
	}
	before := subscribers()
	events := exec.Command(filepath.Join(bin, "trayctl"), "--host", host, "--fingerprint", fingerprint, "--token-file", tokenFile, "events")
	stream, err := events.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, events.Start())
	defer func() { _ = events.Wait() }() // its code is of the signal
	defer func() { _ = events.Process.Kill() }()
	require.Eventually(t, func() bool { return subscribers() != before }, 10*time.Second, 10*time.Millisecond)
	large := filepath.Join(r.dir, "large.iso")
	disc, err := os.ReadFile(r.disc("LARGE"))
	require.NoError(t, err)
	disc = append(disc, make([]byte, 8<<20)...)
	require.NoError(t, os.WriteFile(large, disc, 0o644))
	must("image", "add", "large", large)
	stored, err := os.ReadFile(filepath.Join(pool, "large.iso"))
	if err != nil {
		image := decoded[wire.Image](t, r.local().want(200, "GET", "/v1/pools/local/images/large", ""))
		stored, err = os.ReadFile(image.Place)
	}
	require.NoError(t, err)
	require.True(t, bytes.Equal(disc, stored))
	piped := r.trayctlTo(nil, bytes.NewReader(disc), "--host", host, "--fingerprint", fingerprint, "--token-file", tokenFile, "image", "add", "piped", "-")
	require.Zero(t, piped.code, piped.stderr)
	must("insert", "vm1", "image:large")
	require.Equal(t, "LARGE", r.driveStatus("vm1/cd0").Medium.VolumeID)
	lines := bufio.NewScanner(stream)
	for seen := false; !seen; seen = strings.Contains(lines.Text(), "image:large is in") || strings.Contains(lines.Text(), " loaded ") {
		require.True(t, lines.Scan(), "the events have ended")
	}
	console := r.trayctlTo(nil, strings.NewReader("abc"), "--host", host, "--fingerprint", fingerprint, "--token-file", tokenFile, "vm", "console", "m1", "--serial", "--for", "1s")
	require.Contains(t, console.stdout, "ABC", console.stderr)
	require.NotContains(t, r.log.String(), token)
	r.throughUI("--host", host, "--fingerprint", fingerprint, "--token-file", tokenFile)
}

// TestUI: the page by `trayctl ui`, on this host.
func TestUI(t *testing.T) {
	r := newRig(t)
	r.vm("vm1", qemutest.SATA.With("")...)
	r.start("")
	r.ready()
	r.throughUI("--socket", r.socket())
}

// throughUI plays a browser that comes by trayctl ui.
func (r *rig) throughUI(args ...string) {
	t := r.t
	t.Helper()
	cmd := exec.Command(filepath.Join(bin, "trayctl"), append(args, "ui", "--print")...)
	stdout, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	defer func() { _ = cmd.Process.Kill() }() // it may have ended
	line, err := bufio.NewReader(stdout).ReadString('\n')
	require.NoError(t, err)
	address := strings.TrimSpace(line)
	base, _, ok := strings.Cut(address, "/?token=")
	require.True(t, ok, address)
	jar, err := cookiejar.New(nil)
	require.NoError(t, err)
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	browser := &asker{t: t, base: base, client: &http.Client{Jar: jar, Transport: transport}}
	stranger := &asker{t: t, base: base, client: &http.Client{Transport: transport}}
	stranger.problem(401, "session-over", "GET", "/v1/vms", "")
	got := browser.want(200, "GET", strings.TrimPrefix(address, base), "")
	require.Contains(t, string(got.body), "<html")
	require.Contains(t, string(browser.want(200, "GET", "/v1/vms", "").body), `"vm1"`)
	stranger.want(401, "GET", "/v1/vms", "")
	stranger.want(200, "GET", strings.TrimPrefix(address, base), "") // the page, and no session
	stranger.want(401, "GET", "/v1/vms", "")
	browser.problem(421, "wrong-host", "GET", "/v1/vms", "", "Host: evil.example")
	browser.problem(403, "forbidden", "POST", "/v1/vms/vm1/drives/cd0/eject", "", "Origin: https://evil.example")
	browser.want(200, "POST", "/v1/vms/vm1/drives/cd0/eject", "", "Origin: "+base, "Sec-Fetch-Site: same-origin")
	browser.want(200, "GET", "/v1/events", "")

	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(t, cmd.Wait())
	_, err = browser.client.Get(base + "/v1/vms")
	require.Error(t, err, "the way has ended")
}

// fingerprintOf is what openssl says of a certificate, as trayd writes it.
func fingerprintOf(t *testing.T, pem []byte) string {
	t.Helper()
	cmd := exec.Command("openssl", "x509", "-noout", "-fingerprint", "-sha256")
	cmd.Stdin = bytes.NewReader(pem)
	out, err := cmd.Output()
	require.NoError(t, err)
	_, hex, _ := strings.Cut(strings.TrimSpace(string(out)), "=")
	return "sha256:" + strings.ToLower(strings.ReplaceAll(hex, ":", ""))
}

// colons is a fingerprint as openssl has it.
func colons(fingerprint string) string {
	hex := strings.TrimPrefix(fingerprint, "sha256:")
	return strings.TrimSuffix(regexp.MustCompile("..").ReplaceAllString(hex, "$0:"), ":")
}

// TestRevokedConsole: a console that a token let in ends with the token, and says why.
func TestRevokedConsole(t *testing.T) {
	r := newRig(t)
	at := r.secured("")
	r.start("")
	r.ready()
	r.echoing("m1")
	pem, err := os.ReadFile(filepath.Join(r.dir, "state", "api.crt"))
	require.NoError(t, err)
	env := []string{"TRAYD_TOKEN=" + r.newToken("ci", "change", "1h")}
	revoked := time.AfterFunc(2*time.Second, func() { r.trayctl("token", "revoke", "ci") })
	defer revoked.Stop()
	stdin, typed, err := os.Pipe()
	require.NoError(t, err)
	defer stdin.Close()
	defer typed.Close() // a keyboard at which nobody types on
	_, err = io.WriteString(typed, "a")
	require.NoError(t, err)
	began := time.Now()
	got := r.trayctlTo(env, stdin, "--host", "https://"+at, "--fingerprint", fingerprintOf(t, pem), "vm", "console", "m1", "--serial", "--for", "60s")
	require.Less(t, time.Since(began), 30*time.Second)
	require.Greater(t, time.Since(began), 2*time.Second)
	require.Equal(t, "A", got.stdout)
	require.Contains(t, got.stderr, "the token or the certificate counts no more")
	require.NotZero(t, got.code)
	r.echoes("m1", "b", "B") // the console is free again
}
