package fetch

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"time"
)

// maxRedirects is how many are followed, as browsers and curl do in their way (RFC 9110,
// 15.4, leaves it open).
const maxRedirects = 10

// maxHeader is the longest header of an answer, in bytes.
const maxHeader = 256 << 10

// answer is a server's answer with the file, 200 or 206.
type answer struct {
	*http.Response
	host string // for people
	body *watched
	stop func() // ends the watch
	ctx  context.Context
}

func (a *answer) close() {
	a.stop()
	a.Body.Close()
}

// get asks for a file, follows redirects, and returns an answer that has it, or part of
// it. header is added to each request. The answer's body ends with ctx, and when nothing
// comes for too long; the caller closes it.
func (c *Client) get(ctx context.Context, u *url.URL, header http.Header, html bool) (*answer, *Error) {
	inner, cancel := context.WithCancelCause(ctx)
	seen := map[string]bool{}
	for hop := 0; ; hop++ {
		seen[u.String()] = true
		r, cred, err := c.hop(inner, u, header)
		if err != nil {
			cancel(nil)
			if ctx.Err() != nil {
				return nil, canceled(ctx)
			}
			return nil, err.at(redact(u))
		}
		switch {
		case r.StatusCode == http.StatusOK, r.StatusCode == http.StatusPartialContent:
			if err := usable(r, html); err != nil {
				r.Body.Close()
				cancel(nil)
				return nil, err.at(redact(u))
			}
			a := &answer{Response: r, host: u.Host, body: &watched{body: r.Body}, ctx: inner}
			a.stop = c.watch(inner, cancel, a.body)
			return a, nil
		case r.StatusCode == http.StatusRequestedRangeNotSatisfiable && header.Get("Range") != "":
			r.Body.Close()
			cancel(nil)
			return nil, anew("the server has no such range").at(redact(u))
		}
		r.Body.Close()
		next, err := c.next(u, r, cred, hop, seen)
		if err != nil {
			cancel(nil)
			return nil, err.at(redact(u))
		}
		u = next
	}
}

// next is where an answer that has no file sends us.
func (c *Client) next(u *url.URL, r *http.Response, cred *Credential, hop int, seen map[string]bool) (*url.URL, *Error) {
	location := r.Header.Get("Location")
	switch r.StatusCode {
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
	default:
		location = ""
	}
	if location == "" {
		sent := ""
		if cred != nil {
			sent = cred.String()
		}
		return nil, refusal(r, u.Host, sent, time.Now())
	}
	to, err := u.Parse(location)
	if err != nil || len(location) > maxURL { // err has the whole of it
		return nil, fail(RedirectForbidden, "tell who runs it", "%s redirects to what is not a URL", u.Host)
	}
	to.Fragment, to.RawFragment = "", ""
	if e := c.check(to); e != nil {
		e.Kind, e.Detail = RedirectForbidden, "it redirects to "+redact(to)+": "+e.Detail
		return nil, e
	}
	switch {
	case u.Scheme == "https" && to.Scheme != "https":
		return nil, fail(RedirectForbidden, "use the address that it sends to yourself, if that is meant", "it redirects from https to http, to %s", redact(to))
	case seen[to.String()]:
		return nil, fail(RedirectLoop, "it may want a login, or cookies, which trayd doesn't keep", "it redirects in a circle, by %s", redact(to))
	case hop+1 > maxRedirects:
		return nil, fail(RedirectLoop, "use the address at the end", "it redirects more than %d times", maxRedirects)
	}
	return to, nil
}

