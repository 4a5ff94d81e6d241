package fetch

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/internal/library/ingest"
	"github.com/trayd/trayd/internal/network"
)

// errStalled and errSlow end an attempt whose server is of no use. They are causes of its
// context.
var (
	errStalled = errors.New("nothing came for too long")
	errSlow    = errors.New("next to nothing came")
)

// broken says what it means that a request, or the reading of its answer, broke off. host
// is for people; now is the host's clock.
func broken(err error, host string, now time.Time) *Error {
	var known *Error
	var target *targetError
	switch {
	case errors.As(err, &known):
		return known
	case errors.As(err, &target):
		return fail(TargetForbidden, "if that is your own server, add "+target.addr.String()+" to `private_targets` in [library]",
			"%s is at %s, which is %s and not dialled", host, target.addr, target.what).because(err)
	case errors.Is(err, errStalled):
		return fail(Stalled, "see whether the network carries large packets, and whether the server is busy", "nothing came any more").because(err).passing()
	case errors.Is(err, errSlow):
		return fail(Stalled, "use another mirror", "less came than is of use").because(err).passing()
	}
	if e := brokenTLS(err, host, now); e != nil {
		return e.because(err)
	}
	return brokenNet(err, host).because(err)
}

func brokenTLS(err error, host string, now time.Time) *Error {
	var (
		invalid x509.CertificateInvalidError
		name    x509.HostnameError
		unknown x509.UnknownAuthorityError
		verify  *tls.CertificateVerificationError
		record  tls.RecordHeaderError
		op      *net.OpError
	)
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fail(TLSExpired, "see that this host's clock is right; else the server's certificate has to be renewed",
			"the certificate of %s was not valid now: it is from %s to %s, and here it is %s", host,
			invalid.Cert.NotBefore.UTC().Format(minute), invalid.Cert.NotAfter.UTC().Format(minute), now.UTC().Format(minute))
	case errors.As(err, &name):
		return fail(TLSName, "use a name that the certificate has", "the certificate of %s is of another name: %v", host, name)
	case errors.As(err, &unknown):
		return fail(TLSUnknownCA, "if that is your own server, give its CA with `ca_file` in [library]", "the certificate of %s is from an authority that this host doesn't know", host)
	case errors.As(err, &invalid), errors.As(err, &verify):
		return fail(TLS, "the server's certificate has to be made anew", "the certificate of %s can't be used: %v", host, err)
	case errors.Is(err, http.ErrSchemeMismatch), errors.As(err, &record):
		return fail(TLS, "is it http:// on that port?", "%s doesn't speak TLS there", host)
	case errors.As(err, &op) && (op.Op == "remote error" || op.Op == "local error"): // crypto/tls, on an alert
		return fail(TLS, "if it wants a client certificate, give one with `cert_file` and `key_file` of a [[credential]]", "%s broke off the TLS connection: %v", host, op.Err)
	}
	return nil
}

const minute = "2006-01-02 15:04 MST"

func brokenNet(err error, host string) *Error {
	var (
		dns     *net.DNSError
		op      *net.OpError
		timeout interface{ Timeout() bool }
		broker  *network.UnavailableError
	)
	late := errors.As(err, &timeout) && timeout.Timeout()
	switch {
	case errors.As(err, &broker):
		return fail(Unreachable, "see `systemctl status trayd-network.socket trayd-network`", "there is no way to %s, since %s can't be used: %s", host, broker.Path, broker.Why).passing()
	case errors.As(err, &op) && op.Op == "proxyconnect":
		return fail(Proxy, "see HTTPS_PROXY and HTTP_PROXY in trayd's environment", "the proxy for %s can't be reached: %v", host, op.Err).passing()
	case errors.As(err, &dns) && dns.IsNotFound:
		return fail(DNS, "is it spelt right?", "there is no host %s", host)
	case errors.As(err, &dns):
		return fail(DNS, "see /etc/resolv.conf and the name server", "the name %s can't be resolved now", host).passing()
	case errors.Is(err, unix.ECONNREFUSED):
		return fail(Refused, "is the server running, and is it that port?", "%s refuses the connection", host).passing()
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EADDRNOTAVAIL):
		return fail(Unreachable, "see this host's network", "there is no way to %s", host).passing()
	case errors.As(err, &op) && op.Op == "dial" && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES)):
		return fail(Unreachable, "see this host's firewall, and IPAddressDeny= of trayd-network.service", "this host doesn't let trayd speak to %s", host).passing()
	case late && errors.As(err, &op) && op.Op == "dial":
		return fail(Unreachable, "see this host's network, and firewalls on the way", "%s didn't answer in time", host).passing()
	case late:
		return fail(Stalled, "see whether the server is busy", "%s took the connection and didn't answer in time", host).passing()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE), errors.Is(err, net.ErrClosed):
		return fail(Truncated, "try again", "the connection to %s ended too early", host).passing()
	}
	// An answer that is cut off in its header looks like one that isn't HTTP.
	return fail(ServerError, "is that an HTTP server?", "the answer of %s can't be used: %v", host, err).passing()
}

