package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// host is where trayd is reached: a unix socket here, or a host over TLS.
type host struct {
	socket string
	url    string // https://HOST[:PORT]; "" for the socket
	// How it is known who the host is, and who we are.
	fingerprint       string // of its certificate: SHA-256 in hex; "" for its CA's word
	caFile            string // "" for the system's
	tokenFile         string
	certFile, keyFile string

	address string      // of url
	tls     *tls.Config // nil for the socket
	token   string
}

// defaultPort is trayd's (api.listen in trayd.toml has one in any case).
const defaultPort = "8440"

// dialTimeout is how long a connection over TLS may take.
const dialTimeout = 15 * time.Second

// flags are those of every command.
func (h *host) flags(root *cobra.Command) {
	f := root.PersistentFlags()
	f.StringVar(&h.socket, "socket", env("TRAYD_SOCKET", defaultSocket), "trayd's API socket, or $TRAYD_SOCKET")
	f.StringVar(&h.url, "host", env("TRAYD_HOST", ""), "another host's trayd: https://NAME[:PORT], or $TRAYD_HOST")
	f.StringVar(&h.tokenFile, "token-file", env("TRAYD_TOKEN_FILE", ""), "with --host, a file with a token; or $TRAYD_TOKEN_FILE, or the token in $TRAYD_TOKEN")
	f.StringVar(&h.fingerprint, "fingerprint", env("TRAYD_FINGERPRINT", ""), "with --host, its certificate's SHA-256, as trayd prints it; or $TRAYD_FINGERPRINT")
	f.StringVar(&h.caFile, "ca-file", env("TRAYD_CA_FILE", ""), "with --host, certificates (PEM) that are trusted instead of the system's; or $TRAYD_CA_FILE")
	f.StringVar(&h.certFile, "cert-file", env("TRAYD_CERT_FILE", ""), "with --host, a client certificate (PEM); or $TRAYD_CERT_FILE")
	f.StringVar(&h.keyFile, "key-file", env("TRAYD_KEY_FILE", ""), "with --host, its key; or $TRAYD_KEY_FILE")
	root.MarkFlagsMutuallyExclusive("socket", "host")
	root.MarkFlagsMutuallyExclusive("fingerprint", "ca-file")
	root.MarkFlagsRequiredTogether("cert-file", "key-file")
}

func env(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

// prepare reads what the flags name.
func (h *host) prepare() error {
	if h.url == "" {
		return nil
	}
	u, err := url.Parse(h.url)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.Path != "" && u.Path != "/" || u.User != nil || u.RawQuery != "" {
		return fmt.Errorf("--host %s: use https://NAME[:PORT]", h.url)
	}
	port := u.Port()
	if port == "" {
		port = defaultPort
	}
	h.address = net.JoinHostPort(u.Hostname(), port)
	h.tls = &tls.Config{ServerName: u.Hostname(), MinVersion: tls.VersionTLS13}
	if h.token = os.Getenv("TRAYD_TOKEN"); h.tokenFile != "" {
		b, err := os.ReadFile(h.tokenFile)
		if err != nil {
			return fmt.Errorf("--token-file: %w", err)
		}
		h.token = strings.TrimSpace(string(b))
	}
	if strings.ContainsAny(h.token, "\r\n \t") {
		return errors.New("the token is not one: it is a single word that begins with trayd_")
	}
	if h.certFile != "" {
		c, err := tls.LoadX509KeyPair(h.certFile, h.keyFile)
		if err != nil {
			return fmt.Errorf("--cert-file, --key-file: %w", err)
		}
		h.tls.Certificates = []tls.Certificate{c}
	}
	return h.trust()
}

// trust sets by what the host is known: its certificate, or who signed that.
func (h *host) trust() error {
	if h.fingerprint != "" {
		text := strings.TrimPrefix(strings.ToLower(h.fingerprint), "sha256:")
		want, err := hex.DecodeString(strings.ReplaceAll(text, ":", ""))
		if err != nil || len(want) != sha256.Size {
			return fmt.Errorf("--fingerprint %s: it has 64 hexadecimal digits, as trayd prints it when it starts", h.fingerprint)
		}
		h.tls.InsecureSkipVerify = true // what is below is looked at instead
		h.tls.VerifyConnection = func(s tls.ConnectionState) error {
			if got := sha256.Sum256(s.PeerCertificates[0].Raw); string(got[:]) != string(want) {
				return fmt.Errorf("%w: sha256:%x; it has a new certificate, or somebody else answers", errFingerprint, got)
			}
			return nil
		}
	}
	if h.caFile != "" {
		pem, err := os.ReadFile(h.caFile)
		if err != nil {
			return fmt.Errorf("--ca-file: %w", err)
		}
		h.tls.RootCAs = x509.NewCertPool()
		if !h.tls.RootCAs.AppendCertsFromPEM(pem) {
			return fmt.Errorf("--ca-file %s has no certificate (PEM)", h.caFile)
		}
	}
	return nil
}

// errFingerprint is a certificate that isn't the one that was given.
var errFingerprint = errors.New("its certificate has another fingerprint than was given")

// String is where, for people.
func (h *host) String() string {
	if h.tls != nil {
		return h.address
	}
	return h.socket
}

// dial connects.
func (h *host) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	if h.tls == nil {
		return d.DialContext(ctx, "unix", h.socket)
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := d.DialContext(ctx, "tcp", h.address)
	if err != nil {
		return nil, err
	}
	secured := tls.Client(conn, h.tls)
	if err := secured.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, &net.OpError{Op: "dial", Net: "tls", Err: err}
	}
	return secured, nil
}

// fields are those of a request's head that say where it goes and who it is from.
func (h *host) fields() string {
	if h.tls == nil {
		return "Host: trayd\r\n"
	}
	s := "Host: " + h.address + "\r\n"
	if h.token != "" {
		s += "Authorization: Bearer " + h.token + "\r\n"
	}
	return s
}
