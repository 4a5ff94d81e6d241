package api_test

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/access"
)

// TestWrongHost: by a name that isn't this host's nobody gets in, whatever they bring: a page
// on a name that its owner points here has the rights of no browser.
func TestWrongHost(t *testing.T) {
	h := newSecureHost(t)
	bearer := "Authorization: Bearer " + h.token(access.Admin) + "\n"
	for host, status := range map[string]int{
		h.at: 200, "127.0.0.1": 200, "localhost:8440": 200, "[::1]:8440": 200, "192.0.2.1": 200, "known.example": 200, "KNOWN.example:8440": 200,
		"evil.example": 421, "known.example.evil": 421, "": 421, "localhost.evil.example:80": 421, "known.example@evil.example": 400,
	} {
		g := h.send(h.over("127.0.0.1"), "GET /v1/version HTTP/1.1\nHost: "+host+"\n"+bearer+"\n")
		require.Equal(t, status, g.StatusCode, "%q: %s", host, g.body)
	}
	g := h.send(h.over("127.0.0.1"), "GET /v1/version HTTP/1.0\n"+bearer+"\n")
	require.Equal(t, 421, g.StatusCode, "no Host at all")
	w := h.way()
	cookie := h.session(w)
	for host, status := range map[string]int{"127.0.0.1:1": 200, "localhost:1": 200, "evil.example:1": 421, "192.0.2.1": 421, "known.example": 421} {
		g := h.send(h.browser(w.ID), "GET /v1/version HTTP/1.1\nHost: "+host+"\nCookie: "+cookie+"\n\n")
		require.Equal(t, status, g.StatusCode, "%q: %s", host, g.body)
	}
}

// TestOtherPages: a page of another host does nothing with a browser's cookies.
func TestOtherPages(t *testing.T) {
	h := newSecureHost(t)
	token := h.token(access.Admin)
	body := fmt.Sprintf(`{"token":%q}`, token)
	g := h.send(h.over("127.0.0.1"), fmt.Sprintf("POST /v1/session HTTP/1.1\nHost: localhost\nContent-Length: %d\n\n%s", len(body), body))
	require.Equal(t, 200, g.StatusCode, g.body)
	k := g.Cookies()[0]
	require.Equal(t, "__Host-trayd", k.Name)
	require.True(t, k.Secure && k.HttpOnly && k.SameSite == http.SameSiteStrictMode && k.Path == "/" && k.Domain == "")
	w := h.way()
	overTLS, byWay := k.Name+"="+k.Value, h.session(w)
	const ws = "Connection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Version: 13\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\n"
	for _, row := range []struct {
		line, fields string
		status       int
	}{
		{"DELETE /v1/tokens/nope", "", 404}, // no browser
		{"DELETE /v1/tokens/nope", "Origin: ORIGIN\n", 404},
		{"DELETE /v1/tokens/nope", "Sec-Fetch-Site: same-origin\nOrigin: ORIGIN\n", 404},
		{"DELETE /v1/tokens/nope", "Origin: https://evil.example\n", 403},
		{"DELETE /v1/tokens/nope", "Origin: null\n", 403},
		{"DELETE /v1/tokens/nope", "Sec-Fetch-Site: cross-site\n", 403},
		{"DELETE /v1/tokens/nope", "Sec-Fetch-Site: same-site\n", 403},
		{"POST /v1/vms/nope/kill", "Origin: http://localhost:2\n", 403}, // another port of this host
		{"POST /v1/vms/nope/kill", "Sec-Fetch-Site: same-site\nContent-Type: text/plain\n", 403},
		{"DELETE /v1/session", "Sec-Fetch-Site: cross-site\n", 403},
		{"GET /v1/vms/nope/console", ws, 409}, // no machines of trayd's own here
		{"GET /v1/vms/nope/console", ws + "Origin: ORIGIN\n", 409},
		{"GET /v1/vms/nope/console", ws + "Origin: https://evil.example\n", 403},
		{"GET /v1/vms/nope/serial", ws + "Origin: http://localhost:2\n", 403},
		{"GET /v1/vms/nope/serial", ws + "Origin: null\n", 403},
		{"GET /v1/tokens", "X-HTTP-Method-Override: DELETE\nOrigin: https://evil.example\n", 200}, // it can't read the answer
	} {
		fields := strings.ReplaceAll(row.fields, "ORIGIN", "https://localhost:1")
		g := h.send(h.over("127.0.0.1"), row.line+" HTTP/1.1\nHost: localhost:1\nCookie: "+overTLS+"\n"+fields+"\n")
		require.Equal(t, row.status, g.StatusCode, "%s %s: %s", row.line, fields, g.body)
		require.Empty(t, g.Header.Values("Access-Control-Allow-Origin"))
		require.Equal(t, "same-origin", g.Header.Get("Cross-Origin-Resource-Policy"))
		fields = strings.ReplaceAll(row.fields, "ORIGIN", "http://localhost:1")
		g = h.send(h.browser(w.ID), row.line+" HTTP/1.1\nHost: localhost:1\nCookie: "+byWay+"\n"+fields+"\n")
		require.Equal(t, row.status, g.StatusCode, "by a way: %s %s: %s", row.line, fields, g.body)
	}
	require.Len(t, h.access.Tokens.List(), 1)
}

