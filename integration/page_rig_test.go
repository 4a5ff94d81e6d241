//go:build integration

package integration_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	stdlog "log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/stretchr/testify/require"
)

// pageLimit is how long a page may take to what it has to show, where nothing says less.
const pageLimit = 15 * time.Second

// tab is a page in a real browser. What it asks for and what it complains of is noted, and
// judged when the test ends.
type tab struct {
	*rig
	ctx    context.Context
	origin string

	mu         sync.Mutex // guards below
	requests   []string
	complaints []string
	received   map[string]int64 // bytes that came for a URL's path, with their headers
	paths      map[network.RequestID]string
}

// servePage serves the page and the API on a port of loopback, without sessions. play answers
// in the agent's place where it returns true; nil never does.
func servePage(r *rig, play func(http.ResponseWriter, *http.Request) bool) string {
	to := &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host = "http", "trayd"
			p.Out.Host = p.In.Host
		},
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", r.socket())
		}},
		FlushInterval: -1,
		ErrorLog:      stdlog.New(io.Discard, "", 0), // agents are killed here
		ErrorHandler:  func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if play == nil || !play(w, q) {
			to.ServeHTTP(w, q)
		}
	}))
	r.t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s.URL
}

// openPage opens the page of a host's trayd at a hash, such as "#/vm/m1", in a browser of its
// own, as `trayctl ui` does.
func openPage(r *rig, hash string) *tab {
	r.t.Helper()
	return openPageAs(r, hash, nil)
}

// openPageAs is openPage by another user; nil is this one.
func openPageAs(r *rig, hash string, user *syscall.Credential) *tab {
	r.t.Helper()
	cmd := r.command("ui", "--print")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: user}
	stdout, err := cmd.StdoutPipe()
	require.NoError(r.t, err)
	cmd.Stderr = io.Discard // the browser's end breaks connections off
	require.NoError(r.t, cmd.Start())
	r.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		_ = cmd.Wait()
	})
	address, err := bufio.NewReader(stdout).ReadString('\n')
	require.NoError(r.t, err)
	return browse(r, strings.TrimSpace(address)+hash, user)
}

// openPageAt opens what servePage serves.
func openPageAt(r *rig, hash string, play func(http.ResponseWriter, *http.Request) bool) *tab {
	r.t.Helper()
	return browse(r, servePage(r, play)+"/"+hash, nil)
}

// browse opens an address in a browser of its own, as a user: trayctl lets in only its own
// user's.
func browse(r *rig, address string, user *syscall.Credential) *tab {
	t := r.t
	t.Helper()
	at, err := url.Parse(address)
	require.NoError(t, err)
	p := &tab{rig: r, origin: at.Scheme + "://" + at.Host, received: make(map[string]int64), paths: make(map[network.RequestID]string)}
	profile := filepath.Join(r.dir, "chromium")
	require.NoError(t, os.Mkdir(profile, 0o700))
	options := []chromedp.ExecAllocatorOption{
		chromedp.ExecPath("chromium"), chromedp.UserDataDir(profile), chromedp.Env("HOME=" + profile), chromedp.WindowSize(1280, 900),
		chromedp.NoFirstRun, chromedp.NoDefaultBrowserCheck, chromedp.NoSandbox, chromedp.DisableGPU, chromedp.Headless, chromedp.Flag("headless", "new"),
	}
	for _, flag := range []string{"disable-quic", "disable-background-networking", "disable-component-update", "disable-sync", "disable-dev-shm-usage"} {
		options = append(options, chromedp.Flag(flag, true))
	}
	if user != nil {
		require.NoError(t, os.Chown(profile, int(user.Uid), int(user.Gid)))
		options = append(options, chromedp.ModifyCmdFunc(func(cmd *exec.Cmd) {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: user} // it ends when its pipe does
		}))
	}
	ctx, end := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(end)
	ctx, closed := chromedp.NewContext(ctx, chromedp.WithListener(p.note))
	p.ctx = ctx
	t.Cleanup(func() {
		if t.Failed() {
			p.save("failed-" + strings.ReplaceAll(t.Name(), "/", "-"))
			p.mu.Lock()
			t.Logf("the page's complaints: %q", p.complaints)
			p.mu.Unlock()
		}
		_ = chromedp.Cancel(ctx) // waits for the browser's end
		closed()
	})
	require.NoError(t, chromedp.Do(ctx), "Chromium must be installed (Debian: chromium)") // the browser lives as long as this context
	_, err = chromedp.Call(ctx, network.Enable, network.EnableParams{})
	require.NoError(t, err)
	p.do(chromedp.Navigate(address))
	return p
}

