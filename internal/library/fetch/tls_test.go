package fetch

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// authority is a CA of the test's own.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "our own"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-100 * time.Hour), NotAfter: time.Now().Add(100 * time.Hour)}
	var err error
	a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	der, err := x509.CreateCertificate(rand.Reader, template, template, a.key.Public(), a.key)
	require.NoError(t, err)
	a.cert, err = x509.ParseCertificate(der)
	require.NoError(t, err)
	a.file = filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(a.file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	return a
}

// issue makes a certificate for a name, or address, and its files.
func (a *authority) issue(name string, from, to time.Time) (pair tls.Certificate, certFile, keyFile string) {
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotBefore: from, NotAfter: to,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	if ip := net.ParseIP(name); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{name}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(a.t, err)
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	require.NoError(a.t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(a.t, err)
	dir := a.t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	require.NoError(a.t, os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	require.NoError(a.t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600))
	pair, err = tls.LoadX509KeyPair(certFile, keyFile)
	require.NoError(a.t, err)
	return pair, certFile, keyFile
}

// now is from an hour ago to one from now.
func (a *authority) now(name string) tls.Certificate {
	pair, _, _ := a.issue(name, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	return pair
}

func serveTLS(t *testing.T, conf *tls.Config, f http.HandlerFunc) *httptest.Server {
	s := httptest.NewUnstartedServer(f)
	s.TLS = conf
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func anything(w http.ResponseWriter, r *http.Request) { file(w, r, []byte("the file"), `"a"`) }

func TestCertificates(t *testing.T) {
	ca, hour := newAuthority(t), time.Hour
	old, _, _ := ca.issue("127.0.0.1", time.Now().Add(-3*hour), time.Now().Add(-hour))
	future, _, _ := ca.issue("127.0.0.1", time.Now().Add(hour), time.Now().Add(2*hour))
	for title, row := range map[string]struct {
		cert tls.Certificate
		ca   string
		kind Kind
		says string
	}{
		"good":           {ca.now("127.0.0.1"), ca.file, "", ""},
		"expired":        {old, ca.file, TLSExpired, "was not valid now: it is from "},
		"not yet valid":  {future, ca.file, TLSExpired, "see that this host's clock is right"},
		"another's name": {ca.now("example.com"), ca.file, TLSName, "use a name that the certificate has"},
		"unknown CA":     {ca.now("127.0.0.1"), "", TLSUnknownCA, "give its CA with `ca_file` in [library]"},
		"another's CA":   {ca.now("127.0.0.1"), newAuthority(t).file, TLSUnknownCA, "is from an authority that this host doesn't know"},
		"no CA file":     {ca.now("127.0.0.1"), "/nonexistent.pem", LocalIO, "see `ca_file` in [library]"},
		"an empty CA":    {ca.now("127.0.0.1"), "/dev/null", LocalIO, "no certificate in PEM form"},
	} {
		t.Run(title, func(t *testing.T) {
			asked := 0
			s := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{row.cert}, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
				asked++
				return nil, nil
			}}, anything)
			d := newDisk(t)
			_, err := newClient(t, func(o *Options) { o.CAFile = row.ca }).Run(t.Context(), d.job(s.URL+"/x"))
			if row.kind == "" {
				require.NoError(t, err)
				d.has([]byte("the file"))
				return
			}
			requireKind(t, row.kind, err)
			require.ErrorContains(t, err, row.says)
			require.LessOrEqual(t, asked, 1, "it isn't tried again")
		})
	}
}

func TestNoTLSWhereItIsExpected(t *testing.T) {
	s, _ := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) { anything(w, r) })
	_, err := newClient(t).Run(t.Context(), newDisk(t).job(strings.Replace(s.URL, "http:", "https:", 1)))
	requireKind(t, TLS, err)
	require.ErrorContains(t, err, "doesn't speak TLS")
}

func write(t *testing.T, text string) string {
	p := filepath.Join(t.TempDir(), "secret")
	require.NoError(t, os.WriteFile(p, []byte(text), 0o600))
	return p
}