// TestWays: what is good for one way to the page is good for no other one, and once.
func TestWays(t *testing.T) {
	h := newSecureHost(t)
	one, two := h.way(), h.way()
	look := func(id, cookie string) int {
		return h.send(h.browser(id), "GET /v1/session HTTP/1.1\nHost: localhost\nCookie: "+cookie+"\n\n").StatusCode
	}
	exchange := func(id, token string) got {
		body := fmt.Sprintf(`{"token":%q}`, token)
		return h.send(h.browser(id), fmt.Sprintf("POST /v1/session HTTP/1.1\nHost: localhost\nContent-Length: %d\n\n%s", len(body), body))
	}
	require.Equal(t, 401, exchange(two.ID, one.Token).StatusCode, "another way's token")
	cookie := h.session(one)
	require.Equal(t, 200, look(one.ID, cookie))
	require.Equal(t, 401, look(two.ID, cookie), "another way's cookie")
	require.Equal(t, 401, look(two.ID, strings.Replace(cookie, one.ID, two.ID, 1)), "by its name")
	require.Equal(t, 401, look(one.ID, ""), "a browser has no rights of who brings it")
	require.Equal(t, 401, exchange(one.ID, one.Token).StatusCode, "a second time")
	g := h.send(h.browser(one.ID), "GET /?token="+one.Token+" HTTP/1.1\nHost: localhost\n\n")
	require.Equal(t, 303, g.StatusCode)
	require.Empty(t, g.Cookies(), "a second time")
	require.Equal(t, 401, h.send(h.over("127.0.0.1"), "GET /v1/session HTTP/1.1\nHost: localhost\nCookie: "+cookie+"\n\n").StatusCode, "over TLS")
	secret := strings.SplitN(cookie, "=", 2)[1]
	require.Equal(t, 401, h.send(h.over("127.0.0.1"), "GET /v1/session HTTP/1.1\nHost: localhost\nCookie: __Host-trayd="+secret+"\n\n").StatusCode, "over TLS, by that cookie's name")

	other := "Authorization: Bearer " + h.token(access.Admin) + "\n"
	for _, line := range []string{"GET /v1/ui/" + one.ID, "DELETE /v1/ui/" + one.ID} {
		g := h.send(h.over("127.0.0.1"), line+" HTTP/1.1\nHost: localhost\nConnection: Upgrade\nUpgrade: trayd-page\n"+other+"\n")
		require.Equal(t, 404, g.StatusCode, "somebody else's way: %s", line)
	}
	require.Equal(t, 200, look(one.ID, cookie), "it is as it was")
	open := h.browser(one.ID)
	ended := h.follow(open, "Host: localhost\nCookie: "+cookie+"\n")
	req, err := http.NewRequestWithContext(t.Context(), "DELETE", "http://trayd/v1/ui/"+one.ID, nil)
	require.NoError(t, err)
	resp, err := h.client.Do(req)
	require.NoError(t, err)
	resp.Body.Close()
	require.Equal(t, 204, resp.StatusCode)
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		require.Fail(t, "the events of a way that has ended go on")
	}
}

