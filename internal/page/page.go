// Package page is the web page over the API: static files inside the program, served as
// they are. There is no build step and no framework; the page's own parts are ES modules
// in static, and all that it does is a request that trayctl could have made.
//
// It promises a browser nothing from any other host: the Content-Security-Policy lets only
// this origin's files run, and no script or style that isn't a file. Text of the API comes
// into the document as text; Trusted Types make the browser refuse anything else.
//
// The console's viewer is noVNC, the unmodified package beneath novnc with its licence. It
// is unpacked in memory when a console is opened first, and not before.
//
// Who may see the page is not decided here: it has no secrets. What it asks the API for is.
package page

import (
	"embed"
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"strings"
)

//go:embed static
var files embed.FS

// prefix is where everything but the page itself is.
const prefix = "/page/"

// policy is the Content-Security-Policy. noVNC draws some pictures from data: URLs, and
// screenshots are blobs; a console is a WebSocket of 'self'.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; " +
	"connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'; " +
	"require-trusted-types-for 'script'; trusted-types 'none'"

// headers go with every answer.
var headers = [][2]string{
	{"Content-Security-Policy", policy},
	{"X-Content-Type-Options", "nosniff"},
	{"X-Frame-Options", "DENY"},
	{"Referrer-Policy", "no-referrer"},
	{"Cross-Origin-Opener-Policy", "same-origin"},
	{"Cross-Origin-Embedder-Policy", "require-corp"},
	{"Cross-Origin-Resource-Policy", "same-origin"},
	{"Permissions-Policy", "camera=(), microphone=(), geolocation=(), usb=(), serial=(), payment=(), fullscreen=(self)"},
	// A new trayd has a new page: browsers ask each time, and mostly get a 304.
	{"Cache-Control", "no-cache"},
}

// Handler serves the page at / and its parts beneath /page/; anything else is not found. It
// may be used by any number of requests at once.
func Handler() http.Handler {
	own := &shelf{load: ownFiles}
	viewer := &shelf{load: novncFiles}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, h := range headers {
			w.Header().Set(h[0], h[1])
		}
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "the page can only be read", http.StatusMethodNotAllowed)
			return
		}
		shelf, name := own, "index.html"
		if r.URL.Path != "/" {
			var ok bool
			if name, ok = strings.CutPrefix(r.URL.Path, prefix); !ok {
				name = "" // no file has that name
			}
			if rest, ok := strings.CutPrefix(name, "novnc/"); ok {
				shelf, name = viewer, rest
			}
		}
		f, err := shelf.file(name)
		if err != nil {
			http.Error(w, "the page can't be had: "+err.Error(), http.StatusInternalServerError)
			return
		}
		if f == nil {
			http.NotFound(w, r)
			return
		}
		f.serve(w, r)
	})
}

func ownFiles() (map[string][]byte, error) {
	all := make(map[string][]byte)
	err := fs.WalkDir(files, "static", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		all[strings.TrimPrefix(name, "static/")], err = files.ReadFile(name)
		return err
	})
	return all, err
}

// contentType is of the few kinds of files there are. It isn't left to the host's tables,
// which a script's type must not depend on.
func contentType(name string) (string, error) {
	switch ext := path.Ext(name); ext {
	case ".html":
		return "text/html; charset=utf-8", nil
	case ".css":
		return "text/css; charset=utf-8", nil
	case ".js":
		return "text/javascript; charset=utf-8", nil
	case ".svg":
		return "image/svg+xml", nil
	default:
		return "", fmt.Errorf("%s: no type is known for %q", name, ext)
	}
}