func TestCredentialsGoToTheirHostOnly(t *testing.T) {
	ca := newAuthority(t)
	conf := &tls.Config{Certificates: []tls.Certificate{ca.now("127.0.0.1")}}
	var to, from string
	seen := map[string]string{}
	other := serveTLS(t, conf, func(w http.ResponseWriter, r *http.Request) {
		seen["other"] = r.Header.Get("Authorization")
		anything(w, r)
	})
	s := serveTLS(t, conf, func(w http.ResponseWriter, r *http.Request) {
		seen[r.URL.Path] = r.Header.Get("Authorization")
		if r.URL.Path == "/private/away" {
			http.Redirect(w, r, to, http.StatusFound)
			return
		}
		anything(w, r)
	})
	plain, _ := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) {
		seen["plain"] = r.Header.Get("Authorization")
		anything(w, r)
	})
	to, from = other.URL+"/x", s.URL
	password, token := write(t, "hunter2\n"), write(t, "abc.def\n")
	host := s.Listener.Addr().String()
	c := newClient(t, func(o *Options) {
		o.CAFile = ca.file
		o.Credentials = []Credential{
			{Host: host, Path: "/private", Username: "me", PasswordFile: password},
			{Host: host, Path: "/private/token/", TokenFile: token},
			{Host: plain.Listener.Addr().String(), TokenFile: token},
		}
	})
	for _, u := range []string{from + "/private/x", from + "/private/token/x", from + "/public", from + "/private/away", plain.URL} {
		_, err := c.Run(t.Context(), newDisk(t).job(u))
		require.NoError(t, err, u)
	}
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("me:hunter2"))
	require.Equal(t, map[string]string{"/private/x": basic, "/private/token/x": "Bearer abc.def", "/public": "", "/private/away": basic, "other": "", "plain": ""}, seen)

	// It is read when it is used: a new one counts at once.
	require.NoError(t, os.WriteFile(token, []byte("new"), 0o600))
	_, err := c.Small(t.Context(), from+"/private/token/x", 100)
	require.NoError(t, err)
	require.Equal(t, "Bearer new", seen["/private/token/x"])
	for _, bad := range []string{"", "two\nlines", strings.Repeat("x", maxSecret+1)} {
		require.NoError(t, os.WriteFile(token, []byte(bad), 0o600))
		_, err = c.Small(t.Context(), from+"/private/token/x", 100)
		requireKind(t, LocalIO, err)
		require.ErrorContains(t, err, "see the [[credential]] for "+host)
		require.NotContains(t, err.Error(), "lines\n")
	}
}

func TestACredentialThatIsRefusedIsNamed(t *testing.T) {
	ca := newAuthority(t)
	s := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{ca.now("127.0.0.1")}}, func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusUnauthorized)
	})
	token := write(t, "abc.def")
	with := func(o *Options) {
		o.CAFile, o.Credentials = ca.file, []Credential{{Host: s.Listener.Addr().String(), TokenFile: token}}
	}
	_, err := newClient(t, with).Small(t.Context(), s.URL, 100)
	requireKind(t, Unauthorized, err)
	require.ErrorContains(t, err, "the token of "+token)
	require.NotContains(t, err.Error(), "abc.def")
	_, err = newClient(t, func(o *Options) { o.CAFile = ca.file }).Small(t.Context(), s.URL, 100)
	require.ErrorContains(t, err, "give a login in a [[credential]]")
}

func TestClientCertificates(t *testing.T) {
	ca := newAuthority(t)
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	s := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{ca.now("127.0.0.1")}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: roots}, anything)
	_, cert, key := ca.issue("edge-7", time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	_, err := newClient(t, func(o *Options) {
		o.CAFile, o.Credentials = ca.file, []Credential{{Host: s.Listener.Addr().String(), CertFile: cert, KeyFile: key}}
	}).Small(t.Context(), s.URL, 100)
	require.NoError(t, err)
	_, err = newClient(t, func(o *Options) { o.CAFile = ca.file }).Small(t.Context(), s.URL, 100)
	requireKind(t, TLS, err)
	require.ErrorContains(t, err, "if it wants a client certificate")
}

