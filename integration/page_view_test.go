//go:build integration

package integration_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"image/png"
	"io"
	"math"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/guest/screen"
	"github.com/trayd/trayd/internal/qemutest"
)

// consoleText is what the console's picture says, letter by letter.
func (p *tab) consoleText() string {
	p.t.Helper()
	picture := eval[string](p, "document.querySelector('.frame canvas')?.toDataURL() || ''")
	picture, ok := strings.CutPrefix(picture, "data:image/png;base64,")
	if !ok {
		return "" // nothing was drawn yet
	}
	content, err := base64.StdEncoding.DecodeString(picture)
	require.NoError(p.t, err)
	img, err := png.Decode(bytes.NewReader(content))
	require.NoError(p.t, err)
	font, err := screen.ReadFont(screen.VGABIOS, memtestDisc)
	require.NoError(p.t, err)
	return font.Text(img)
}

// reads waits until the console shows a text, or until it doesn't.
func (p *tab) reads(text string, there bool) {
	p.t.Helper()
	for end := time.Now().Add(screenLimit); strings.Contains(p.consoleText(), text) != there; time.Sleep(200 * time.Millisecond) {
		require.True(p.t, time.Now().Before(end), "%q there: %v; the console shows:\n%s", text, !there, p.consoleText())
	}
}

// TestPageConsole: the console shows the screen of a guest that nobody here wrote, and takes
// keys to it; the list shows a picture of it; who has no console is told why.
func TestPageConsole(t *testing.T) {
	r := newRig(t)
	r.vm("theirs", qemutest.SATA.With("")...)
	r.start("")
	r.ready()
	r.boot("m1", "bios", "64M", "--iso", grub(r))
	r.must("vm", "create", "off", "--memory", "64M", "--network", "none")
	p := openPage(r, "#/vm/off/console") // it outlives trayd
	p.shows(".console [role=alert]", "off", "Next:", "start")
	p.do(chromedp.Navigate(p.origin + "/#/vm/theirs/console"))
	p.shows(".note", "trayd doesn't run theirs")
	require.Zero(t, p.asked("/page/novnc/"), "the viewer is loaded when a console is opened")

	const menu = "GNU GRUB  version 2"
	p.do(chromedp.Navigate(p.origin + "/#/vm/m1/console"))
	p.shows(".console", "Connected")
	p.reads(menu, true)
	p.saveAll("console")
	p.do(chromedp.Navigate(p.origin + "/#/"))
	p.until("document.querySelector('.machine .screen img')?.naturalWidth > 0", pageLimit)
	p.saveAll("machines")
	p.do(chromedp.Navigate(p.origin + "/#/vm/m1/about"))
	p.shows(".about", "Processors", "64 MiB", "trayd")
	p.until("document.querySelector('.about .screen img')?.naturalWidth > 0", pageLimit)
	p.saveAll("about")

	t.Log("keys go to the guest until the page asks for them back")
	p.do(chromedp.Navigate(p.origin + "/#/vm/m1/console"))
	p.reads(menu, true)
	p.do(chromedp.Click(chromedp.CSS(".frame canvas")), chromedp.KeyEvent("c"))
	p.reads("grub>", true)
	require.True(t, eval[bool](p, "document.activeElement.tagName === 'CANVAS'"))
	p.do(chromedp.KeyEvent(kb.Escape, chromedp.KeyModifiers(chromedp.ModifierCtrl, chromedp.ModifierShift)))
	require.Equal(t, "Full screen", eval[string](p, "document.activeElement.textContent"))

	p.press("Full screen")
	p.until("document.fullscreenElement?.className === 'frame'", pageLimit)
	p.js("document.exitFullscreen()")
	p.until("!document.fullscreenElement", pageLimit)

	t.Log("Ctrl-Alt-Del, and a reset, which is asked about")
	p.press("Ctrl-Alt-Del")
	p.reads("grub>", false)
	p.reads(menu, true)
	p.press("Reset…")
	p.shows("dialog", "Reset m1?", "loses")
	p.press("Reset")
	p.until("!document.querySelector('dialog')", pageLimit)
	p.reads(menu, false)
	p.reads(menu, true)

	t.Log("a console outlives the agent")
	r.kill()
	p.shows(".console", "Not connected")
	r.start("")
	r.ready()
	p.shows(".console", "Connected")
	p.reads(menu, true)

	t.Log("kill and start")
	p.press("Kill…")
	p.press("Kill")
	p.shows(".heading", "stopped")
	p.shows(".console [role=alert]", "Next:")
	p.press("Start")
	p.shows(".heading", "running")
	p.shows(".console", "Connected")
	p.quiet()
}

