package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/trayd/trayd/internal/qemutest"
	"github.com/trayd/trayd/internal/simulated"
	"github.com/trayd/trayd/qmp"
)

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
func (b *bench) simulate(dir string, n int) ([]*simulated.Machine, error) {
	schema, err := b.schema(dir)
	if err != nil {
		return nil, err
	}
	all := make([]*simulated.Machine, n)
	for i := range all {
		own := filepath.Join(dir, fmt.Sprint(i))
		for _, d := range []string{own, filepath.Join(dir, "run")} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				return nil, err
			}
		}
		all[i] = simulated.New(&harness{b: b, dir: own}, schema)
		if err := os.Symlink(all[i].Path(), filepath.Join(dir, "run", fmt.Sprintf("vm%d.qmp", i))); err != nil {
			return nil, err
		}
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
