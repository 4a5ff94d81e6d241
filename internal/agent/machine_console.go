package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/trayd/trayd/internal/machine"
)

const (
	// MaxConsoles is how many consoles may be open at once, of all machines: more than
	// people look at, and as many as one QEMU's VNC server takes (ui/vnc.c, connections). Each
	// has 64 KiB of memory here, and what the kernel's buffers hold.
	MaxConsoles = 32
	// consoleDial is how long QEMU's socket may take to be connected to, and dialPoll between
	// tries: its queue holds one or two, and a full one is refused (EAGAIN).
	consoleDial = 2 * time.Second
	dialPoll    = 5 * time.Millisecond
	// freeLimit is how long a serial console that was closed may take until trayd and QEMU
	// have seen that, and freePoll between looks.
	freeLimit = time.Second
	freePoll  = 10 * time.Millisecond
)

// consoles are the open ones, of all machines.
type consoles struct {
	mu     sync.Mutex
	open   int               // guarded by mu
	serial map[string]holder // who has a machine's serial console, by machine; guarded by mu
}

// holder has the serial console of a machine.
type holder struct {
	by    string
	since time.Time
	gone  chan struct{} // closed when it is given back
}

// Console is an open connection to a machine's screen or its serial console: what is
// written goes to QEMU, what is read comes from it. It breaks when the machine ends and when
// the agent stops. Whoever opened it calls End once, and soon: the agent waits for that when
// it stops.
type Console struct {
	Conn  net.Conn
	close func()
	log   func(why string)
	once  sync.Once
}

// End closes the connection, gives back its place, and lets the agent stop; why is for the
// log.
func (c *Console) End(why string) {
	c.once.Do(func() {
		c.log(why) // first: an agent that may stop writes nothing any more
		c.close()
	})
}

// OpenConsole connects to the screen (machine.VNCSocket) or the serial console
// (machine.SerialSocket) of a running machine of trayd's own. A screen may be looked at by
// several, a serial console serves one at a time. Both its opening and its end are audited.
func (a *Agent) OpenConsole(ctx context.Context, name, socket string, by Caller) (*Console, error) {
	c, err := a.machines.openConsole(ctx, name, socket, by)
	t := a.trace(by, "console", "vm", name, "console", socket)
	if err != nil {
		t.end(err)
		return nil, err
	}
	t.log.Info("opened")
	c.log = func(why string) {
		t.log.Info("closed", "took", time.Since(t.began).Round(time.Millisecond), "reason", why)
	}
	return c, nil
}

// CheckConsole says why OpenConsole would fail now; it connects to nothing.
func (a *Agent) CheckConsole(ctx context.Context, name, socket string, by Caller) error {
	_, err := a.ConsoleSocket(ctx, name, socket)
	if err != nil {
		return err
	}
	release, _, err := a.machines.tryConsole(name, socket, by)
	if err == nil {
		release()
	}
	return err
}

func (m *machines) openConsole(ctx context.Context, name, socket string, by Caller) (*Console, error) {
	path, err := m.a.ConsoleSocket(ctx, name, socket)
	if err != nil {
		return nil, err
	}
	release, err := m.takeConsole(ctx, name, socket, by)
	if err != nil {
		return nil, err
	}
	conn, err := dialConsole(ctx, name, socket, path)
	if err != nil {
		release()
		return nil, err
	}
	stop := context.AfterFunc(m.a.ctx, func() { conn.Close() })
	return &Console{Conn: conn, close: func() {
		stop()
		conn.Close() // it may have broken, or have been closed
		release()
	}}, nil
}

// takeConsole takes one of the places, and a serial console's only one. Its last client knows
// of its own end before it is given back here, so there is a moment to wait for that.
func (m *machines) takeConsole(ctx context.Context, name, socket string, by Caller) (release func(), err error) {
	limit := time.After(freeLimit)
	for {
		release, gone, err := m.tryConsole(name, socket, by)
		if gone == nil {
			return release, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-limit:
			return nil, err
		case <-gone:
		}
	}
}

// tryConsole takes one at once. Where somebody else has a serial console, gone is closed when
// that one has gone.
func (m *machines) tryConsole(name, socket string, by Caller) (release func(), gone <-chan struct{}, err error) {
	a, c := m.a, &m.consoles
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stopping {
		return nil, nil, &Error{Code: Stopping, VM: name, Detail: "trayd is stopping", Next: "try again when it runs"}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	serial := socket == machine.SerialSocket
	if h, taken := c.serial[name]; serial && taken {
		return nil, h.gone, &Error{Code: ConsoleTaken, VM: name,
			Detail: fmt.Sprintf("the serial console of VM %s serves one at a time, and %s has it since %s", name, h.by, h.since.Format(time.DateTime)),
			Next:   "end that one (Ctrl-] in its terminal), or read along: `trayctl vm log " + name + "`"}
	}
	if c.open >= MaxConsoles {
		return nil, nil, &Error{Code: ManyConsoles, VM: name, Detail: fmt.Sprintf("%d consoles are open, and trayd opens no more at once", c.open),
			Next: "close one of them; the lines with verb=console in trayd's journal say who has them"}
	}
	c.open++
	mine := holder{by.Name, time.Now(), make(chan struct{})}
	if serial {
		if c.serial == nil {
			c.serial = make(map[string]holder)
		}
		c.serial[name] = mine
	}
	a.work.Add(1)
	return func() {
		c.mu.Lock()
		c.open--
		if serial {
			delete(c.serial, name)
		}
		c.mu.Unlock()
		close(mine.gone)
		a.work.Done()
	}, nil, nil
}

// dialConsole connects to a console's socket. QEMU doesn't refuse a second client of a
// serial console, but lets it wait in the queue of the socket until the first has gone
// (chardev/char-socket.c); so it is found out here whether there is a first.
func dialConsole(ctx context.Context, name, socket, path string) (net.Conn, error) {
	if socket == machine.SerialSocket {
		if err := awaitFree(ctx, name, path); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, consoleDial)
	defer cancel()
	for {
		conn, err := dialOwn(ctx, path)
		if err == nil {
			return conn, nil
		}
		next := "is it just being started, or has it ended? see `trayctl vm show " + name + "`, and try again"
		if errors.Is(err, syscall.EAGAIN) { // the queue is full
			select {
			case <-time.After(dialPoll):
				continue
			case <-ctx.Done():
			}
			next = "its QEMU hangs, or is very busy: see `trayctl vm show " + name + "`, and try again"
		}
		return nil, &Error{Code: Unreachable, VM: name, Err: err, Detail: fmt.Sprintf("the console of VM %s can't be connected to: %v", name, err), Next: next}
	}
}

func dialOwn(ctx context.Context, path string) (net.Conn, error) {
	at, done, err := ownSocket(path)
	if err != nil {
		return nil, err
	}
	defer done()
	var d net.Dialer
	return d.DialContext(ctx, "unix", at)
}

// awaitFree waits until QEMU serves nobody at a socket. It may not have seen yet that the
// last one has gone.
func awaitFree(ctx context.Context, name, path string) error {
	for end := time.Now().Add(freeLimit); ; {
		served, err := servesSomebody(path)
		if err != nil || !served { // where the kernel doesn't tell, QEMU's queue has to do
			return nil
		}
		if time.Now().After(end) {
			return &Error{Code: ConsoleTaken, VM: name, Detail: fmt.Sprintf("the serial console of VM %s serves one at a time, and a program that isn't trayd has it", name),
				Next: "end that program: `ss -xp | grep " + path + "` leads to it"}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(freePoll):
		}
	}
}
