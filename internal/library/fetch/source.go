package fetch

import (
	"fmt"
	"net/url"
	"strings"
)

// maxURL is the longest URL that is taken, in bytes; presigned ones have about 2000.
const maxURL = 8 << 10

// Redacted is a URL for people and records: without its query, where presigned ones have
// their secret, its user and its fragment.
func Redacted(raw string) string {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" {
		return "(no URL)"
	}
	return redact(u)
}

func redact(u *url.URL) string {
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}).String()
}

// parse reads a URL that is to be fetched, and checks that it may be.
func (c *Client) parse(raw string) (*url.URL, *Error) {
	const next = "give the https:// address of a file"
	u, err := url.Parse(strings.TrimSpace(raw))
	if err != nil || len(raw) > maxURL { // err has the whole of it
		return nil, fail(BadURL, next, "this is not a URL")
	}
	if e := c.check(u); e != nil {
		return nil, e.at(redact(u))
	}
	u.Fragment, u.RawFragment = "", ""
	return u, nil
}

// Check says what is wrong with a URL, as far as it tells by itself. The error is an *Error.
func (c *Client) Check(raw string) error {
	if _, err := c.parse(raw); err != nil {
		return err
	}
	return nil
}

// check says whether a URL may be fetched, as far as it tells by itself.
func (c *Client) check(u *url.URL) *Error {
	switch {
	case u.Scheme != "http" && u.Scheme != "https":
		return fail(BadURL, "give the https:// address of a file", "only http and https are fetched, and this is %.20q", u.Scheme)
	case u.Hostname() == "":
		return fail(BadURL, "give the https:// address of a file", "the URL has no host")
	case u.User != nil:
		return fail(BadURL, "leave it out and give it in a [[credential]], with the password in a file", "the URL has a login in it, which would get into logs and records")
	case !c.allowed(u):
		return fail(SourceForbidden, "choose another one, or add it to `sources` in [library]", "this source is not among those that this host may use")
	}
	return nil
}

func (c *Client) allowed(u *url.URL) bool {
	for _, s := range c.allow {
		if s.matches(u) {
			return true
		}
	}
	return len(c.allow) == 0
}

// source is one that is allowed.
type source struct {
	scheme string // empty: both
	host   string // lower case
	below  bool   // hosts below it, and not itself
	port   string // empty: any
	path   string // a prefix; empty: any
}

// CheckSource says what is wrong with an entry of Options.Allow.
func CheckSource(text string) error {
	_, err := parseSource(text)
	return err
}

func parseSource(text string) (source, error) {
	const forms = `write "https://host/path/", "host", "host:port" or "*.host"`
	var s source
	if strings.Contains(text, "://") {
		u, err := url.Parse(text)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || dotted(u.Path) {
			return s, fmt.Errorf("%.100q is not a source: %s", text, forms)
		}
		return source{scheme: u.Scheme, host: hostOf(u), port: portOf(u), path: u.Path}, nil
	}
	rest, below := strings.CutPrefix(text, "*.")
	u, err := url.Parse("//" + rest)
	if err != nil || u.Hostname() == "" || u.Host != rest || u.User != nil || strings.ContainsAny(rest, "*/ ") {
		return s, fmt.Errorf("%.100q is not a source: %s", text, forms)
	}
	return source{host: hostOf(u), below: below, port: u.Port()}, nil
}

func (s source) matches(u *url.URL) bool {
	host := hostOf(u)
	switch {
	case s.scheme != "" && s.scheme != u.Scheme, s.port != "" && s.port != portOf(u):
		return false
	case s.below && !strings.HasSuffix(host, "."+s.host), !s.below && host != s.host:
		return false
	}
	return s.path == "" || under(u.Path, s.path)
}

// under reports whether a path is prefix or below it. The path is decoded, so %2e%2e and
// %2f are what the server makes of them; one that goes up again is under nothing.
func under(path, prefix string) bool {
	if dotted(path) {
		return false
	}
	prefix = strings.TrimSuffix(prefix, "/")
	return path == prefix || strings.HasPrefix(path, prefix+"/")
}

func dotted(path string) bool {
	for part := range strings.FieldsFuncSeq(path, func(r rune) bool { return r == '/' || r == '\\' }) {
		if part == "." || part == ".." {
			return true
		}
	}
	return false
}

func hostOf(u *url.URL) string { return strings.TrimSuffix(strings.ToLower(u.Hostname()), ".") }

func portOf(u *url.URL) string {
	switch {
	case u.Port() != "":
		return u.Port()
	case u.Scheme == "http":
		return "80"
	}
	return "443"
}
