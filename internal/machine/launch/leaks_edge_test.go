//go:build edge

package launch

import "go.uber.org/goleak"

// othersLeaks: go-systemd's reader of signals waits for ever when the bus ends between its
// two connections and it, as it may when a test starts the bus anew.
var othersLeaks = []goleak.Option{goleak.IgnoreTopFunction("github.com/coreos/go-systemd/v22/dbus.(*Conn).dispatch.func1")}