// TestPageIsSmall: what comes over the wire for the page, and how soon something is seen.
func TestPageIsSmall(t *testing.T) {
	r := newRig(t)
	r.vm("vm1", qemutest.SATA.With("")...)
	r.start("")
	r.ready()
	r.must("insert", "vm1", r.disc("AAA"))
	p := openPage(r, "")
	p.shows(".machine", "vm1", "AAA")
	for _, hash := range []string{"#/images", "#/operations", "#/events", "#/vm/vm1", "#/"} {
		p.do(chromedp.Navigate(p.origin + "/" + hash))
		p.shows("h1")
	}
	sum := int64(0)
	p.mu.Lock()
	for path, n := range p.received {
		if path == "/" || strings.HasPrefix(path, "/page/") {
			sum += n
		}
	}
	p.mu.Unlock()
	require.Positive(t, sum)
	require.Less(t, sum, int64(80_000))
	// The quickest of some: other tests run at the same time.
	paint, whole := math.Inf(1), math.Inf(1)
	for range 4 {
		p.do(chromedp.Reload())
		p.shows(".machine", "vm1", "AAA")
		whole = min(whole, eval[float64](p, "performance.now()"))
		paint = min(paint, eval[float64](p, "performance.getEntriesByName('first-contentful-paint')[0].startTime"))
	}
	t.Logf("%d bytes; first paint after %.0f ms, the machine's disc within %.0f ms", sum, paint, whole)
	require.Less(t, whole, 1000.0)
	r.kill()
	p.shows("#banner", "Connection lost", "trayctl ui") // a way by it ends with trayd
	p.quiet()
}

// TestPageColours: the system's theme counts until a person chooses one, which is remembered;
// what is written can be read in both.
func TestPageColours(t *testing.T) {
	r := newRig(t)
	r.vm("vm1", qemutest.SATA.With("")...)
	r.start("")
	r.ready()
	p := openPage(r, "#/vm/vm1")
	p.shows(".drive", "cd0")
	back := func() string { return eval[string](p, "getComputedStyle(document.body).backgroundColor") }
	system := func(theme string) {
		_, err := chromedp.Call(p.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: theme}}})
		require.NoError(t, err)
	}
	system("light")
	light := back()
	readable(p, "light")
	system("dark")
	dark := back()
	require.NotEqual(t, light, dark)
	readable(p, "dark")
	choose := func(theme string) {
		p.js(fmt.Sprintf("(() => { const s = document.querySelector('#top select'); s.value = %s; s.dispatchEvent(new Event('change', {bubbles: true})); })()", quoted(theme)))
	}
	choose("light")
	require.Equal(t, light, back())
	p.do(chromedp.Reload())
	p.shows(".drive", "cd0")
	require.Equal(t, light, back(), "it is remembered")
	choose("dark")
	system("light")
	require.Equal(t, dark, back())
	p.quiet()
}

