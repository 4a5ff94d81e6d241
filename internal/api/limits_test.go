package api

import (
	"fmt"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestTake: neither one user, nor all of the network together, keep others out; root is never
// kept out.
func TestTake(t *testing.T) {
	c := newConnections()
	fill := func(who string, conn func() net.Conn) (taken []net.Conn) {
		for {
			conn := conn()
			if !c.take(conn, who) {
				return taken
			}
			taken = append(taken, conn)
		}
	}
	tcp := func() net.Conn { return &net.TCPConn{} }
	local := func() net.Conn { return &net.UnixConn{} }
	var network [][]net.Conn
	for i := range 4 {
		network = append(network, fill(fmt.Sprintf("192.0.2.%d", i), tcp))
	}
	require.Len(t, network[0], maxConnectionsOne)
	require.Len(t, network[1], maxConnectionsTCP-maxConnectionsOne)
	require.Empty(t, network[3])

	require.Len(t, fill("uid 1000", local), maxConnectionsOne, "the socket has what the network can't take")
	require.Len(t, fill("uid 1001", local), maxConnections-maxConnectionsTCP-maxConnectionsOne)
	require.False(t, c.take(local(), "uid 1002"))
	for range maxConnections {
		require.True(t, c.take(local(), root))
	}

	c.drop(network[0][0])
	c.drop(network[0][0]) // it is told twice
	require.Len(t, fill("192.0.2.9", tcp), 1)
}