// note takes notice of what the browser tells.
func (p *tab) note(event any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch e := event.(type) {
	case *network.EventRequestWillBeSent:
		p.requests = append(p.requests, e.Request.URL)
		if u, err := url.Parse(e.Request.URL); err == nil {
			p.paths[e.RequestID] = u.Path
		}
	case *network.EventWebSocketCreated:
		p.requests = append(p.requests, strings.Replace(e.URL, "ws://", "http://", 1))
	case *network.EventLoadingFinished:
		p.received[p.paths[e.RequestID]] += int64(e.EncodedDataLength)
	case *log.EventEntryAdded:
		// The browser notes every answer that isn't 2xx; what the page makes of it is its own.
		// Canvases are read back by the tests only.
		if e.Entry.Source == log.EntrySourceNetwork || e.Entry.Level != "warning" && e.Entry.Level != "error" || strings.Contains(e.Entry.Text, "willReadFrequently") {
			return
		}
		p.complaints = append(p.complaints, fmt.Sprintf("%s %s: %s", e.Entry.Source, e.Entry.Level, e.Entry.Text))
	case *runtime.EventExceptionThrown:
		text := e.ExceptionDetails.Text
		if o := e.ExceptionDetails.Exception; o != nil {
			text += " " + o.Description
		}
		p.complaints = append(p.complaints, "exception: "+text)
	case *runtime.EventConsoleAPICalled:
		if e.Type != "error" && e.Type != "warning" {
			return
		}
		said := ""
		for _, a := range e.Args {
			said += " " + string(a.Value) + a.Description
		}
		p.complaints = append(p.complaints, "console:"+said)
	}
}

// quiet demands that the page asked nobody else, and that the browser had nothing to complain
// of: no exception, and nothing that the Content-Security-Policy refused.
func (p *tab) quiet() {
	p.t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	require.Empty(p.t, p.complaints)
	require.NotEmpty(p.t, p.requests)
	for _, r := range p.requests {
		require.True(p.t, strings.HasPrefix(r, p.origin+"/") || strings.HasPrefix(r, "blob:"+p.origin+"/") || strings.HasPrefix(r, "data:"), "a request to %s", r)
	}
}

// asked counts the requests whose URL has a text in it.
func (p *tab) asked(text string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for _, r := range p.requests {
		if strings.Contains(r, text) {
			n++
		}
	}
	return n
}

func (p *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, time.Minute)
	defer cancel()
	require.NoError(p.t, chromedp.Do(ctx, steps...))
}

// eval evaluates an expression of the page.
func eval[T any](p *tab, expression string) T {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, time.Minute)
	defer cancel()
	v, err := chromedp.Run(ctx, chromedp.Evaluate[T](expression))
	require.NoError(p.t, err, "%s", expression)
	return v
}

// quoted is a Go string in a script.
func quoted(s string) string {
	b, _ := json.Marshal(s) // a string can't fail
	return string(b)
}

