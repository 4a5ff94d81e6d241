package api_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/access"
	"github.com/trayd/trayd/internal/wire"
)

// newSecureHost is a host that listens on a port of loopback with TLS.
func newSecureHost(t *testing.T) *host {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	require.NoError(t, err)
	return newHostAt(t, l, nil)
}

// token is the secret of a new one.
func (h *host) token(role access.Role) string {
	h.t.Helper()
	made, err := h.access.Tokens.Create(fmt.Sprintf("%s-%d", role, len(h.access.Tokens.List())), role, time.Time{}, "test")
	require.NoError(h.t, err)
	return made.Secret
}

// over dials over TLS, from an address of loopback.
func (h *host) over(from string) net.Conn {
	h.t.Helper()
	d := tls.Dialer{NetDialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}, Config: &tls.Config{InsecureSkipVerify: true}}
	c, err := d.DialContext(h.t.Context(), "tcp", h.at)
	require.NoError(h.t, err)
	h.t.Cleanup(func() { c.Close() })
	return c
}

// got is an answer.
type got struct {
	*http.Response
	body string
}

// send sends a request's text on a connection, and reads the answer. "\n" stands for the end
// of a line.
func (h *host) send(c net.Conn, text string) got {
	h.t.Helper()
	_, err := io.WriteString(c, strings.ReplaceAll(text, "\n", "\r\n"))
	require.NoError(h.t, err)
	return h.read(bufio.NewReader(c))
}

func (h *host) read(r *bufio.Reader) got {
	h.t.Helper()
	resp, err := http.ReadResponse(r, nil)
	require.NoError(h.t, err)
	if resp.StatusCode == http.StatusSwitchingProtocols || strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		return got{Response: resp}
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(h.t, err)
	return got{resp, string(b)}
}

// way makes a way to the page on the unix socket.
func (h *host) way() (w wire.UI) {
	h.t.Helper()
	h.do("POST", "/v1/ui", "", http.StatusCreated, &w)
	return w
}

// browser is a browser's connection by a way.
func (h *host) browser(id string) net.Conn {
	h.t.Helper()
	c := h.dial()
	g := h.send(c, "GET /v1/ui/"+id+" HTTP/1.1\nHost: trayd\nConnection: Upgrade\nUpgrade: trayd-page\n\n")
	require.Equal(h.t, http.StatusSwitchingProtocols, g.StatusCode, g.body)
	return c
}

// session exchanges a way's token for the cookie.
func (h *host) session(w wire.UI) string {
	h.t.Helper()
	g := h.send(h.browser(w.ID), "GET /?token="+w.Token+" HTTP/1.1\nHost: 127.0.0.1:1\n\n")
	require.Equal(h.t, http.StatusSeeOther, g.StatusCode, g.body)
	require.Equal(h.t, "/", g.Header.Get("Location"), "the token goes from the address line")
	require.Len(h.t, g.Cookies(), 1)
	k := g.Cookies()[0]
	require.True(h.t, k.HttpOnly)
	require.Equal(h.t, http.SameSiteStrictMode, k.SameSite)
	return k.Name + "=" + k.Value
}

// follower is a stream of events that is being read.
func (h *host) follow(c net.Conn, head string) (ended <-chan struct{}) {
	h.t.Helper()
	_, err := io.WriteString(c, strings.ReplaceAll("GET /v1/events HTTP/1.1\n"+head+"\n", "\n", "\r\n"))
	require.NoError(h.t, err)
	r := bufio.NewReader(c)
	g := h.read(r)
	require.Equal(h.t, http.StatusOK, g.StatusCode)
	ctx, end := context.WithCancel(context.Background())
	go func() {
		defer end()
		_, _ = io.Copy(io.Discard, g.Body) // its end is what is waited for
	}()
	return ctx.Done()
}
