//go:build integration

package integration_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/wire"
)

// answer is one of the API.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// asker asks a trayd by one way, as somebody.
type asker struct {
	t      testing.TB
	base   string
	token  string
	client *http.Client
	check  *contract // which its answers are compared with; nil: none
}

// local asks by the unix socket, as who runs the test.
func (r *rig) local() *asker {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", r.socket())
	}}
	return &asker{t: r.t, base: "http://trayd", client: &http.Client{Transport: transport}}
}

// secured has trayd listen on a port of loopback, which it returns. More lines of the
// configuration are of its [api] section.
func (r *rig) secured(api string) string {
	r.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(r.t, err)
	defer l.Close()
	r.api += fmt.Sprintf("listen = [%q]\n%s", l.Addr().String(), api)
	return l.Addr().String()
}

// remote asks over TLS, from an address of loopback of its own.
func (r *rig) remote(at, from, token string, cert *tls.Certificate) *asker {
	conf := &tls.Config{InsecureSkipVerify: true} // its fingerprint is another test's
	if cert != nil {
		// Also where the host doesn't ask for one of its authority.
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	transport := &http.Transport{DisableKeepAlives: true, TLSClientConfig: conf, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return d.DialContext(ctx, "tcp", at)
	}}
	return &asker{t: r.t, base: "https://" + at, token: token, client: &http.Client{Transport: transport}}
}

// do sends a request; of a stream only the head of the answer is read.
func (a *asker) do(req *http.Request) answer {
	a.t.Helper()
	if a.token != "" {
		req.Header.Set("Authorization", "Bearer "+a.token)
	}
	resp, err := a.client.Do(req)
	require.NoError(a.t, err, "%s %s", req.Method, req.URL)
	defer resp.Body.Close()
	got := answer{status: resp.StatusCode, header: resp.Header}
	if resp.StatusCode != http.StatusSwitchingProtocols && !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		got.body, err = io.ReadAll(resp.Body)
		require.NoError(a.t, err, "%s %s", req.Method, req.URL)
	}
	return got
}

// ask sends a request with fields of its head ("Name: value").
func (a *asker) ask(method, path, body string, fields ...string) answer {
	a.t.Helper()
	req, err := http.NewRequestWithContext(a.t.Context(), method, a.base+path, strings.NewReader(body))
	require.NoError(a.t, err)
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		if req.Header.Set(name, value); name == "Host" {
			req.Host = value
		}
	}
	got := a.do(req)
	if a.check != nil {
		a.check.check(method, path, got)
	}
	return got
}

// want is ask for an answer with that status.
func (a *asker) want(status int, method, path, body string, fields ...string) answer {
	a.t.Helper()
	got := a.ask(method, path, body, fields...)
	require.Equal(a.t, status, got.status, "%s %s: %s", method, path, got.body)
	return got
}

// problem is want for a refusal with that code.
func (a *asker) problem(status int, code, method, path, body string, fields ...string) wire.Problem {
	a.t.Helper()
	got := a.want(status, method, path, body, fields...)
	p := decoded[wire.Problem](a.t, got)
	require.Equal(a.t, code, p.Code, "%s", got.body)
	require.NotEmpty(a.t, p.Next)
	return p
}

func decoded[T any](t testing.TB, a answer) (v T) {
	t.Helper()
	require.NoError(t, json.Unmarshal(a.body, &v), "%s", a.body)
	return v
}

// authority signs clients' certificates.
type authority struct {
	t    testing.TB
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	dir  string
}

func newAuthority(t testing.TB, dir, name string) *authority {
	t.Helper()
	a := &authority{t: t, dir: dir}
	template := &x509.Certificate{IsCA: true, KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true}
	_, a.cert, a.key = a.sign(name, template)
	return a
}

// file is the authority's certificate.
func (a *authority) file() string { return filepath.Join(a.dir, a.cert.Subject.CommonName+".crt") }

// client is a certificate of somebody, with its files.
func (a *authority) client(name string) *tls.Certificate {
	a.t.Helper()
	pair, _, _ := a.sign(name, &x509.Certificate{KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	return pair
}

func (a *authority) sign(name string, template *x509.Certificate) (*tls.Certificate, *x509.Certificate, *ecdsa.PrivateKey) {
	t := a.t
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template.SerialNumber, template.Subject = big.NewInt(time.Now().UnixNano()), pkix.Name{CommonName: name}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	for suffix, block := range map[string]*pem.Block{".crt": {Type: "CERTIFICATE", Bytes: der}, ".key": {Type: "PRIVATE KEY", Bytes: secret}} {
		var b bytes.Buffer
		require.NoError(t, pem.Encode(&b, block))
		require.NoError(t, os.WriteFile(filepath.Join(a.dir, name+suffix), b.Bytes(), 0o600))
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, cert, key
}

// newToken makes a token and returns its secret.
func (r *rig) newToken(name, role, expires string) string {
	r.t.Helper()
	got := r.local().want(http.StatusCreated, "POST", "/v1/tokens", fmt.Sprintf(`{"name":%q,"role":%q,"expires":%q}`, name, role, expires))
	return decoded[wire.NewToken](r.t, got).Secret
}

// dataOf is what stands behind "data: " in a stream of server-sent events.
type dataOf struct{ stream io.Reader }

func (d dataOf) reader() io.Reader {
	r, w := io.Pipe()
	go func() {
		lines := bufio.NewScanner(d.stream)
		for lines.Scan() {
			if data, ok := strings.CutPrefix(lines.Text(), "data: "); ok {
				if _, err := io.WriteString(w, data+"\n"); err != nil {
					return
				}
			}
		}
		w.Close() // of a pipe: no error
	}()
	return r
}
