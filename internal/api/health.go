package api

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/trayd/trayd/internal/access"
	"github.com/trayd/trayd/internal/wire"
)

// healthLimit is how long the health check may take, which takes microseconds.
const healthLimit = 2 * time.Second

// healthRoutes are for monitoring. Who may connect may know whether trayd works, without
// saying who they are; the metrics are for those who may look.
func (s *Server) healthRoutes() []route {
	var all []route
	if s.Healthy != nil {
		all = append(all, route{"GET", "/healthz", access.None, s.getHealth, "getHealth", "Whether trayd answers its own health check (200), or hangs (503)", nil, nil, ok(plainText)})
	}
	if s.Ready != nil {
		all = append(all, route{"GET", "/readyz", access.None, s.getReady, "getReady", "Whether trayd does its work (200); not before it has attached to the machines, nor when its state file takes no changes (503)", nil, nil, ok(plainText)})
	}
	if s.Metrics != nil {
		all = append(all, route{"GET", "/metrics", access.View, s.Metrics.ServeHTTP, "getMetrics", "Metrics in Prometheus' text format", nil, nil, ok(plainText)})
	}
	return all
}

func (s *Server) getHealth(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), healthLimit)
	defer cancel()
	answered := make(chan error, 1)
	go func() { answered <- s.Healthy(ctx) }() // one that hangs stays: the watchdog ends trayd
	var err error
	select {
	case err = <-answered:
	case <-ctx.Done():
		err = fmt.Errorf("it hasn't answered within %s", healthLimit)
	}
	health(w, "unhealthy", "trayd hangs", err, "systemd starts it anew (WatchdogSec=); without systemd do that, no machine notices")
}

func (s *Server) getReady(w http.ResponseWriter, _ *http.Request) {
	health(w, "not-ready", "trayd isn't ready", s.Ready(), "see `trayctl status`, and trayd's journal")
}

func health(w http.ResponseWriter, code, what string, err error, next string) {
	if err != nil {
		writeProblem(w, &wire.Problem{Code: code, Status: http.StatusServiceUnavailable, Detail: what + ": " + err.Error(), Next: next})
		return
	}
	send(w, string(plainText), http.StatusOK, []byte("ok"))
}