// TestBruteForce: who tries tokens waits; others don't, also those who come from the same
// address with a right one.
func TestBruteForce(t *testing.T) {
	h := newSecureHost(t)
	right := h.token(access.View)
	try := func(from, token string) got {
		return h.send(h.over(from), "GET /v1/version HTTP/1.1\nHost: localhost\nAuthorization: Bearer "+token+"\n\n")
	}
	for range 5 {
		require.Equal(t, 401, try("127.0.0.3", "trayd_guess").StatusCode)
	}
	require.Equal(t, 200, try("127.0.0.3", right).StatusCode, "a right one")
	wrong := right[:len(right)-4] + "AAAA"
	for range 5 {
		require.Equal(t, 401, try("127.0.0.3", wrong).StatusCode)
	}
	for _, token := range []string{"trayd_guess", wrong, right} { // who guesses at this one
		g := try("127.0.0.3", token)
		require.Equal(t, 429, g.StatusCode)
		require.Equal(t, "1", g.Header.Get("Retry-After"))
		require.Contains(t, g.body, "too-many-attempts")
	}
	body := fmt.Sprintf(`{"token":%q}`, right)
	g := h.send(h.over("127.0.0.3"), fmt.Sprintf("POST /v1/session HTTP/1.1\nHost: localhost\nContent-Length: %d\n\n%s", len(body), body))
	require.Equal(t, 429, g.StatusCode, "by a session's beginning, too")
	require.Equal(t, 200, try("127.0.0.4", right).StatusCode, "somebody else")
	time.Sleep(1100 * time.Millisecond)
	require.Equal(t, 401, try("127.0.0.3", wrong).StatusCode)
	require.Equal(t, "2", try("127.0.0.3", right).Header.Get("Retry-After"), "the next one waits twice as long")
	time.Sleep(2100 * time.Millisecond)
	require.Equal(t, 200, try("127.0.0.3", right).StatusCode)
}

// TestTooLarge: heads and bodies have their limits, also a body that doesn't say how large it
// is.
func TestTooLarge(t *testing.T) {
	h := newSecureHost(t)
	require.Equal(t, 431, h.send(h.dial(), "GET /v1/version HTTP/1.1\nHost: trayd\nX: "+strings.Repeat("x", 24<<10)+"\n\n").StatusCode)
	c := h.dial()
	go func() { // it ends with the connection
		_, _ = io.WriteString(c, "POST /v1/vms/vm1/drives/cd0/insert HTTP/1.1\r\nHost: trayd\r\nTransfer-Encoding: chunked\r\n\r\n")
		for {
			if _, err := fmt.Fprintf(c, "%x\r\n%s\r\n", 1<<10, strings.Repeat("x", 1<<10)); err != nil {
				return
			}
		}
	}()
	require.Equal(t, 413, h.read(bufio.NewReader(c)).StatusCode)
	g := h.send(h.dial(), "POST /v1/vms/vm1/drives/cd0/insert HTTP/1.1\nHost: trayd\nContent-Length: 1000000000000\nExpect: 100-continue\n\n")
	require.Contains(t, []int{100, 413}, g.StatusCode)
}

