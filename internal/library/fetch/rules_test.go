package fetch

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSources(t *testing.T) {
	for _, row := range []struct {
		allow   string
		yes, no []string
	}{
		{"https://example.com/isos/",
			[]string{"https://example.com/isos/a.iso", "https://EXAMPLE.com:443/isos/x/y", "https://example.com./isos/a"},
			[]string{"http://example.com/isos/a.iso", "https://example.com/isosx", "https://example.com/other", "https://example.com:8443/isos/a",
				"https://example.com.evil.org/isos/a", "https://example.com/isos/../secret", "https://example.com/isos/%2e%2e/secret", "https://example.com/isos/..%2fsecret", `https://example.com/isos/..\secret`}},
		{"https://example.com:8443", []string{"https://example.com:8443/a"}, []string{"https://example.com/a"}},
		{"http://example.com/a", []string{"http://example.com/a", "http://example.com/a/b"}, []string{"http://example.com/ab", "https://example.com/a"}},
		{"example.com", []string{"http://example.com/x", "https://example.com:8443/y"}, []string{"https://www.example.com/x", "https://example.org"}},
		{"example.com:81", []string{"http://example.com:81/x"}, []string{"http://example.com/x"}},
		{"*.example.com", []string{"https://a.example.com/x", "https://a.b.example.com/x"}, []string{"https://example.com/x", "https://notexample.com/x"}},
		{"[2001:db8::1]", []string{"http://[2001:db8::1]/x", "http://[2001:db8::1]:80/x"}, []string{"http://[2001:db8::2]/x"}},
	} {
		c := newClient(t, func(o *Options) { o.Allow = []string{"other.org", row.allow} })
		for _, u := range row.yes {
			_, err := c.parse(u)
			require.Nil(t, err, "%s allows %s", row.allow, u)
		}
		for _, u := range row.no {
			_, err := c.parse(u)
			require.NotNil(t, err, "%s doesn't allow %s", row.allow, u)
			require.Equal(t, SourceForbidden, err.Kind)
		}
	}
	for _, bad := range []string{"", "ftp://x/", "https://", "https://u:p@x/", "https://x/?q", "https://x/../y", "*.*", "a b", "x/y", "*", "u@x"} {
		require.Error(t, CheckSource(bad), "%q", bad)
		_, err := New(Options{Allow: []string{bad}})
		require.ErrorContains(t, err, `write "https://host/path/", "host", "host:port" or "*.host"`)
	}
}

func TestURLsThatAreNotFetched(t *testing.T) {
	for raw, says := range map[string]string{
		"ftp://example.com/x":                      `only http and https are fetched, and this is "ftp"`,
		"file:///etc/shadow":                       "only http and https",
		"/srv/x.iso":                               "only http and https",
		"https:///x":                               "no host",
		"https://me:hunter2@example.com/x":         "has a login in it",
		"https://example.com/%zz":                  "not a URL",
		"https://x/" + strings.Repeat("a", maxURL): "not a URL",
	} {
		_, err := newClient(t).Run(t.Context(), newDisk(t).job(raw))
		requireKind(t, BadURL, err)
		require.ErrorContains(t, err, says)
		require.NotContains(t, err.Error(), "hunter2")
	}
	_, err := newClient(t).Run(t.Context(), newDisk(t).job())
	requireKind(t, BadURL, err)
}

func TestAddressesThatAreNotDialled(t *testing.T) {
	allow := []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32"), netip.MustParsePrefix("169.254.7.0/24")}
	for text, no := range map[string]bool{
		"127.0.0.1": true, "127.9.9.9": true, "::1": true, "::ffff:127.0.0.1": true, "0.0.0.0": true, "0.1.2.3": true, "::": true,
		"169.254.169.254": true, "fe80::1": true, "fe80::1%eth0": true, "224.0.0.1": true, "ff02::1": true, "255.255.255.255": true,
		"64:ff9b::7f00:1": true, "64:ff9b::a9fe:a9fe": true, "fd00:ec2::254": true, "100.100.100.200": true,
		"127.0.0.2": false, "::ffff:127.0.0.2": false, "169.254.7.9": false,
		"10.1.2.3": false, "192.168.0.1": false, "172.16.0.1": false, "fd00::1": false, "192.0.2.1": false, "2001:db8::1": false, "64:ff9b::c000:201": false,
	} {
		require.Equal(t, no, forbidden(netip.MustParseAddr(text), allow) != "", text)
	}
}

