package systemd

import (
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

// notifyTimeout is how long one message may take. The manager reads them at once
// unless it is itself stuck, and then nobody should wait for it.
const notifyTimeout = time.Second

// Notifier tells the service manager how the service is doing. Without a manager that
// listens, all its methods do nothing; so does the nil Notifier. They may be called
// concurrently.
//
// Errors are returned for the log: a service goes on when its manager doesn't hear it.
type Notifier struct {
	address  string
	watchdog time.Duration // 0: nobody watches
}

// NewNotifier reads the environment ($NOTIFY_SOCKET, $WATCHDOG_USEC) and takes it away,
// so that a child process can't speak for the service. The error says that the
// environment makes no sense; the Notifier works all the same, as far as it can.
func NewNotifier() (*Notifier, error) {
	n := &Notifier{address: os.Getenv("NOTIFY_SOCKET")}
	os.Unsetenv("NOTIFY_SOCKET")
	every, err := daemon.SdWatchdogEnabled(true)
	if n.address != "" && n.address[0] != '/' && n.address[0] != '@' {
		err = fmt.Errorf("NOTIFY_SOCKET=%s is neither a path nor an abstract socket: the service manager isn't told anything", n.address)
		n.address = ""
	}
	if n.address != "" {
		n.watchdog = every
	}
	return n, err
}

// Enabled reports whether a manager listens, for messages that cost something to make.
func (n *Notifier) Enabled() bool { return n != nil && n.address != "" }

// Ready says that the service serves, or that a reload has ended, and what it does.
func (n *Notifier) Ready(status string) error {
	return n.send(daemon.SdNotifyReady, statusLine(status))
}

// Status says in one line what the service does; `systemctl status` shows it.
func (n *Notifier) Status(status string) error { return n.send(statusLine(status)) }

// Reloading says that the configuration is being read anew; Ready ends it. The time is
// what Type=notify-reload (systemd 253) tells a reload of before its own signal by.
func (n *Notifier) Reloading() error {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return fmt.Errorf("the monotonic clock: %w", err)
	}
	return n.send(daemon.SdNotifyReloading, fmt.Sprintf("MONOTONIC_USEC=%d", now.Nano()/1000))
}

// Stopping says that the service is ending, and why.
func (n *Notifier) Stopping(status string) error {
	return n.send(daemon.SdNotifyStopping, statusLine(status))
}

func statusLine(status string) string {
	return "STATUS=" + strings.Join(strings.Fields(status), " ") // a newline would begin another assignment
}

// send sends assignments in one message. Each has its own connection, so that a manager
// that was executed anew is found again.
func (n *Notifier) send(assignments ...string) error {
	if !n.Enabled() {
		return nil
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.address, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("tell the service manager: %w", err)
	}
	defer c.Close()
	if err := c.SetWriteDeadline(time.Now().Add(notifyTimeout)); err != nil {
		return fmt.Errorf("tell the service manager: %w", err)
	}
	if _, err := c.Write([]byte(strings.Join(assignments, "\n"))); err != nil {
		return fmt.Errorf("tell the service manager: %w", err)
	}
	return nil
}
