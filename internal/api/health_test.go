package api

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/trayd/trayd/internal/access"
	"github.com/trayd/trayd/internal/wire"
)

// TestHealth: everybody is told whether trayd works and is ready; metrics are for those who
// may look.
func TestHealth(t *testing.T) {
	hang := make(chan struct{})
	t.Cleanup(func() { close(hang) })
	bad := errors.New("a lock isn't to be had")
	for _, row := range []struct {
		path    string
		healthy func(context.Context) error
		ready   error
		status  int
		says    string
	}{
		{"/healthz", func(context.Context) error { return nil }, bad, 200, "ok\n"},
		{"/healthz", func(context.Context) error { return bad }, nil, 503, "trayd hangs: a lock isn't to be had"},
		{"/healthz", func(context.Context) error { <-hang; return nil }, nil, 503, "trayd hangs: it hasn't answered within 2s"},
		{"/readyz", func(context.Context) error { return bad }, nil, 200, "ok\n"},
		{"/readyz", func(context.Context) error { return nil }, bad, 503, "trayd isn't ready: a lock isn't to be had"},
	} {
		s := New(t.Context(), Options{
			Log: slog.New(slog.DiscardHandler), Healthy: row.healthy, Ready: func() error { return row.ready },
			Metrics: http.NotFoundHandler(),
		})
		w := httptest.NewRecorder()
		to := s.routes["GET "+row.path]
		require.Equal(t, access.None, to.role)
		require.Equal(t, access.View, s.routes["GET /metrics"].role)
		to.handler(w, httptest.NewRequest("GET", row.path, nil))
		require.Equal(t, row.status, w.Code, "%s: %s", row.path, w.Body)
		if row.status == 200 {
			require.Equal(t, row.says, w.Body.String())
			continue
		}
		var p wire.Problem
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &p))
		require.Contains(t, p.Detail, row.says)
		require.NotEmpty(t, p.Next)
	}
}
