package fetch

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
)

// maxSecret is the longest password or token, in bytes.
const maxSecret = 64 << 10

// Credential is a login for a host. The files are read when it is used.
type Credential struct {
	Host string // "host" for port 443, or "host:port"
	Path string // a prefix; empty: all of the host

	Username     string // with PasswordFile: HTTP's basic authentication
	PasswordFile string
	TokenFile    string // a bearer token, instead
	CertFile     string // with KeyFile: a client certificate (PEM), alone or beside the others
	KeyFile      string
}

func (c Credential) check() error {
	switch u, err := url.Parse("https://" + c.Host); {
	case err != nil || c.Host == "" || u.Host != c.Host || u.User != nil:
		return fmt.Errorf("the credential's host %.60q is no host or host:port", c.Host)
	case (c.Username == "") != (c.PasswordFile == ""):
		return fmt.Errorf("the credential for %s needs both username and password_file, or neither", c.Host)
	case (c.CertFile == "") != (c.KeyFile == ""):
		return fmt.Errorf("the credential for %s needs both cert_file and key_file, or neither", c.Host)
	case c.Username != "" && c.TokenFile != "":
		return fmt.Errorf("the credential for %s has a username and a token_file: one of them is meant", c.Host)
	case c.Username == "" && c.TokenFile == "" && c.CertFile == "":
		return fmt.Errorf("the credential for %s has no username, token_file or cert_file", c.Host)
	}
	return nil
}

// credential is the one for a URL with the longest path. Without TLS there is none: who
// listens would have it.
func (c *Client) credential(u *url.URL) *Credential {
	if u.Scheme != "https" {
		return nil
	}
	var best *Credential
	for i, cred := range c.o.Credentials {
		at, err := url.Parse("https://" + cred.Host)
		if err != nil || hostOf(at) != hostOf(u) || portOf(at) != portOf(u) || cred.Path != "" && !under(u.Path, cred.Path) {
			continue
		}
		if best == nil || len(cred.Path) > len(best.Path) {
			best = &c.o.Credentials[i]
		}
	}
	return best
}

// apply puts a login into a request, and a client certificate into its TLS.
func (c *Credential) apply(r *http.Request, t *tls.Config) error {
	switch {
	case c.Username != "":
		password, err := secret(c.PasswordFile)
		if err != nil {
			return err
		}
		r.SetBasicAuth(c.Username, password)
	case c.TokenFile != "":
		token, err := secret(c.TokenFile)
		if err != nil {
			return err
		}
		r.Header.Set("Authorization", "Bearer "+token)
	}
	if c.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return fmt.Errorf("the client certificate %s with %s: %w", c.CertFile, c.KeyFile, err)
		}
		t.Certificates = []tls.Certificate{pair}
	}
	return nil
}

// String names it for people.
func (c *Credential) String() string {
	switch {
	case c.Username != "":
		return "the login of " + c.PasswordFile
	case c.TokenFile != "":
		return "the token of " + c.TokenFile
	}
	return "the client certificate " + c.CertFile
}

// secret is a file's first line, which has to be its only one.
func secret(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err != nil {
		return "", err
	}
	text = bytes.TrimRight(text, "\r\n")
	switch {
	case len(text) > maxSecret:
		return "", fmt.Errorf("%s has more than %d bytes", path, maxSecret)
	case len(text) == 0:
		return "", errors.New(path + " is empty")
	case strings.ContainsFunc(string(text), func(r rune) bool { return r < ' ' || r == 0x7f }):
		return "", errors.New(path + " has more than one line, or control characters")
	}
	return string(text), nil
}
