// Package simulated is machines of which there is only the monitor: they say what QEMU says of
// one CD drive, and take and give discs, in a thousandth of a QEMU's memory and processor, so
// that there can be more of them than a host has room for.
package simulated

import (
	"encoding/json"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/trayd/trayd/qmp/qmptest"
)

// Drive is what the drive of each is called.
const Drive = "cd0"

// Machine is one; what its server does can be changed, and what it was asked can be read.
type Machine struct {
	*qmptest.Server

	mu     sync.Mutex // guards below
	node   string     // of the disc that is in; "" for none
	fdsets map[int]string
	last   int           // fdset
	slow   time.Duration // before each answer
}

// Schema is what each has to say about its commands.
const Schema = `[{"name":"blockdev-change-medium","meta-type":"command","arg-type":"args","ret-type":"empty"},
	{"name":"args","meta-type":"object","members":[{"name":"id","type":"str"},{"name":"filename","type":"str"},{"name":"force","type":"bool"}]},
	{"name":"empty","meta-type":"object","members":[]}]`

// New starts one, which ends with the test. schema is what it answers to query-qmp-schema:
// Schema, or a real QEMU's, which is the largest of all answers and weighs on its client as such.
func New(t testing.TB, schema json.RawMessage) *Machine {
	m := &Machine{fdsets: make(map[int]string)}
	m.Server = qmptest.New(t, m.handlers(schema)...)
	return m
}

// Slower delays each answer from now on.
func (m *Machine) Slower(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.slow = d
}

func (m *Machine) handlers(schema json.RawMessage) []qmptest.Option {
	on := func(command string, f func(q *qmptest.Request) any) qmptest.Option {
		return qmptest.On(command, func(q *qmptest.Request) {
			m.mu.Lock()
			slow := m.slow
			m.mu.Unlock()
			if slow > 0 && !q.Sleep(slow) {
				return
			}
			m.mu.Lock()
			v := f(q)
			m.mu.Unlock()
			q.Return(v)
		})
	}
	constant := func(v any) func(*qmptest.Request) any { return func(*qmptest.Request) any { return v } }
	return []qmptest.Option{
		on("query-qmp-schema", constant(schema)),
		on("query-status", constant(map[string]any{"running": true, "status": "running"})),
		on("query-block", func(*qmptest.Request) any { return m.drive() }),
		on("query-named-block-nodes", func(*qmptest.Request) any { return m.nodes() }),
		on("query-fdsets", func(*qmptest.Request) any { return m.sets() }),
		on("qom-get", func(q *qmptest.Request) any { return QOM(q) }),
		on("add-fd", func(q *qmptest.Request) any { return m.addFD(q) }),
		on("remove-fd", func(q *qmptest.Request) any { return m.removeFD(q) }),
		on("blockdev-change-medium", func(q *qmptest.Request) any { return m.change(q) }),
		on("blockdev-open-tray", constant(nil)),
		on("blockdev-close-tray", constant(nil)),
		on("blockdev-remove-medium", func(*qmptest.Request) any { m.node = ""; return nil }),
	}
}

func (m *Machine) drive() any {
	d := map[string]any{"device": "", "qdev": Drive, "removable": true, "locked": false, "tray_open": false, "type": "unknown"}
	if m.node != "" {
		d["inserted"] = map[string]any{"node-name": m.node, "file": "/dev/fdset/1", "drv": "raw", "ro": true, "image": map[string]any{"virtual-size": 358400, "filename": "/dev/fdset/1", "format": "raw"}}
	}
	return []any{d}
}

func (m *Machine) nodes() any {
	if m.node == "" {
		return []any{}
	}
	return []any{map[string]any{"node-name": m.node, "drv": "raw", "file": "/dev/fdset/1"}}
}

func (m *Machine) sets() any {
	all := []any{}
	for id, opaque := range m.fdsets {
		all = append(all, map[string]any{"fdset-id": id, "fds": []any{map[string]any{"fd": id, "opaque": opaque}}})
	}
	return all
}

// QOM is what each answers to qom-get: where the drive is, on the AHCI of a q35.
func QOM(q *qmptest.Request) any {
	var args struct{ Path, Property string }
	q.Decode(&args)
	switch {
	case args.Path == "/machine/ahci":
		return "ich9-ahci"
	case args.Property == "parent_bus":
		return "/machine/ahci/ide.0"
	}
	return "ide-cd"
}

func (m *Machine) addFD(q *qmptest.Request) any {
	var args struct{ Opaque string }
	q.Decode(&args)
	m.last++
	m.fdsets[m.last] = args.Opaque
	return map[string]int{"fdset-id": m.last, "fd": m.last}
}

func (m *Machine) removeFD(q *qmptest.Request) any {
	var args struct {
		FDSet int `json:"fdset-id"`
	}
	q.Decode(&args)
	delete(m.fdsets, args.FDSet)
	return nil
}

func (m *Machine) change(q *qmptest.Request) any {
	var args struct{ Filename string }
	q.Decode(&args)
	text := strings.ReplaceAll(strings.TrimPrefix(args.Filename, "json:"), "'", `"`)
	var options struct {
		NodeName string `json:"node-name"`
	}
	if err := json.Unmarshal([]byte(text), &options); err != nil {
		panic(err) // a simulation that understands nothing measures nothing
	}
	m.node = options.NodeName
	return nil
}
