package api

import (
	"encoding/base64"
	"net/http"
	"strings"

	"github.com/coder/websocket"

	"github.com/trayd/trayd/internal/machine"
	"github.com/trayd/trayd/internal/wire"
)

// Consoles are WebSockets (RFC 6455) that carry the bytes of a machine's screen (RFB) and of
// its serial console, in binary frames whose borders mean nothing.
const (
	vncConsole    = machine.VNCSocket
	serialConsole = machine.SerialSocket
)

// binary is the subprotocol that older noVNC offers, and then wants to have.
const binary = "binary"

func (s *Server) console(socket string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if problem := notWebSocket(r); problem != "" {
			// What is wrong with the machine is worth more, and can't be read by a page
			// whose WebSocket was refused: so it can ask first.
			if err := s.Agent.CheckConsole(r.Context(), r.PathValue("vm"), socket, caller(r)); err != nil {
				writeError(w, err)
				return
			}
			w.Header().Set("Connection", "Upgrade")
			w.Header().Set("Upgrade", "websocket")
			w.Header().Set("Sec-WebSocket-Version", "13")
			writeProblem(w, &wire.Problem{Code: "upgrade-required", Status: http.StatusUpgradeRequired, VM: r.PathValue("vm"),
				Detail: "a console is a WebSocket: " + problem, Next: "`trayctl vm console " + r.PathValue("vm") + "`, or a WebSocket client"})
			return
		}
		c, err := s.Agent.OpenConsole(r.Context(), r.PathValue("vm"), socket, caller(r))
		if err != nil {
			writeError(w, err)
			return
		}
		ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{binary}, CompressionMode: websocket.CompressionDisabled})
		if err != nil {
			c.End("the client has gone: " + err.Error()) // all that is the request's fault was looked at above
			return
		}
		defer s.conns.drop(connection(r)) // it is this connection's no longer
		t := &stream{ws: ws, client: connection(r), conn: c.Conn, limits: defaultLimits, gone: screenGone}
		if socket == machine.SerialSocket {
			t.gone = serialGone
		}
		ctx, end := s.whileAllowed(r, s.closing)
		defer end()
		c.End(t.carry(ctx))
	}
}

// notWebSocket says what a request lacks to open one (RFC 6455 4.2.1); "" for nothing. It is
// what websocket.Accept looks for, whose answer would be no problem+json.
func notWebSocket(r *http.Request) string {
	key := r.Header.Values("Sec-WebSocket-Key")
	switch {
	case !r.ProtoAtLeast(1, 1):
		return "it needs HTTP/1.1"
	case !hasToken(r.Header, "Connection", "upgrade"), !hasToken(r.Header, "Upgrade", "websocket"):
		return "the request doesn't ask for one (Connection: Upgrade, Upgrade: websocket)"
	case r.Header.Get("Sec-WebSocket-Version") != "13":
		return "its version is 13 (Sec-WebSocket-Version)"
	case len(key) != 1:
		return "it has one Sec-WebSocket-Key"
	}
	if b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(key[0])); err != nil || len(b) != 16 {
		return "its Sec-WebSocket-Key is 16 bytes in base64"
	}
	return ""
}

func hasToken(h http.Header, field, token string) bool {
	for _, v := range h.Values(field) {
		for t := range strings.SplitSeq(v, ",") {
			if strings.EqualFold(strings.TrimSpace(t), token) {
				return true
			}
		}
	}
	return false
}
