package webhook

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
)

// leastSecret is how many bytes a secret has at least; Standard Webhooks wants 24 to 64.
const leastSecret = 16

// run posts what comes, in its order, until ctx ends.
func (h *hook) run(ctx context.Context) {
	for ctx.Err() == nil {
		m, ok := h.take()
		if ok {
			h.deliver(ctx, m)
			continue
		}
		select {
		case <-h.wake:
		case <-ctx.Done():
		}
	}
}

// deliver tries until the message is taken, refused, or too old.
func (h *hook) deliver(ctx context.Context, m message) {
	pause := h.s.o.limits.first
	for tries := 1; ; tries++ {
		again, err := h.post(ctx, m)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			if tries > 1 {
				h.log.Info("a webhook takes events again", "event", m.event, "tries", tries)
			}
			h.s.count(Delivered) // the last: who sees it finds the rest done
			return
		case again == never:
			h.log.Warn("an event can't be posted and isn't tried again", "event", m.event, "error", err)
			h.s.count(GivenUp)
			return
		}
		wait := max(jitter(pause), again)
		if left := h.s.o.limits.life - time.Since(m.born); wait >= left {
			h.log.Warn("an event couldn't be posted in time and isn't tried again", "event", m.event, "tries", tries, "error", err)
			h.s.count(GivenUp)
			return
		}
		h.s.count(Retried)
		if tries == 1 { // for the others of a series the metrics are enough
			h.log.Warn("an event can't be posted yet; trayd tries again", "event", m.event, "for", h.s.o.limits.life, "error", err)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		pause = min(2*pause, h.s.o.limits.most)
	}
}

// jitter is between half of a pause and all of it, so that a receiver that comes back isn't
// met by all hosts at once.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }

// never is for errors that another try doesn't end.
const never = time.Duration(-1)

// post tries once. Of an error, again is how long the receiver wants to be left alone.
func (h *hook) post(ctx context.Context, m message) (again time.Duration, err error) {
	secret, err := readSecret(h.SecretFile)
	if err != nil {
		return 0, err // it may be mended meanwhile
	}
	ctx, cancel := context.WithTimeout(ctx, h.s.o.limits.request)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.URL, bytes.NewReader(m.body))
	if err != nil {
		return never, err
	}
	now := strconv.FormatInt(time.Now().Unix(), 10)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "trayd/"+h.s.o.Version)
	req.Header["webhook-id"] = []string{m.id}
	req.Header["webhook-timestamp"] = []string{now}
	req.Header["webhook-signature"] = []string{sign(secret, m.id, now, m.body)}
	resp, err := h.client.Do(req)
	if err != nil {
		var why *url.Error // it begins with the whole URL, which may hold a password
		if errors.As(err, &why) {
			err = why.Err
		}
		return 0, err
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, h.s.o.limits.mostAnswerBytes) // so that the connection is used again
	return judge(resp.StatusCode, resp.Header)
}

// judge says what an answer means.
func judge(status int, header http.Header) (again time.Duration, err error) {
	switch {
	case status >= 200 && status < 300:
		return 0, nil
	case status >= 500, status == http.StatusTooManyRequests, status == http.StatusRequestTimeout:
		return retryAfter(header.Get("Retry-After"), time.Now()), fmt.Errorf("it answers %d %s", status, http.StatusText(status))
	case status >= 300 && status < 400:
		return never, fmt.Errorf("it answers %d with another place, and redirects aren't followed: correct the URL", status)
	}
	return never, fmt.Errorf("it refuses the event: %d %s", status, http.StatusText(status))
}

// retryAfter reads a number of seconds or a date (RFC 9110 10.2.3); 0 when there is neither.
func retryAfter(text string, now time.Time) time.Duration {
	if n, err := strconv.ParseUint(text, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(at.Sub(now), 0)
	}
	return 0
}

// sign is the signature's header: version 1 of Standard Webhooks.
func sign(secret []byte, id, timestamp string, body []byte) string {
	mac := hmac.New(sha256.New, secret)
	fmt.Fprintf(mac, "%s.%s.%s", id, timestamp, body)
	return "v1," + base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// readSecret reads a secret: after whsec_ its bytes are base64, else it is taken as it stands,
// without the line's end.
func readSecret(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("the secret can't be read: %w", err)
	}
	text := strings.TrimSpace(string(b))
	if coded, ok := strings.CutPrefix(text, "whsec_"); ok {
		secret, err := base64.StdEncoding.DecodeString(coded)
		if err != nil {
			return nil, fmt.Errorf("the secret in %s isn't base64 after whsec_", path)
		}
		text = string(secret)
	}
	if len(text) < leastSecret {
		return nil, fmt.Errorf("the secret in %s has %d bytes; %d are needed: `openssl rand -base64 32 > %s`", path, len(text), leastSecret, path)
	}
	return []byte(text), nil
}

// newClient verifies TLS, follows nothing, and has one connection.
func (h *hook) newClient() *http.Client {
	dial := h.s.o.DialContext
	if dial == nil {
		dial = (&net.Dialer{Timeout: h.s.o.limits.request}).DialContext
	}
	tlsConfig := &tls.Config{MinVersion: tls.VersionTLS12}
	if h.CAFile != "" {
		tlsConfig.RootCAs = h.roots()
	}
	return &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, DialContext: dial, TLSClientConfig: tlsConfig,
			MaxConnsPerHost: 1, IdleConnTimeout: time.Minute, MaxResponseHeaderBytes: 64 << 10, ForceAttemptHTTP2: false,
		},
	}
}

// roots are the system's certificates and those of CAFile. Without the latter the receiver's
// certificate is refused, which the log says.
func (h *hook) roots() *x509.CertPool {
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	pem, err := os.ReadFile(h.CAFile)
	if err != nil || !pool.AppendCertsFromPEM(pem) {
		h.log.Warn("ca_file of a webhook can't be read, or holds no certificate", "file", h.CAFile, "error", err)
	}
	return pool
}

// safeURL is a URL for the log: without what may be secret in it, which for many
// receivers is the path.
func safeURL(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return "(no URL)"
	}
	return u.Scheme + "://" + u.Host
}