// readable demands the contrast of WCAG's level AA (4.5) of each text that is shown.
func readable(p *tab, theme string) {
	p.t.Helper()
	time.Sleep(300 * time.Millisecond) // colours fade
	faint := eval[[]string](p, `(() => {
		const parse = (c) => (c.match(/[\d.]+/g) || []).map(Number);
		const light = ([r, g, b]) => { const f = (v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; }; return 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b); };
		const behind = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c.length === 3 || c[3] > 0) return c; } return [255, 255, 255]; };
		const found = [];
		const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
		for (let n; (n = walk.nextNode());) {
			const e = n.parentElement;
			if (!n.data.trim() || !e.checkVisibility() || e.disabled || ["NOSCRIPT", "OPTION"].includes(e.tagName)) continue;
			const a = light(parse(getComputedStyle(e).color)), b = light(behind(e));
			const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
			if (contrast < 4.5) found.push(n.data + " " + contrast.toFixed(2));
		}
		return found;
	})()`)
	require.Empty(p.t, faint, theme)
}

// TestPageRoles: who may only look sees why nothing can be pressed, and who has signed out
// is told how to come back.
func TestPageRoles(t *testing.T) {
	const games = 60 // Debian's group of that name (base-passwd)
	r := newRig(t)
	r.api = `view_group = "games"`
	r.vm("vm1", qemutest.SATA.With("")...)
	r.start("")
	r.ready()
	require.NoError(t, os.Chmod(bin, 0o755)) // another user runs trayctl
	p := openPageAs(r, "#/vm/vm1", &syscall.Credential{Uid: 65534, Gid: games})
	p.shows(".drive", "cd0", "No disc")
	p.shows("#top", "(view)")
	p.shows(".note", "You may look, not change")
	p.until("[...document.querySelectorAll('.drive button')].every((b) => b.disabled && b.title.includes('your role'))", pageLimit)
	r.must("insert", "vm1", r.disc("AAA"))
	p.showsWithin(time.Second, ".drive", "AAA")
	p.do(chromedp.Navigate(p.origin + "/#/images"))
	p.shows(".note", "You may look, not change")
	p.press("Sign out")
	p.shows("h1", "Signed out")
	p.shows("main [role=status]", "trayctl ui")
	require.False(t, eval[bool](p, "!!document.querySelector('input')"), "a token wouldn't help")
	p.saveAll("signed-out")
	p.quiet()
}

// TestPageSignsIn: a token is asked for, refused with what to do, and taken. The agent's
// answers about the session are played.
func TestPageSignsIn(t *testing.T) {
	r := newRig(t)
	r.vm("vm1", qemutest.SATA.With("")...)
	r.start("")
	r.ready()
	var signedIn atomic.Bool
	p := openPageAt(r, "#/vm/vm1", func(w http.ResponseWriter, q *http.Request) bool {
		if !strings.HasPrefix(q.URL.Path, "/v1/") {
			return false
		}
		body, _ := io.ReadAll(http.MaxBytesReader(w, q.Body, 1<<10)) // a body that breaks off is none
		session := q.URL.Path == "/v1/session"
		if session && q.Method == http.MethodPost && strings.Contains(string(body), `"right"`) {
			signedIn.Store(true)
		}
		switch {
		case !signedIn.Load():
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprint(w, `{"code":"unauthenticated","status":401,"detail":"no such token","next":"ask an administrator for one"}`)
		case session:
			fmt.Fprint(w, `{"name":"token eve","role":"change","host":"edge7","version":"1"}`)
		default:
			return false
		}
		return true
	})
	p.shows("h1", "Sign in")
	p.do(chromedp.SendKeys(chromedp.CSS("input[name=token]"), "wrong"), chromedp.KeyEvent(kb.Enter))
	p.shows("form [role=alert]", "no such token", "Next:", "ask an administrator")
	p.saveAll("sign-in")
	p.do(chromedp.SendKeys(chromedp.CSS("input[name=token]"), "right"), chromedp.KeyEvent(kb.Enter))
	p.shows(".drive", "cd0", "No disc")
	p.shows("#top", "edge7", "token eve (change)")
	require.Equal(t, "vm1 – Volumes – trayd on edge7", eval[string](p, "document.title"))
	p.quiet()
}
