package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/trayd/trayd/blockdev/volume"
	"github.com/trayd/trayd/internal/library/fetch"
	"github.com/trayd/trayd/internal/network"
	"github.com/trayd/trayd/internal/webhook"
	"github.com/trayd/trayd/systemd"
)

// networkEnv names the broker's socket where trayd has no other way to the network, as in
// its unit's sandbox. Empty: trayd opens its sockets itself.
const networkEnv = "TRAYD_NETWORK"

// brokerIdle is how long the broker stays without a request. Its socket starts the next.
const brokerIdle = time.Minute

func (c *cli) networkCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "network",
		Short: "Open network sockets for trayd, as trayd-network.service does",
		Long: `Open network sockets for trayd, whose own unit may not: resolve names, connect, listen,
and hear of devices. It is started by trayd-network.socket when trayd wants one, and ends
after a minute without.`,
		Example: `  systemctl status trayd-network.socket trayd-network`,
		Args:    cobra.NoArgs,
		RunE:    ran(func([]string) error { return c.broker() }),
	}
}

// broker serves until it is idle; SIGTERM ends it in the middle, which its client survives.
func (c *cli) broker() error {
	l, err := systemd.Listener()
	switch {
	case err != nil:
		return err
	case l == nil:
		return errors.New("no socket was passed: this is run by systemd, see `systemctl status trayd-network.socket`")
	}
	b := network.Broker{
		Listener: l, Idle: brokerIdle, Uevents: volume.ListenUevents,
		Log: slog.New(systemd.NewLogHandler(c.stderr, systemd.LogOptions{Identifier: "trayd-network"})),
	}
	return b.Serve(context.Background())
}

// sockets are how trayd gets what it can't open itself; the zero value has it open all by
// itself.
type sockets struct{ broker *network.Client }

func findSockets() sockets {
	if path := os.Getenv(networkEnv); path != "" {
		return sockets{&network.Client{Path: path}}
	}
	return sockets{}
}

func (s sockets) listen(ctx context.Context, at netip.AddrPort) (net.Listener, error) {
	if s.broker == nil {
		return new(net.ListenConfig).Listen(ctx, "tcp", at.String())
	}
	return s.broker.Listen(ctx, at)
}

func (s sockets) fetch(o *fetch.Options) {
	if s.broker != nil {
		o.Dial = s.broker.DialContext
	}
}

func (s sockets) webhooks(o *webhook.Options) {
	if s.broker != nil {
		o.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			return s.broker.DialContext(ctx, network, address, nil)
		}
	}
}

func (s sockets) volumes(o *volume.Options) {
	if s.broker != nil {
		o.Resolve, o.Uevents = s.broker.Resolve, s.broker.Uevents
	}
}
