package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/trayd/trayd/blockdev/volume"
	"github.com/trayd/trayd/internal/access"
	"github.com/trayd/trayd/internal/agent"
	"github.com/trayd/trayd/internal/api"
	"github.com/trayd/trayd/internal/config"
	"github.com/trayd/trayd/internal/doctor"
	"github.com/trayd/trayd/internal/machine/launch"
	"github.com/trayd/trayd/internal/page"
	"github.com/trayd/trayd/state"
	"github.com/trayd/trayd/systemd"
)

// stopLimit is how long everything may take to end. What isn't settled then is settled
// by the next start, as after a crash. trayd.service allows longer.
const stopLimit = 8 * time.Second

// daemon is the running agent with what it is wired to.
type daemon struct {
	path        string                        // of the configuration
	config      *config.Config                // as it is in effect
	latest      atomic.Pointer[config.Config] // the same, for other goroutines
	level       *slog.LevelVar
	log         *slog.Logger
	notifier    *systemd.Notifier
	journal     *state.Journal
	agent       *agent.Agent
	runner      launch.Runner // of machines
	access      api.Access
	outlets     *outlets
	certificate *certificate // for TLS; nil where trayd listens on no port
	sockets     sockets      // from the broker, in the unit's sandbox
	names       []string     // of this host, for those who come over TLS
}

// serve runs the agent until a signal ends it.
func serve(path string, stderr io.Writer) error {
	tune()
	cfg, err := config.Load(path)
	if err != nil {
		return err
	}
	d := &daemon{path: path, config: cfg, level: new(slog.LevelVar), sockets: findSockets()}
	d.latest.Store(cfg)
	d.level.Set(cfg.Log.Level)
	d.openOutlets(systemd.NewLogHandler(stderr, systemd.LogOptions{Identifier: "trayd", Level: d.level}))
	defer d.outlets.close()
	if d.notifier, err = systemd.NewNotifier(); err != nil {
		d.log.Warn("the service manager's environment", "error", err)
	}
	if d.journal, err = openJournal(cfg); err != nil {
		return err
	}
	l, err := listen(cfg, d.log)
	if err != nil {
		return errors.Join(err, d.journal.Close())
	}
	d.runner = newRunner(cfg, path)
	if d.agent, err = agent.New(d.journal, d.agentOptions(cfg)); err != nil {
		return errors.Join(err, l.Close(), d.journal.Close())
	}
	if d.access, err = api.NewAccess(d.journal); err != nil {
		return errors.Join(err, l.Close(), d.journal.Close())
	}
	return errors.Join(d.run(l), d.journal.Close())
}

// agentOptions are the agent's part of the configuration.
func (d *daemon) agentOptions(c *config.Config) agent.Options {
	return agent.Options{
		Monitors:   c.Monitors,
		MediaRoots: c.MediaRoots,
		Attach:     agent.Attach(c.Attach),
		Look:       c.Look,
		Command:    c.CommandTimeout,
		Wait:       c.Tray.Wait,
		GuestEject: agent.GuestEject(c.Tray.GuestEject),
		Strategy:   c.Tray.Strategy,
		Volumes:    volumes(c, d.sockets),
		Library:    libraryOptions(c, d.sockets),
		Machines:   machineOptions(c, d.runner),
		Log:        d.log,
		FailPoint:  failPoint(),
	}
}

// mountDir is where pools of type mount are mounted, beneath trayd's runtime directory.
const mountDir = "/run/trayd/mounts"

// volumes is the volumes' part of the configuration.
func volumes(c *config.Config, s sockets) volume.Options {
	o := volume.Options{DM: c.Volumes, Dir: mountDir}
	s.volumes(&o)
	for _, p := range c.Pools {
		if p.Type == config.PoolMount {
			o.Mounts = append(o.Mounts, volume.FileSystem{Name: p.Name, Source: p.Source, Type: p.FSType, Options: p.Options})
		}
	}
	return o
}

func openJournal(c *config.Config) (*state.Journal, error) {
	if err := os.MkdirAll(c.StateDir, 0o700); err != nil {
		return nil, fmt.Errorf("state_dir can't be made: %w", err)
	}
	j, err := state.Open(c.StateFile(), nil)
	if errors.Is(err, state.ErrLocked) {
		return nil, fmt.Errorf("another trayd uses state_dir %s: %w", c.StateDir, err)
	}
	return j, err // damage says by itself how to repair it
}