func TestATargetIsCheckedAfterItsNameWasResolved(t *testing.T) {
	s, seen := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) { file(w, r, []byte("x"), "") })
	_, port, err := net.SplitHostPort(s.Listener.Addr().String())
	require.NoError(t, err)
	strict := newClient(t, func(o *Options) { o.AllowPrivate = nil })
	for _, host := range []string{"localhost", "127.0.0.1"} { // localhost is in /etc/hosts
		_, err = strict.Run(t.Context(), newDisk(t).job("http://"+host+":"+port+"/x"))
		requireKind(t, TargetForbidden, err)
		require.ErrorContains(t, err, "to `private_targets` in [library]")
	}
	require.Zero(t, seen.len())
	_, err = newClient(t).Run(t.Context(), newDisk(t).job("http://localhost:"+port+"/x"))
	require.NoError(t, err)
}

func TestRedirects(t *testing.T) {
	want := random(1000)
	s, seen := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) {
		path, _ := url.PathUnescape(r.URL.RawQuery)
		switch r.URL.Path {
		case "/file":
			file(w, r, want, `"a"`)
		case "/to":
			w.Header().Set("Location", path)
			w.WriteHeader(http.StatusFound)
		case "/count":
			var n int
			_, _ = fmt.Sscan(path, &n)
			if n == 0 {
				file(w, r, want, `"a"`)
				return
			}
			http.Redirect(w, r, fmt.Sprintf("/count?%d", n-1), http.StatusTemporaryRedirect)
		case "/nowhere":
			w.WriteHeader(http.StatusFound)
		}
	})
	d := newDisk(t)
	res, err := newClient(t).Run(t.Context(), d.job(s.URL+"/to?/file"))
	require.NoError(t, err)
	require.Equal(t, s.URL+"/to", res.URL, "what was asked for")
	d.has(want)
	_, err = newClient(t).Run(t.Context(), newDisk(t).job(s.URL+"/count?10"))
	require.NoError(t, err)

	for _, row := range []struct {
		path string
		kind Kind
		says string
	}{
		{"/count?11", RedirectLoop, "more than 10 times"},
		{"/to?ftp://x/y", RedirectForbidden, "only http and https"},
		{"/to?http://me:hunter2@example.com/y", RedirectForbidden, "has a login in it"},
		{"/to?http://elsewhere.example/y%3Fsecret", RedirectForbidden, "it redirects to http://elsewhere.example/y: this source is not among those"},
		{"/to?http://[::1", RedirectForbidden, "not a URL"},
		{"/nowhere", Rejected, "302"},
	} {
		before := seen.len()
		_, err := newClient(t, func(o *Options) { o.Allow = []string{"127.0.0.1"} }).Run(t.Context(), newDisk(t).job(s.URL+row.path))
		requireKind(t, row.kind, err)
		require.ErrorContains(t, err, row.says)
		require.NotContains(t, err.Error(), "hunter2")
		require.NotContains(t, err.Error(), "secret")
		require.LessOrEqual(t, seen.len()-before, 11)
	}
	// A circle of two.
	circle, _ := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) {
		http.Redirect(w, r, map[string]string{"/a": "/b", "/b": "/a"}[r.URL.Path], http.StatusFound)
	})
	_, err = newClient(t).Run(t.Context(), newDisk(t).job(circle.URL+"/a"))
	requireKind(t, RedirectLoop, err)
	// To an address that isn't dialled: the metadata service, by a name's redirect.
	meta, _ := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) {
		http.Redirect(w, r, "http://169.254.169.254/latest/meta-data", http.StatusFound)
	})
	_, err = newClient(t).Run(t.Context(), newDisk(t).job(meta.URL))
	requireKind(t, TargetForbidden, err)
}

