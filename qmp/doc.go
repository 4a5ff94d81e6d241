// Package qmp is a connection to QEMU's monitor that survives what a monitor does to its clients.
//
// QEMU is controlled through a socket that speaks the QEMU Machine Protocol: JSON objects in both directions, commands
// and their replies, and events in between. A [Conn] is one such connection:
//
//	c, err := qmp.Dial(ctx, "/run/vm1.qmp", nil)
//	if err != nil {
//		return err // "monitor /run/vm1.qmp: no greeting within 5s: another client holds this monitor"
//	}
//	defer c.Close()
//
//	events := c.Subscribe(64)
//	err = c.Execute(ctx, "blockdev-open-tray", map[string]any{"id": "cd0"}, nil)
//
// # What it promises
//
// Every wait ends with the caller's context: the connect, the wait for a greeting that never comes (one monitor socket
// serves one client, the next one waits in silence), a write that QEMU does not read, a reply that does not come.
//
// An error says whether QEMU may have acted. [Error] is QEMU's own answer. [ErrClosed] and an error that is neither
// mean that the command was not sent. [ErrUnanswered] means that it was sent and that nobody knows: a frozen QEMU
// executes it later. The connection stays usable then, the late reply is recognised by its id and dropped, and because
// a monitor executes its commands in order, the answer to a query on the same Conn tells what became of the command.
//
// Nothing that one party does blocks another: a subscriber that does not read loses events and is told how many, a
// writer that is stuck does not stop replies, a caller that gives up does not stop other callers.
//
// A reply may be as large as 10 MiB, in one line or in many (a monitor with pretty=on). Between large replies a
// connection holds a read buffer of 4 KiB and one goroutine.
//
// Descriptors travel with their command, see [Conn.Send] and [Conn.AddFD].
//
// # What it leaves to others
//
// A Conn does not reconnect. Events that QEMU emits while nobody is connected are lost, so whoever connects again has
// to ask for the state first, and knows best what to ask. It does not retry a command, because it cannot know which
// ones are harmless twice. It knows no command beyond those that concern the connection itself: the status, the
// descriptors, the schema. It does not negotiate out-of-band execution.
//
// # Relation to go-qemu
//
// A Conn is a [github.com/digitalocean/go-qemu/qmp.Monitor], so that go-qemu's Domain runs on top of it. Why that
// module's own SocketMonitor is not used stands at [Conn.Run].
//
// # Seeing the traffic
//
// With TRAYD_QMP_WIRE=1 in the environment every message of every connection is written to stderr, one line each. The
// lines hold whatever the commands hold, secrets included. A single connection is watched with [Options.Wire].
package qmp