// run serves until a signal, or until a part of it fails.
func (d *daemon) run(l net.Listener) error {
	end, hangUp := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(end, unix.SIGTERM, unix.SIGINT)
	signal.Notify(hangUp, unix.SIGHUP)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	secure, err := d.secureConfig()
	if err != nil {
		return errors.Join(err, l.Close())
	}
	ready := make(chan struct{})
	server := api.New(ctx, api.Options{
		Agent: d.agent, Version: version, Log: d.log, Access: d.access,
		Groups:  access.Groups{Change: d.config.API.Group, View: d.config.API.ViewGroup, Stranger: privileged()},
		Clients: d.config.API.Clients, Names: d.names, Page: page.Handler(),
		Hold:    func(next http.Handler) http.Handler { return hold(ready, next) },
		Healthy: d.healthy, Ready: func() error { return d.whyNotReady(ready) },
		Doctor:  doctor.New(d.doctorOptions()),
		Metrics: d.outlets.metrics, Observe: d.outlets.metrics.Request,
	})
	failed := make(chan error, 2) // a part that ends before it should
	var parts sync.WaitGroup
	parts.Go(func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			failed <- fmt.Errorf("the API can't be served: %w", err)
		}
	})
	parts.Go(func() { _ = server.ServeTunnels() }) // it ends with the server
	for _, at := range d.config.API.Listen {
		parts.Go(func() { d.serveSecure(ctx, server, at, secure) })
	}
	parts.Go(func() {
		if err := d.agent.Run(ctx, func() { close(ready) }); err != nil {
			failed <- fmt.Errorf("the agent can't work: %w", err)
		}
	})
	parts.Go(func() { d.notifier.Watch(ctx, d.healthy, d.log) })
	parts.Go(func() { d.report(ctx, ready) })
	events := d.agent.Subscribe(0) // before there are any
	parts.Go(func() { d.outlets.deliver(ctx, events) })
	d.log.Info("trayd runs", "version", version, "socket", l.Addr().String(), "state", d.config.StateFile())

	err = d.untilEnd(end, hangUp, ready, failed)
	signal.Stop(end) // a second signal ends it at once
	d.tell(d.notifier.Stopping("stopping"))
	cancel()
	return errors.Join(err, shutDown(server, &parts))
}

// untilEnd reloads until there is a reason to end: nil for a signal.
func (d *daemon) untilEnd(end, hangUp <-chan os.Signal, ready <-chan struct{}, failed <-chan error) error {
	var reload <-chan os.Signal // nothing before READY=1, since a reload ends with that too
	for {
		select {
		case <-ready:
			ready, reload = nil, hangUp
		case <-reload:
			d.reload()
		case s := <-end:
			d.log.Info("trayd stops; no machine is changed by that", "signal", s.String())
			return nil
		case err := <-failed:
			return err
		}
	}
}

// shutDown waits for the parts to end: the agent gives up what waits for a guest, which
// answers the requests that wait for that, which lets the server end.
func shutDown(server *api.Server, parts *sync.WaitGroup) error {
	limit, cancel := context.WithTimeout(context.Background(), stopLimit)
	defer cancel()
	if server.Shutdown(limit) != nil {
		_ = server.Close() // some client doesn't read its answer
	}
	ended := make(chan struct{})
	go func() {
		parts.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return nil
	case <-limit.Done():
		return fmt.Errorf("what is under way did not end within %s; the next start settles it", stopLimit)
	}
}

// holdLimit is how long a client that comes while trayd starts is kept waiting.
const holdLimit = 3 * time.Second

// hold keeps requests back until the machines have been attached to. Socket activation
// makes the first request come before that, and its answer would be that there are no
// machines. Those that don't ask about machines aren't held.
func hold(ready <-chan struct{}, next http.Handler) http.Handler {
	began := time.Now()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-ready:
		default:
			switch r.URL.Path {
			case "/v1/version", "/v1/events", "/healthz", "/readyz", "/metrics":
				next.ServeHTTP(w, r)
				return
			}
			limit := time.NewTimer(holdLimit - time.Since(began))
			defer limit.Stop()
			select {
			case <-ready:
			case <-limit.C:
			case <-r.Context().Done():
			}
		}
		next.ServeHTTP(w, r)
	})
}

// stateFileOf is the state file that a configuration means.
func stateFileOf(path string) (string, error) {
	c, err := config.Load(path)
	if err != nil {
		return "", err
	}
	return c.StateFile(), nil
}
