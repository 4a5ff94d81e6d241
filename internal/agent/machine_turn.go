package agent

import (
	"fmt"
)

// turn keeps others from doing something to the same machine; what says what is done. Discs
// are changed without it.
func (m *machines) turn(name, what string) (done func(), err error) {
	return m.turnUntil(name, what, func() bool { return false })
}

// turn is what is being done to a machine. Once over says so, it has been done, whether or not
// that has been noticed: whoever sees it done may do the next thing.
type turn struct {
	what string
	over func() bool
}

func (m *machines) turnUntil(name, what string, over func() bool) (done func(), err error) {
	mine := &turn{what, over}
	for {
		m.mu.Lock()
		other := m.turns[name]
		if other == nil {
			m.turns[name] = mine
			m.mu.Unlock()
			return func() { m.endTurn(name, mine) }, nil
		}
		m.mu.Unlock()
		if !other.over() {
			return nil, &Error{Code: VMBusy, VM: name, Detail: fmt.Sprintf("VM %s is being %s", name, other.what), Next: "wait for it to end; `trayctl events` shows when"}
		}
		m.endTurn(name, other)
	}
}

func (m *machines) endTurn(name string, t *turn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.turns[name] == t {
		delete(m.turns, name)
	}
}

// doing is what is being done to a machine; "" when nothing is.
func (m *machines) doing(name string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t := m.turns[name]; t != nil {
		return t.what
	}
	return ""
}
