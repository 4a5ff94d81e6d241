package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/trayd/trayd/internal/qemutest"
	"github.com/trayd/trayd/qmp"
	"github.com/trayd/trayd/qmp/qmptest"
)

// simulated is a machine of which there is only the monitor: it takes and gives what QEMU
// does for one CD drive, in a thousandth of the memory, so that there can be more of them than
// the host has room for.
type simulated struct {
	server *qmptest.Server

	mu     sync.Mutex // guards below
	node   string     // of the disc that is in; "" for none
	fdsets map[int]string
	last   int           // fdset
	slow   time.Duration // before each answer
}

// harness lets qmptest's servers live in a program that isn't a test.
type harness struct {
	testing.TB // what isn't here isn't used
	b          *bench
	dir        string
}

func (h *harness) Helper()                   {}
func (h *harness) TempDir() string           { return h.dir }
func (h *harness) Cleanup(f func())          { h.b.atEnd(f) }
func (h *harness) Errorf(f string, a ...any) { fmt.Fprintf(os.Stderr, f+"\n", a...) }
func (h *harness) Fatalf(f string, a ...any) { panic(fmt.Sprintf(f, a...)) }

// simulate starts n machines whose monitors lie in dir/run. All say what a real QEMU says it
// can do: its schema is the largest of all answers.
func (b *bench) simulate(dir string, n int) ([]*simulated, error) {
	schema, err := b.schema(dir)
	if err != nil {
		return nil, err
	}
	all := make([]*simulated, n)
	for i := range all {
		m := &simulated{fdsets: make(map[int]string)}
		own := filepath.Join(dir, fmt.Sprint(i))
		for _, d := range []string{own, filepath.Join(dir, "run")} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				return nil, err
			}
		}
		m.server = qmptest.New(&harness{b: b, dir: own}, m.handlers(schema)...)
		if err := os.Symlink(m.server.Path(), filepath.Join(dir, "run", fmt.Sprintf("vm%d.qmp", i))); err != nil {
			return nil, err
		}
		all[i] = m
	}
	return all, nil
}

// schema is what a real QEMU answers to query-qmp-schema.
func (b *bench) schema(dir string) (json.RawMessage, error) {
	real := filepath.Join(dir, "real")
	if err := b.machines(real, "real", 1); err != nil {
		return nil, fmt.Errorf("%s: %w", qemutest.Binary(), err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := qmp.Dial(ctx, filepath.Join(real, "run/real0.qmp"), nil)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	var schema json.RawMessage
	err = c.Execute(ctx, "query-qmp-schema", nil, &schema)
	return schema, err
}

// slower delays each answer from now on.
func (m *simulated) slower(d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.slow = d
}

func (m *simulated) handlers(schema json.RawMessage) []qmptest.Option {
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
		on("qom-get", func(q *qmptest.Request) any { return qom(q) }),
		on("add-fd", func(q *qmptest.Request) any { return m.addFD(q) }),
		on("remove-fd", func(q *qmptest.Request) any { return m.removeFD(q) }),
		on("blockdev-change-medium", func(q *qmptest.Request) any { return m.change(q) }),
		on("blockdev-open-tray", constant(nil)),
		on("blockdev-close-tray", constant(nil)),
		on("blockdev-remove-medium", func(*qmptest.Request) any { m.node = ""; return nil }),
	}
}

func (m *simulated) drive() any {
	d := map[string]any{"device": "", "qdev": "cd0", "removable": true, "locked": false, "tray_open": false, "type": "unknown"}
	if m.node != "" {
		d["inserted"] = map[string]any{"node-name": m.node, "file": "/dev/fdset/1", "drv": "raw", "ro": true, "image": map[string]any{"virtual-size": 358400, "filename": "/dev/fdset/1", "format": "raw"}}
	}
	return []any{d}
}

func (m *simulated) nodes() any {
	if m.node == "" {
		return []any{}
	}
	return []any{map[string]any{"node-name": m.node, "drv": "raw", "file": "/dev/fdset/1"}}
}

func (m *simulated) sets() any {
	all := []any{}
	for id, opaque := range m.fdsets {
		all = append(all, map[string]any{"fdset-id": id, "fds": []any{map[string]any{"fd": id, "opaque": opaque}}})
	}
	return all
}

// qom is where the drive is: on the AHCI of a q35.
func qom(q *qmptest.Request) any {
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

func (m *simulated) addFD(q *qmptest.Request) any {
	var args struct{ Opaque string }
	q.Decode(&args)
	m.last++
	m.fdsets[m.last] = args.Opaque
	return map[string]int{"fdset-id": m.last, "fd": m.last}
}

func (m *simulated) removeFD(q *qmptest.Request) any {
	var args struct {
		FDSet int `json:"fdset-id"`
	}
	q.Decode(&args)
	delete(m.fdsets, args.FDSet)
	return nil
}

func (m *simulated) change(q *qmptest.Request) any {
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