// hop sends one request, on a connection of its own: a download wants no other, and each
// host has its own certificates and its own way, through a proxy or not.
func (c *Client) hop(ctx context.Context, u *url.URL, header http.Header) (*http.Response, *Credential, *Error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil { // err has the whole URL
		return nil, nil, fail(BadURL, "give the https:// address of a file", "this can't be asked for")
	}
	for name, values := range header {
		r.Header[name] = values
	}
	r.Header.Set("Accept-Encoding", "identity")
	r.Header.Set("User-Agent", c.o.UserAgent)
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if err := c.roots(conf); err != nil {
		return nil, nil, fail(LocalIO, "see `ca_file` in [library]", "the certificates to trust can't be read: %v", err).because(err)
	}
	cred := c.credential(u)
	if cred != nil {
		if err := cred.apply(r, conf); err != nil {
			return nil, nil, fail(LocalIO, "see the [[credential]] for "+cred.Host, "the credential can't be read: %v", err).because(err)
		}
	}
	t, e := c.transport(r, conf)
	if e != nil {
		return nil, nil, e
	}
	a, err := t.RoundTrip(r)
	if err != nil {
		return nil, nil, broken(err, u.Host, time.Now())
	}
	return a, cred, nil
}

func (c *Client) roots(conf *tls.Config) error {
	if c.o.CAFile == "" {
		return nil
	}
	pem, err := os.ReadFile(c.o.CAFile)
	if err != nil {
		return err
	}
	if conf.RootCAs, err = x509.SystemCertPool(); err != nil {
		conf.RootCAs = x509.NewCertPool()
	}
	if !conf.RootCAs.AppendCertsFromPEM(pem) {
		return fmt.Errorf("%s has no certificate in PEM form", c.o.CAFile)
	}
	return nil
}

// transport is for one request. It speaks HTTP/1.1, whose connection carries one file and
// whose failures say which.
func (c *Client) transport(r *http.Request, conf *tls.Config) (*http.Transport, *Error) {
	check := c.guard
	t := &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, c.o.Connect)
			defer cancel()
			return c.o.Dial(ctx, network, address, check)
		},
		TLSClientConfig:        conf,
		TLSHandshakeTimeout:    c.o.Connect,
		ResponseHeaderTimeout:  c.o.HeaderTimeout,
		MaxResponseHeaderBytes: maxHeader,
		DisableKeepAlives:      true,
		DisableCompression:     true,
	}
	proxy, err := c.o.Proxy(r)
	if err != nil { // err has its URL
		return nil, fail(Proxy, "see HTTPS_PROXY and HTTP_PROXY in trayd's environment", "the proxy's address can't be read")
	}
	if proxy == nil {
		return t, nil
	}
	if a, err := netip.ParseAddr(r.URL.Hostname()); err == nil {
		if what := forbidden(a, c.o.AllowPrivate); what != "" {
			return nil, broken(&targetError{addr: a, what: what}, r.URL.Host, time.Now())
		}
	}
	t.Proxy = http.ProxyURL(proxy)
	check = nil // the proxy is dialled
	t.OnProxyConnectResponse = func(_ context.Context, _ *url.URL, _ *http.Request, a *http.Response) error {
		if a.StatusCode == http.StatusOK {
			return nil
		}
		e := refusal(a, "the proxy", "", time.Now())
		e.Kind, e.Next = Proxy, "see whether the proxy lets "+r.URL.Host+" through"
		if a.StatusCode == http.StatusProxyAuthRequired {
			e.Next = "put the login for it into HTTPS_PROXY of trayd's environment"
		}
		return e
	}
	return t, nil
}

// usable says whether an answer with a good status has a file as it is.
func usable(r *http.Response, html bool) *Error {
	if e := r.Header.Get("Content-Encoding"); e != "" && e != "identity" {
		return fail(Encoding, "let the server send the file as it is", "it is encoded as %.40q, which wasn't asked for", e)
	}
	kind, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	switch {
	case !html && (kind == "text/html" || kind == "application/xhtml+xml"):
		return fail(WebPage, "is a login needed, or is it the page that has the link?", "this is a web page, not a file")
	case kind == "multipart/byteranges":
		return fail(Rejected, "use another mirror", "the answer has several ranges, and one was asked for")
	case r.StatusCode == http.StatusPartialContent && r.Request.Header.Get("Range") == "":
		return fail(Rejected, "use another mirror", "the answer is a part of the file, and all was asked for")
	}
	return nil
}
