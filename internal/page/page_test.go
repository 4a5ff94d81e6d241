package page

import (
	"compress/gzip"
	"crypto/sha512"
	"encoding/base64"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func get(t *testing.T, path string, header ...string) *http.Response {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, path, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	Handler().ServeHTTP(w, r)
	return w.Result()
}

func body(t *testing.T, r io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(r)
	require.NoError(t, err)
	return string(b)
}

func TestFiles(t *testing.T) {
	for _, row := range []struct{ path, kind, has string }{
		{"/", "text/html; charset=utf-8", "<!doctype html>"},
		{"/page/main.js", "text/javascript; charset=utf-8", "import "},
		{"/page/style.css", "text/css; charset=utf-8", ":root"},
		{"/page/icon.svg", "image/svg+xml", "<svg"},
		{"/page/novnc/core/rfb.js", "text/javascript; charset=utf-8", "class RFB"},
		{"/page/novnc/vendor/pako/lib/zlib/inflate.js", "text/javascript; charset=utf-8", "export"},
	} {
		resp := get(t, row.path)
		require.Equal(t, http.StatusOK, resp.StatusCode, row.path)
		require.Equal(t, row.kind, resp.Header.Get("Content-Type"), row.path)
		require.Contains(t, body(t, resp.Body), row.has, row.path)
	}
}

func TestNotFound(t *testing.T) {
	for _, path := range []string{
		"/page/", "/page/nothing.js", "/page/../page.go", "/page/novnc/", "/page/novnc/../main.js", "/page/novnc/package.json",
		"/page/novnc/README.md", "/page/novnc//core/rfb.js", "/index.html", "/v1/vms",
	} {
		require.Equal(t, http.StatusNotFound, get(t, path).StatusCode, path)
	}
	r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader("x"))
	w := httptest.NewRecorder()
	Handler().ServeHTTP(w, r)
	require.Equal(t, http.StatusMethodNotAllowed, w.Code)
}

func TestHeaders(t *testing.T) {
	for _, path := range []string{"/", "/page/main.js", "/page/novnc/core/rfb.js", "/page/nothing.js"} {
		h := get(t, path).Header
		csp := h.Get("Content-Security-Policy")
		require.Contains(t, csp, "default-src 'none'")
		require.NotContains(t, csp, "unsafe", "no inline script, no inline style")
		require.NotContains(t, csp, "*")
		require.Equal(t, "nosniff", h.Get("X-Content-Type-Options"))
		require.Equal(t, "no-referrer", h.Get("Referrer-Policy"))
		require.Equal(t, "same-origin", h.Get("Cross-Origin-Resource-Policy"))
	}
}

// TestCached: what a browser has isn't sent again; it asks each time, since a new trayd has
// a new page.
func TestCached(t *testing.T) {
	for _, coding := range []string{"", "gzip"} {
		first := get(t, "/page/main.js", "Accept-Encoding", coding)
		require.Equal(t, coding, first.Header.Get("Content-Encoding"))
		require.Equal(t, "no-cache", first.Header.Get("Cache-Control"))
		again := get(t, "/page/main.js", "Accept-Encoding", coding, "If-None-Match", first.Header.Get("ETag"))
		require.Equal(t, http.StatusNotModified, again.StatusCode)
		require.Empty(t, body(t, again.Body))
	}
	plain, packed := get(t, "/"), get(t, "/", "Accept-Encoding", "gzip")
	require.NotEqual(t, plain.Header.Get("ETag"), packed.Header.Get("ETag"))
	z, err := gzip.NewReader(packed.Body)
	require.NoError(t, err)
	require.Equal(t, body(t, plain.Body), body(t, z))
}

func TestTakesGzip(t *testing.T) {
	for header, want := range map[string]bool{
		"": false, "gzip": true, "br, gzip": true, "GZIP;q=0.5": true, "gzip;q=0": false, "gzip; q=0.000": false, "identity": false, "x-gzip": false,
	} {
		require.Equal(t, want, takesGzip([]string{header}), header)
	}
}

// TestSmall: without the console the page is a quick one even where nothing is packed.
func TestSmall(t *testing.T) {
	all, err := ownFiles()
	require.NoError(t, err)
	sum, packed := 0, 0
	for name, b := range all {
		f, err := newFile(name, b)
		require.NoError(t, err)
		sum += len(f.plain)
		packed += len(f.packed)
	}
	t.Logf("%d files, %d bytes, %d packed", len(all), sum, packed)
	require.Less(t, sum, 150<<10)
	require.Less(t, packed, 50<<10)
}

// TestNothingInline: the policy refuses it, and a browser would only say so in its console.
func TestNothingInline(t *testing.T) {
	html := body(t, get(t, "/").Body)
	require.NotRegexp(t, `<script(?:[^>]*)>[^<]`, html)
	require.NotRegexp(t, `\son[a-z]+=|\sstyle=|<style`, html)
	require.NotRegexp(t, `https?://`, html)
	all, err := ownFiles()
	require.NoError(t, err)
	for name, b := range all {
		if strings.HasSuffix(name, ".js") {
			require.NotRegexp(t, `innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(`, string(b), name)
		}
	}
}

// TestNoVNC: the viewer is what was published, to the byte.
func TestNoVNC(t *testing.T) {
	recorded, err := os.ReadFile("novnc/integrity")
	require.NoError(t, err)
	_, integrity, ok := strings.Cut(strings.TrimSpace(string(recorded)), " ")
	require.True(t, ok)
	sum := sha512.Sum512(novnc)
	require.Equal(t, integrity, "sha512-"+base64.StdEncoding.EncodeToString(sum[:]))
	all, err := novncFiles()
	require.NoError(t, err)
	require.Contains(t, all, "core/rfb.js")
	for name := range all {
		require.True(t, strings.HasPrefix(name, "core/") || strings.HasPrefix(name, "vendor/pako/"), name)
	}
}
