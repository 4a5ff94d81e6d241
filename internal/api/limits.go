package api

import (
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/trayd/trayd/internal/access"
)

// Limits of the surface.
const (
	maxBody       = 64 << 10
	maxHeader     = 16 << 10
	headerTimeout = 10 * time.Second
	idleTimeout   = 2 * time.Minute
	// slowReader is how long one write to a client may take, slowWriter how long a client
	// may take to send a body, or the next piece of a large one.
	slowReader = 10 * time.Second
	slowWriter = 30 * time.Second
	// maxConnections is of all but root's on this host, so that others can't keep root out;
	// maxConnectionsOne is a user's, or an address's. trayd.service has 16384 descriptors, of
	// which machines and discs need most.
	maxConnections    = 2048
	maxConnectionsOne = 512
	// maxConnectionsTCP is of those who don't come by the unix socket, so that they can't keep
	// out those who do.
	maxConnectionsTCP = 1024
)

// connections counts who is connected.
type connections struct {
	mu  sync.Mutex // guards all below
	all map[net.Conn]string
	by  map[string]int
	tcp int
	// silent have asked for nothing yet.
	silent map[net.Conn]bool
}

func newConnections() *connections {
	return &connections{all: make(map[net.Conn]string), by: make(map[string]int), silent: make(map[net.Conn]bool)}
}

// limit refuses what is too much.
func (c *connections) limit(l net.Listener, log *slog.Logger) net.Listener {
	return &limited{Listener: l, conns: c, log: log}
}

type limited struct {
	net.Listener
	conns *connections
	log   *slog.Logger
	told  time.Time // of the last refusal; only Accept's goroutine uses it
}

// Accept closes a connection at once that is too much.
func (l *limited) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		who := peerKey(conn)
		if l.conns.take(conn, who) {
			return conn, nil
		}
		if now := time.Now(); now.Sub(l.told) > time.Minute {
			l.told = now
			l.log.Warn("a connection is refused: there are too many", "of", who, "each", maxConnectionsOne, "all", maxConnections)
		}
		conn.Close()
	}
}

func (c *connections) take(conn net.Conn, who string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if others := len(c.all) - c.by[root]; who != root && (others >= maxConnections || c.by[who] >= maxConnectionsOne) {
		return false
	}
	if !local(conn) {
		if c.tcp >= maxConnectionsTCP {
			return false
		}
		c.tcp++
	}
	c.all[conn] = who
	c.by[who]++
	return true
}

// state is http.Server's ConnState: it notes what has ended.
func (c *connections) state(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	if state == http.StateNew && !local(conn) {
		c.silent[conn] = true
	} else {
		delete(c.silent, conn)
	}
	c.mu.Unlock()
	if state == http.StateClosed {
		c.drop(conn)
	}
}

// endSilent ends what browsers have opened for later: Shutdown would wait 5 s for it. Who comes
// by the unix socket asks at once.
func (c *connections) endSilent() {
	c.mu.Lock()
	silent := slices.Collect(maps.Keys(c.silent))
	c.mu.Unlock()
	for _, conn := range silent {
		conn.Close() // which may come back here
	}
}

// drop forgets a connection; one that was hijacked is dropped by who has it.
func (c *connections) drop(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	who, ok := c.all[conn]
	if !ok {
		return
	}
	delete(c.all, conn)
	if !local(conn) {
		c.tcp--
	}
	if c.by[who]--; c.by[who] == 0 {
		delete(c.by, who)
	}
}

func local(conn net.Conn) bool {
	_, unix := conn.(*net.UnixConn)
	return unix
}

// root is whom root's connections count for, which have no limit.
const root = ""

// peerKey is whom a connection counts for: a user of this host, or an address. Who has one
// address of IPv6 has all that share its first 64 bits.
func peerKey(conn net.Conn) string {
	if u, ok := conn.(*net.UnixConn); ok {
		uid, err := access.UID(u)
		switch {
		case err != nil:
			return "unknown"
		case uid == 0:
			return root
		}
		return "uid " + strconv.Itoa(uid)
	}
	if a, err := netip.ParseAddrPort(conn.RemoteAddr().String()); err == nil {
		return access.Neighbours(a.Addr()).String()
	}
	return "unknown"
}

var errTunnelsClosed = errors.New("the server has been closed")