// refusal is what a status means that is no success. credential is the one that was sent,
// for people; it may be empty.
func refusal(r *http.Response, host, credential string, now time.Time) *Error {
	says := fmt.Sprintf("%s answers %d", host, r.StatusCode)
	if text := http.StatusText(r.StatusCode); text != "" {
		says += " (" + text + ")"
	}
	switch code := r.StatusCode; {
	case code == http.StatusNotFound, code == http.StatusGone:
		return fail(NotFound, "is it spelt right, or is there a newer version?", "%s", says)
	case code == http.StatusForbidden && credential != "":
		return fail(Forbidden, "has "+credential+" the right to it?", "%s", says)
	case code == http.StatusForbidden:
		return fail(Forbidden, "does it need a login? Then give one in a [[credential]]", "%s", says)
	case code == http.StatusUnauthorized && credential != "":
		return fail(Unauthorized, "see whether "+credential+" is right", "%s", says)
	case code == http.StatusUnauthorized:
		return fail(Unauthorized, "give a login in a [[credential]] with host = \""+host+"\"; it is only sent over https", "%s", says)
	case code == http.StatusProxyAuthRequired:
		return fail(Proxy, "put the login for it into HTTP_PROXY of trayd's environment", "the proxy wants a login")
	case code == http.StatusRequestTimeout, code == http.StatusTooEarly, code == http.StatusTooManyRequests, code >= 500:
		e := fail(ServerError, "try again later, or use another mirror", "%s", says).passing()
		e.after = retryAfter(r.Header.Get("Retry-After"), now)
		return e
	}
	return fail(Rejected, "is it the address of a file?", "%s", says)
}

// retryAfter is seconds or a date (RFC 9110, 10.2.3); what is neither is zero.
func retryAfter(text string, now time.Time) time.Duration {
	if n, err := strconv.ParseUint(text, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if t, err := http.ParseTime(text); err == nil {
		return max(0, t.Sub(now))
	}
	return 0
}

// copied says what it means that a copy to the file broke off.
func copied(ctx context.Context, err error, host string, limit int64, now time.Time) *Error {
	var e *ingest.Error
	errors.As(err, &e)
	switch {
	case e == nil || e.Step == ingest.Write && !ingest.IsFull(err):
		return fail(LocalIO, "see the disk that holds it, and the kernel's log", "what came can't be written: %v", err).because(err)
	case e.Step == ingest.Write:
		return fail(NoSpace, "free space, or use another pool", "the disk is full: %v", err).because(err)
	case e.Step == ingest.Hash:
		return fail(LocalIO, "this is a mistake in trayd", "what came can't be checked: %v", err).because(err)
	case errors.Is(err, ingest.ErrTooLarge):
		return tooLarge(limit).because(err)
	case ctx.Err() != nil:
		return canceled(ctx)
	}
	return broken(e.Err, host, now)
}

func canceled(ctx context.Context) *Error {
	return fail(Canceled, "", "canceled: %v", context.Cause(ctx)).because(context.Cause(ctx))
}

func tooLarge(limit int64) *Error {
	return fail(TooLarge, "if it is right, raise `max_size` in [library]", "it is larger than the %d bytes that are taken", limit)
}