func TestEachStatusIsItsOwnFailure(t *testing.T) {
	for code, want := range map[int]Kind{
		404: NotFound, 410: NotFound, 403: Forbidden, 401: Unauthorized, 400: Rejected, 405: Rejected, 451: Rejected, 204: Rejected, 304: Rejected,
		407: Proxy, 408: ServerError, 425: ServerError, 429: ServerError, 500: ServerError, 502: ServerError, 503: ServerError, 504: ServerError,
	} {
		s, seen := serve(t, func(w http.ResponseWriter, _ *http.Request, _ int) { w.WriteHeader(code) })
		_, err := newClient(t, func(o *Options) { o.Attempts = 2 }).Run(t.Context(), newDisk(t).job(s.URL+"/x?secret"))
		e := requireKind(t, want, err)
		require.NotEmpty(t, e.Next)
		require.NotContains(t, err.Error(), "secret")
		if want == ServerError {
			require.Equal(t, 2, seen.len(), "%d is tried again", code)
		} else {
			require.Equal(t, 1, seen.len(), "%d is not tried again", code)
		}
	}
}

func TestAnswersThatAreNoFile(t *testing.T) {
	for title, row := range map[string]struct {
		answer func(w http.ResponseWriter, r *http.Request)
		kind   Kind
		says   string
	}{
		"a web page": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			_, _ = w.Write([]byte("<html>Please log in"))
		}, WebPage, "is a login needed"},
		"encoded": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write([]byte("x"))
		}, Encoding, `encoded as "gzip"`},
		"a part": {func(w http.ResponseWriter, r *http.Request) {
			r.Header.Set("Range", "bytes=5-")
			file(w, r, random(100), "")
		}, Rejected, "a part of the file"},
	} {
		t.Run(title, func(t *testing.T) {
			s, seen := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) { row.answer(w, r) })
			_, err := newClient(t).Run(t.Context(), newDisk(t).job(s.URL))
			requireKind(t, row.kind, err)
			require.ErrorContains(t, err, row.says)
			require.Equal(t, 1, seen.len())
		})
	}
	s, _ := serve(t, func(w http.ResponseWriter, _ *http.Request, _ int) {
		w.Header().Set("Content-Type", "text/html")
		_, _ = w.Write([]byte("x"))
	})
	j := newDisk(t).job(s.URL)
	j.AllowHTML = true
	_, err := newClient(t).Run(t.Context(), j)
	require.NoError(t, err)
}

func TestValidators(t *testing.T) {
	const date = "Fri, 02 Jan 2026 03:05:05 GMT"
	for _, row := range []struct{ etag, modified, date, want string }{
		{`"a"`, "", "", `"a"`},
		{`"a"`, "Thu, 01 Jan 2026 03:05:05 GMT", date, `"a"`},
		{`W/"a"`, "", date, ""},
		{`W/"a"`, "Thu, 01 Jan 2026 03:05:05 GMT", date, ""},
		{`a`, "", date, ""},
		{`"`, "", date, ""},
		{"", "Thu, 01 Jan 2026 03:05:05 GMT", date, "Thu, 01 Jan 2026 03:05:05 GMT"},
		{"", "Fri, 02 Jan 2026 03:04:05 GMT", date, "Fri, 02 Jan 2026 03:04:05 GMT"},
		{"", "Fri, 02 Jan 2026 03:04:06 GMT", date, ""},
		{"", "Thu, 01 Jan 2026 03:05:05 GMT", "", ""},
		{"", "yesterday", date, ""},
	} {
		h := http.Header{}
		h.Set("ETag", row.etag)
		h.Set("Last-Modified", row.modified)
		h.Set("Date", row.date)
		require.Equal(t, row.want, validator(h), "%+v", row)
	}
}

func TestContentRanges(t *testing.T) {
	first, last, size, ok := contentRange("bytes 5-9/10")
	require.True(t, ok)
	require.Equal(t, []int64{5, 9, 10}, []int64{first, last, size})
	for _, text := range []string{"", "bytes", "bytes 5-9", "bytes 5-9/*", "bytes */10", "bytes 9-5/10", "bytes 5-10/10", "bytes -5/10", "items 5-9/10", "bytes 5-9/99999999999999999999"} {
		_, _, _, ok := contentRange(text)
		require.False(t, ok, text)
	}
}

func TestRedacted(t *testing.T) {
	for raw, want := range map[string]string{
		"https://me:pw@example.com/a%2fb?token=x#y": "https://example.com/a%2fb",
		"https://example.com":                       "https://example.com",
		"https://example.com/%zz?token":             "(no URL)",
		"/x?token":                                  "(no URL)",
	} {
		require.Equal(t, want, Redacted(raw))
	}
}
