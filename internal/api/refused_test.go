package api

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/access"
)

// TestRefused: who asks for what they may not do is in the audit log, and can't fill it.
func TestRefused(t *testing.T) {
	var log bytes.Buffer
	s := New(t.Context(), Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
	ask := func(key, method, path string) {
		ctx := context.WithValue(t.Context(), connKey{}, (*net.UnixConn)(nil))
		ctx = context.WithValue(ctx, peerKeyType{}, peer{id: access.Identity{Name: key + " (pid 7)", Key: key, Role: access.View}})
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequestWithContext(ctx, method, path, nil))
		require.Equal(t, 403, w.Code, w.Body)
	}
	for range 100 {
		ask("eve", "DELETE", "/v1/pools/-/images/debian")
	}
	ask("mallory", "GET", "/v1/vms/vm1/console")
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	require.Less(t, len(lines), 10)
	require.Regexp(t, `msg=refused audit=true by="eve \(pid 7\)" verb=ask request="DELETE /v1/pools/-/images/debian" code=forbidden error="the role is view; this needs change"`, lines[0])
	require.Regexp(t, `by="mallory \(pid 7\)" verb=ask request="GET /v1/vms/vm1/console"`, lines[len(lines)-1])

	f := refusals{last: make(map[string]time.Time)}
	now := time.Now()
	require.True(t, f.take("a", now))
	require.False(t, f.take("a", now.Add(refusedEvery/2)))
	require.True(t, f.take("b", now.Add(refusedEvery)))
	require.Len(t, f.last, 1, "what was told of a moment ago is all that is kept")
	require.True(t, f.take("a", now.Add(refusedEvery)))
}