// until waits for an expression to be true, and says how long that took.
func (p *tab) until(expression string, limit time.Duration) time.Duration {
	p.t.Helper()
	began := time.Now()
	for {
		if eval[bool](p, "Boolean("+expression+")") {
			return time.Since(began)
		}
		if time.Since(began) > limit {
			text := eval[string](p, "document.body.innerText")
			require.FailNow(p.t, "the page doesn't come to it", "%s\nafter %s; it shows:\n%s", expression, limit, text)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// shows waits until an element, by its CSS selector, has all of the texts.
func (p *tab) shows(selector string, texts ...string) time.Duration {
	p.t.Helper()
	return p.showsWithin(pageLimit, selector, texts...)
}

func (p *tab) showsWithin(limit time.Duration, selector string, texts ...string) time.Duration {
	p.t.Helper()
	b, err := json.Marshal(append([]string{}, texts...)) // none is no null
	require.NoError(p.t, err)
	return p.until(fmt.Sprintf("[...document.querySelectorAll(%s)].some((e) => %s.every((x) => e.innerText.replaceAll('\u00a0', ' ').includes(x)))", quoted(selector), b), limit)
}

// press clicks a button, by its text or its name, when it is there and can be used; one of
// the dialog that is open, if any.
func (p *tab) press(name string) {
	p.t.Helper()
	within := ""
	if eval[bool](p, "Boolean(document.querySelector('dialog[open]'))") {
		within = "//dialog[@open]"
	}
	p.do(chromedp.Click(fmt.Sprintf("%s//button[not(@disabled) and (normalize-space()=%[2]s or @aria-label=%[2]s)]", within, quoted(name))))
}

// save keeps a picture of the page in .cache/page, to be looked at.
func (p *tab) save(name string) {
	dir := filepath.Join("..", ".cache", "page")
	require.NoError(p.t, os.MkdirAll(dir, 0o755))
	ctx, cancel := context.WithTimeout(p.ctx, 20*time.Second)
	defer cancel()
	picture, err := chromedp.Run(ctx, chromedp.CaptureScreenshot())
	if err != nil {
		p.t.Logf("no picture of the page: %v", err)
		return
	}
	require.NoError(p.t, os.WriteFile(filepath.Join(dir, name+".png"), picture, 0o644))
}

// saveAll keeps pictures of a view in both themes and on a phone.
func (p *tab) saveAll(name string) {
	p.t.Helper()
	for _, look := range []struct {
		name, theme string
		width       int64
	}{{"light", "light", 1280}, {"dark", "dark", 1280}, {"phone", "light", 360}} {
		_, err := chromedp.Call(p.ctx, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{Width: look.width, Height: 800, DeviceScaleFactor: 1, Mobile: look.width < 500})
		require.NoError(p.t, err)
		_, err = chromedp.Call(p.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: look.theme}}})
		require.NoError(p.t, err)
		p.do(chromedp.Sleep(200 * time.Millisecond)) // colours fade
		p.save(name + "-" + look.name)
		if look.width < 500 {
			wide := eval[float64](p, "Math.max(document.documentElement.scrollWidth, document.querySelector('dialog')?.scrollWidth || 0)")
			require.LessOrEqual(p.t, wide, float64(look.width), "%s: it scrolls sideways on a phone", name)
		}
	}
	_, err := chromedp.Call(p.ctx, emulation.ClearDeviceMetricsOverride, cdp.Empty{})
	require.NoError(p.t, err)
}

// js runs a script for what it does.
func (p *tab) js(script string) {
	p.t.Helper()
	eval[bool](p, "("+script+", true)")
}

// tabTo presses the tabulator until the focus is where it should be.
func (p *tab) tabTo(there string) {
	p.t.Helper()
	for range 60 {
		if eval[bool](p, there) {
			return
		}
		p.do(chromedp.KeyEvent(kb.Tab))
	}
	require.FailNow(p.t, "the tabulator doesn't lead there", there)
}

// named demands that everything that can be used has a name for those who don't see it, that
// there is one heading of the first level, and that no id is there twice.
func (p *tab) named(where string) {
	p.t.Helper()
	tree, err := chromedp.Call(p.ctx, accessibility.GetFullAXTree, accessibility.GetFullAXTreeParams{})
	require.NoError(p.t, err)
	text := func(v *accessibility.Value) string {
		var s string
		if v != nil {
			_ = json.Unmarshal(v.Value, &s) // what is no text is no name
		}
		return strings.TrimSpace(s)
	}
	found := 0
	for _, n := range tree.Nodes {
		switch role := text(n.Role); role {
		case "button", "link", "textbox", "searchbox", "combobox", "radio", "checkbox", "option", "dialog", "image", "table", "progressbar", "group", "DisclosureTriangle":
			if n.Ignored || role == "group" && text(n.Name) == "" {
				continue
			}
			found++
			require.NotEmpty(p.t, text(n.Name), "%s: a %s without a name", where, role)
		}
	}
	require.Greater(p.t, found, 4, where)
	require.Equal(p.t, 1, eval[int](p, "document.querySelectorAll('h1').length"), where)
	require.Equal(p.t, "", eval[string](p, "[...document.querySelectorAll('[id]')].map((e) => e.id).filter((id, i, all) => all.indexOf(id) !== i).join()"), where)
}