// TestPaths: other spellings of a path are no way around a role, and two requests in one
// packet get two answers.
func TestPaths(t *testing.T) {
	h := newSecureHost(t)
	bearer := "Authorization: Bearer " + h.token(access.View) + "\n"
	for path, status := range map[string]int{
		"/v1/tokens": 403, "//v1/tokens": 403, "/v1//tokens": 403, "/v1/./tokens": 403, "/v1/vms/../tokens": 403, "/v1/vms/%2e%2e/tokens": 404,
		"/v1/tokens/": 404, "/V1/tokens": 404, "/v1/tokens%2f": 404, "/v1%2ftokens": 404, "/v1/vms/..%2ftokens": 404, "/v1/tokens%00": 404, "/v1/tokens;x": 404, "/v1/tokens?x=/v1/version": 403,
		"http://localhost/v1/tokens": 403, "/v1/vms/vm1/../../../v1/tokens": 403,
	} {
		g := h.send(h.over("127.0.0.1"), "GET "+path+" HTTP/1.1\nHost: localhost\n"+bearer+"\n")
		require.Equal(t, status, g.StatusCode, "%s: %s", path, g.body)
		g = h.send(h.over("127.0.0.1"), "GET "+path+" HTTP/1.1\nHost: localhost\n\n")
		require.Equal(t, 401, g.StatusCode, "%s: %s", path, g.body)
	}
	for _, field := range []string{"X-HTTP-Method-Override: DELETE", "X-Method-Override: DELETE", "_method: DELETE"} {
		g := h.send(h.over("127.0.0.1"), "GET /v1/session HTTP/1.1\nHost: localhost\n"+field+"\n"+bearer+"\n")
		require.Equal(t, 200, g.StatusCode)
	}
	g := h.send(h.over("127.0.0.1"), "GET /v1/session?_method=DELETE HTTP/1.1\nHost: localhost\n"+bearer+"\n")
	require.Equal(t, 400, g.StatusCode)
	c := h.over("127.0.0.1")
	_, err := io.WriteString(c, strings.ReplaceAll(strings.Repeat("GET /v1/version HTTP/1.1\nHost: localhost\n"+bearer+"\nGET /v1/tokens HTTP/1.1\nHost: localhost\n"+bearer+"\n", 10), "\n", "\r\n"))
	require.NoError(t, err)
	r := bufio.NewReader(c)
	for range 10 {
		require.Equal(t, 200, h.read(r).StatusCode)
		require.Equal(t, 403, h.read(r).StatusCode)
	}
	require.Equal(t, 200, h.send(h.dial(), "GET /v1/version HTTP/1.0\n\n").StatusCode)
}

// TestRevoked: what a token let in ends with it: requests, sessions, ways, and the streams
// that are open.
func TestRevoked(t *testing.T) {
	h := newSecureHost(t)
	token := h.token(access.Change)
	bearer := "Host: localhost\nAuthorization: Bearer " + token + "\n"
	body := fmt.Sprintf(`{"token":%q}`, token)
	g := h.send(h.over("127.0.0.1"), fmt.Sprintf("POST /v1/session HTTP/1.1\nHost: localhost\nContent-Length: %d\n\n%s", len(body), body))
	cookie := "Host: localhost\nCookie: __Host-trayd=" + g.Cookies()[0].Value + "\n"
	others := "Host: localhost\nAuthorization: Bearer " + h.token(access.View) + "\n"
	streams := []<-chan struct{}{h.follow(h.over("127.0.0.1"), bearer), h.follow(h.over("127.0.0.1"), cookie)}
	stays := h.follow(h.over("127.0.0.1"), others)
	require.Equal(t, 200, h.send(h.over("127.0.0.1"), "GET /v1/session HTTP/1.1\n"+cookie+"\n").StatusCode)
	_, err := h.access.Tokens.Revoke(h.access.Tokens.List()[0].ID)
	require.NoError(t, err)
	require.Equal(t, 401, h.send(h.over("127.0.0.1"), "GET /v1/session HTTP/1.1\n"+cookie+"\n").StatusCode)
	require.Equal(t, 401, h.send(h.over("127.0.0.1"), "GET /v1/session HTTP/1.1\n"+bearer+"\n").StatusCode)
	limit := time.After(30 * time.Second)
	for _, s := range streams {
		select {
		case <-s:
		case <-limit:
			require.Fail(t, "a stream goes on")
		}
	}
	select {
	case <-stays:
		require.Fail(t, "somebody else's stream has ended")
	case <-time.After(100 * time.Millisecond):
	}
}

// TestEndWithBrowsers: trayd's end waits for no browser.
func TestEndWithBrowsers(t *testing.T) {
	h := newSecureHost(t)
	w := h.way()
	cookie := h.session(w)
	ended := h.follow(h.browser(w.ID), "Host: localhost\nCookie: "+cookie+"\n")
	h.send(h.browser(w.ID), "GET /v1/session HTTP/1.1\nHost: localhost\nCookie: "+cookie+"\n\n") // and stays
	h.browser(w.ID)                                                                              // says nothing
	began := time.Now()
	h.stop()
	<-ended
	require.Less(t, time.Since(began), 4*time.Second) // net/http waits 5 s for what says nothing
}
