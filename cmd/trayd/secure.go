package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"time"

	"github.com/trayd/trayd/internal/api"
)

// listenAgain is how long after a failure a port is tried again: an address may come after
// trayd, and nothing on this host has to wait for that.
const listenAgain = 5 * time.Second

// secureConfig is what TLS is spoken with; nil where trayd listens on no port.
func (d *daemon) secureConfig() (*tls.Config, error) {
	c := d.config.API
	if len(c.Listen) == 0 {
		return nil, nil
	}
	cert, err := loadCertificate(d.config, d.log)
	if err != nil {
		return nil, err
	}
	d.certificate = cert
	conf := &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: cert.get, NextProtos: []string{"http/1.1"}}
	if len(c.Clients) > 0 && c.ClientCAFile == "" {
		d.log.Warn("no [[client]] can come: api.client_ca_file, which signs their certificates, is not set")
	}
	if c.ClientCAFile != "" {
		pem, err := os.ReadFile(c.ClientCAFile)
		if err != nil {
			return nil, fmt.Errorf("api.client_ca_file: %w", err)
		}
		conf.ClientCAs = x509.NewCertPool()
		if !conf.ClientCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("api.client_ca_file %s has no certificate (PEM)", c.ClientCAFile)
		}
		conf.ClientAuth = tls.VerifyClientCertIfGiven
	}
	d.names = append(append([]string{}, c.Names...), cert.names()...)
	if host, err := os.Hostname(); err == nil {
		d.names = append(d.names, host)
	}
	d.log.Info("the certificate for TLS", "file", cert.certFile, "fingerprint", cert.fingerprint())
	return conf, nil
}

// serveSecure serves one address until ctx ends.
func (d *daemon) serveSecure(ctx context.Context, server *api.Server, at netip.AddrPort, conf *tls.Config) {
	for said := ""; ctx.Err() == nil; {
		l, err := d.sockets.listen(ctx, at)
		if err == nil {
			said = ""
			d.log.Info("the API listens", "address", "https://"+at.String())
			err = server.Serve(tls.NewListener(l, conf))
		}
		if errors.Is(err, http.ErrServerClosed) || ctx.Err() != nil {
			return
		}
		if text := err.Error(); text != said {
			said = text
			d.log.Warn("trayd can't be reached at this address; it goes on trying", "address", at.String(), "error", err)
		}
		select {
		case <-time.After(listenAgain):
		case <-ctx.Done():
		}
	}
}