func TestCredentialsThatCannotBeMeant(t *testing.T) {
	for says, c := range map[string]Credential{
		"is no host":                  {Host: "a/b", TokenFile: "/x"},
		"both username":               {Host: "a", Username: "x"},
		"both cert_file":              {Host: "a", CertFile: "x"},
		"one of them is meant":        {Host: "a", Username: "x", PasswordFile: "/x", TokenFile: "/y"},
		"has no username, token_file": {Host: "a"},
	} {
		_, err := New(Options{Credentials: []Credential{c}})
		require.ErrorContains(t, err, says)
	}
}

func TestFromTLSToNoTLSIsNotFollowed(t *testing.T) {
	ca := newAuthority(t)
	plain, _ := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) { anything(w, r) })
	s := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{ca.now("127.0.0.1")}}, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, plain.URL+"/x?secret", http.StatusFound)
	})
	_, err := newClient(t, func(o *Options) { o.CAFile = ca.file }).Small(t.Context(), s.URL, 100)
	requireKind(t, RedirectForbidden, err)
	require.ErrorContains(t, err, "from https to http")
	require.NotContains(t, err.Error(), "secret")
}

// proxy is a forward proxy of a few lines, on loopback.
func proxy(t *testing.T, seen *[]string, login string) *url.URL {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		*seen = append(*seen, r.Method+" "+r.Host)
		if login != "" && r.Header.Get("Proxy-Authorization") != "Basic "+base64.StdEncoding.EncodeToString([]byte(login)) {
			w.WriteHeader(http.StatusProxyAuthRequired)
			return
		}
		if r.Method != http.MethodConnect {
			file(w, r, []byte("by proxy"), "")
			return
		}
		to, err := net.Dial("tcp", r.Host)
		if err != nil {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		defer to.Close()
		from, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer from.Close()
		fmt.Fprint(from, "HTTP/1.1 200 OK\r\n\r\n")
		go func() {
			_, _ = io.Copy(to, from)
			to.Close()
		}()
		_, _ = io.Copy(from, to)
	}))
	t.Cleanup(s.Close)
	u, err := url.Parse(s.URL)
	require.NoError(t, err)
	if user, password, ok := strings.Cut(login, ":"); ok {
		u.User = url.UserPassword(user, password)
	}
	return u
}

func TestThroughAProxy(t *testing.T) {
	ca := newAuthority(t)
	s := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{ca.now("127.0.0.1")}}, anything)
	var seen []string
	p := proxy(t, &seen, "me:hunter2")
	by := func(p *url.URL) func(*Options) {
		return func(o *Options) { o.CAFile, o.Attempts, o.Proxy = ca.file, 2, http.ProxyURL(p) }
	}
	got, err := newClient(t, by(p)).Small(t.Context(), s.URL, 100)
	require.NoError(t, err)
	require.Equal(t, "the file", string(got))
	got, err = newClient(t, by(p)).Small(t.Context(), "http://example.com/x", 100)
	require.NoError(t, err)
	require.Equal(t, "by proxy", string(got))
	require.Equal(t, []string{"CONNECT " + s.Listener.Addr().String(), "GET example.com"}, seen)

	// The proxy is on loopback and may be dialled; a target that is an address may not.
	strict := newClient(t, by(p), func(o *Options) { o.AllowPrivate = nil })
	_, err = strict.Small(t.Context(), "http://example.com/x", 100)
	require.NoError(t, err)
	_, err = strict.Small(t.Context(), "http://169.254.169.254/x", 100)
	requireKind(t, TargetForbidden, err)

	nameless := *p
	nameless.User = url.UserPassword("me", "wrong-password")
	for _, u := range []string{s.URL, "http://example.com/x"} {
		_, err = newClient(t, by(&nameless)).Small(t.Context(), u, 100)
		requireKind(t, Proxy, err)
		require.ErrorContains(t, err, "put the login for it into HTTP")
		require.NotContains(t, err.Error(), "wrong-password")
	}
	_, err = newClient(t, by(p)).Small(t.Context(), "https://127.0.0.1:1/x", 100)
	requireKind(t, Proxy, err)
	dead := &url.URL{Scheme: "http", Host: "127.0.0.1:1", User: p.User}
	for _, u := range []string{s.URL, "http://example.com/x"} {
		_, err = newClient(t, by(dead)).Small(t.Context(), u, 100)
		requireKind(t, Proxy, err)
		require.NotContains(t, err.Error(), "hunter2")
	}
}
