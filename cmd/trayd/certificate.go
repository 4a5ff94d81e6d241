package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/trayd/trayd/internal/config"
)

// certificateYears is how long a certificate of our own counts. Clients know it by its
// fingerprint, so that its end would be a failure and nothing else.
const certificateYears = 20

// certificateLook is the least between looks whether the files have changed.
const certificateLook = time.Second

// certificate is the one that trayd shows over TLS. Its files are read anew when they change.
type certificate struct {
	certFile, keyFile string
	log               *slog.Logger

	mu     sync.Mutex // guards all below
	pair   *tls.Certificate
	stamp  [2]time.Time // of the files
	looked time.Time
}

// loadCertificate loads the configured certificate, or the one that trayd has made in its
// state directory, where it is made if it is missing.
func loadCertificate(c *config.Config, log *slog.Logger) (*certificate, error) {
	k := &certificate{certFile: c.API.CertFile, keyFile: c.API.KeyFile, log: log}
	if k.certFile == "" {
		k.certFile, k.keyFile = filepath.Join(c.StateDir, "api.crt"), filepath.Join(c.StateDir, "api.key")
		if _, err := os.Stat(k.certFile); errors.Is(err, fs.ErrNotExist) {
			if err := makeCertificate(k.certFile, k.keyFile, c.API.Names); err != nil {
				return nil, fmt.Errorf("a certificate can't be made: %w", err)
			}
		}
	}
	if err := k.load(); err != nil {
		return nil, fmt.Errorf("the certificate can't be used (api.cert_file, api.key_file): %w", err)
	}
	return k, nil
}

func (k *certificate) load() error {
	k.stamp = k.stamps()
	pair, err := tls.LoadX509KeyPair(k.certFile, k.keyFile)
	if err == nil {
		k.pair = &pair
	}
	return err
}

func (k *certificate) stamps() (all [2]time.Time) {
	for i, file := range []string{k.certFile, k.keyFile} {
		if st, err := os.Stat(file); err == nil {
			all[i] = st.ModTime()
		}
	}
	return all
}

// get is that of tls.Config.GetCertificate. New files that can't be used leave the old ones'
// content in use: a renewal writes two files, one after the other.
func (k *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if now := time.Now(); now.Sub(k.looked) >= certificateLook {
		k.looked = now
		if k.stamps() != k.stamp {
			if err := k.load(); err != nil {
				k.log.Warn("the new certificate can't be used; the one before still is", "file", k.certFile, "error", err)
			} else {
				k.log.Info("the certificate was read anew", "file", k.certFile, "fingerprint", k.fingerprint())
			}
		}
	}
	return k.pair, nil
}

// fingerprint is what `trayctl --fingerprint` takes: the SHA-256 of the certificate, as
// `openssl x509 -fingerprint -sha256` has it.
func (k *certificate) fingerprint() string {
	return fmt.Sprintf("sha256:%x", sha256.Sum256(k.pair.Certificate[0]))
}

// names are those that the certificate is for.
func (k *certificate) names() []string {
	if k.pair.Leaf == nil {
		return nil
	}
	return k.pair.Leaf.DNSNames
}

// makeCertificate makes a key and a certificate that it signs itself. The certificate comes
// last: it says that both are there.
func makeCertificate(certFile, keyFile string, names []string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return err
	}
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: host, Organization: []string{"trayd"}},
		NotBefore:    now.Add(-24 * time.Hour), // clocks at remote sites
		NotAfter:     now.AddDate(certificateYears, 0, 0),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:     append([]string{host}, names...),

		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := writePEM(keyFile, "PRIVATE KEY", secret, 0o600); err != nil {
		return err
	}
	return writePEM(certFile, "CERTIFICATE", der, 0o644)
}

// writePEM makes a file whole or not at all.
func writePEM(path, kind string, der []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // not there any more after a success
	err = errors.Join(pem.Encode(f, &pem.Block{Type: kind, Bytes: der}), f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// ends is when the certificate's time is over.
func (k *certificate) ends() time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.pair.Leaf == nil {
		return time.Time{}
	}
	return k.pair.Leaf.NotAfter
}
